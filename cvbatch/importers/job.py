"""Run an import: read the annotations, validate all images, then write the shards.

All images are validated before anything is written, so that a refusal leaves the sink unchanged.
Then they are read again and written, one shard at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cvbatch.config.predict import SCHEMA_VERSION
from cvbatch.core.errors import CvbatchError, SinkError
from cvbatch.datasets.schema import KIND
from cvbatch.importers.annotations import AnnotatedDataset
from cvbatch.importers.coco import read_coco
from cvbatch.importers.folders import read_folders
from cvbatch.importers.import_report import Report
from cvbatch.importers.options import ImportOptions
from cvbatch.importers.predictions import read_predictions
from cvbatch.importers.shard_writer import ShardWriter
from cvbatch.importers.trimaps import read_trimaps
from cvbatch.importers.validation import Row, examined
from cvbatch.importers.voc import read_voc
from cvbatch.storage import store
from cvbatch.storage.sink import Sink

FORMATS: dict[str, Callable[[str, ImportOptions, Report], AnnotatedDataset]] = {
    "folders": read_folders,
    "voc": read_voc,
    "coco": read_coco,
    "trimaps": read_trimaps,
    "predictions": read_predictions,
}
_TOLD_IMAGES = 2000

Say = Callable[[str], None]


def import_labels(
    format_: str,
    source: str,
    sink: str,
    options: ImportOptions,
    chosen: Mapping[str, str],
    say: Say,
) -> Report:
    """Write a data set as labelled Parquet; return what was found and what became of it.

    format_: a key of FORMATS. chosen: flag of `RULES` → action, where it is not the default.

    Raises:
        RefusedError: nothing was written.
        CvbatchError: stopped midway; the same call begins again.
    """
    source, sink_uri = store.absolute(source), store.absolute(sink)
    if source == sink_uri:
        raise SinkError(f"the source and the sink are both {source}; use another folder as sink")
    with Sink(options.storage, sink_uri, "import", say) as target:
        _check_sink(target, options.overwrite)
        report = Report(chosen)
        truth = FORMATS[format_](source, options, report)
        report.classes = _no_counts(truth)
        for _ in _told(examined(truth, options, report), "checked", say):
            pass
        report.check(source)
        target.acquire()
        target.clear("part-*.parquet")
        _write_summary(target, {"is_complete": False})
        writer = ShardWriter(target.storage, sink_uri, truth, format_, options.shard_images)
        again = Report(chosen)
        again.classes = _no_counts(truth)
        for row in _told(target.guarded(examined(truth, options, again)), "read", say):
            writer.add(row)
        writer.close()
        if (again.images, again.classes) != (report.images, report.classes):
            raise CvbatchError(
                f"{source} changed while it was imported: {report.num_written:,} images were in "
                f"order, then {again.num_written:,}"
            )
        said = said_of(format_, truth, report, writer.files)
        _write_summary(target, {"is_complete": True, **said})
        target.remove_leftovers()
    return report


def said_of(
    format_: str, truth: AnnotatedDataset, report: Report, files: Mapping[str, int]
) -> dict[str, Any]:
    """Return the summary of an import as JSON-ready values; the same source gives the same."""
    return {
        "format": format_,
        "columns": list(truth.columns),
        **report.as_json(),
        "files": dict(files),
    }


def _no_counts(truth: AnnotatedDataset) -> dict[str, Counter[str]]:
    return {
        column: Counter(dict.fromkeys(truth.classes[column], 0))
        for column in truth.columns
        if column in truth.classes
    }


def _told(rows: Iterator[Row], verb: str, say: Say) -> Iterator[Row]:
    """Yield the rows; say now and then how far it is."""
    num_rows = 0
    for row in rows:
        num_rows += 1
        yield row
        if num_rows % _TOLD_IMAGES == 0:
            say(f"{verb} {num_rows:,} images")
    say(f"{verb} {num_rows:,} images")


def _check_sink(sink: Sink, overwrite: bool) -> None:
    """Refuse a sink with labelled data, except what an interrupted import left."""
    state = sink.open(overwrite=overwrite)
    if state is not None and state.get("is_complete") is not False:
        raise SinkError(
            f"sink {sink.uri} contains labelled data; use another folder or --overwrite"
        )


def _write_summary(sink: Sink, summary: dict[str, Any]) -> None:
    sink.write_state({"kind": KIND, "schema_version": SCHEMA_VERSION, **summary})
