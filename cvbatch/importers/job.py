"""An import from its folder to its report: read what is said, check all of it, then write.

All is looked at once before anything is written, so that a refusal leaves the sink as it was; what
was found to be in order is then read again, a shard at a time.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cvbatch.config.predict import SCHEMA_VERSION
from cvbatch.core.errors import AccessDeniedError, CvbatchError, NotFoundError, SinkError
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
from cvbatch.storage.sink_state import refuse_others

FORMATS: dict[str, Callable[[str, ImportOptions, Report], AnnotatedDataset]] = {
    "folders": read_folders,
    "voc": read_voc,
    "coco": read_coco,
    "trimaps": read_trimaps,
    "predictions": read_predictions,
}
SUMMARY = "_cvbatch/import.json"
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
    source, sink = store.absolute(source), store.absolute(sink)
    _check_sink(source, sink, options.overwrite)
    report = Report(chosen)
    truth = FORMATS[format_](source, options, report)
    report.classes = _no_counts(truth)
    for _ in _told(examined(truth, options, report), "checked", say):
        pass
    report.check(source)
    _begin(sink)
    writer = ShardWriter(sink, truth, format_, options.shard_images)
    again = Report(chosen)
    again.classes = _no_counts(truth)
    for row in _told(examined(truth, options, again), "read", say):
        writer.add(row)
    writer.close()
    if (again.images, again.classes) != (report.images, report.classes):
        raise CvbatchError(
            f"{source} changed while it was imported: {report.num_written:,} images were in order, "
            f"then {again.num_written:,}"
        )
    _put_summary(sink, {"is_complete": True, **said_of(format_, truth, report, writer.files)})
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


def _check_sink(source: str, sink: str, overwrite: bool) -> None:
    """Refuse a sink that holds something; what an import left half done is no result."""
    if source == sink:
        raise SinkError(f"the source and the sink are both {sink}; give the sink its own folder")
    try:
        refuse_others(sink, "import")
        if overwrite:
            return
        summary = _summary(sink)
        parts = [name for name in store.list_names(sink) if name.endswith(".parquet")]
    except (NotFoundError, AccessDeniedError) as error:
        raise SinkError(f"the sink cannot be used: {error}") from None
    if summary is not None and summary.get("is_complete") is False:
        return
    if summary is not None:
        raise SinkError(f"sink {sink} holds labelled data; name another folder, or --overwrite")
    if parts:
        raise SinkError(
            f"sink {sink} holds Parquet files such as {parts[0]!r}; name an empty folder"
        )


def _summary(sink: str) -> dict[str, Any] | None:
    try:
        found = json.loads(store.read_bytes(store.join(sink, SUMMARY)))
    except NotFoundError:
        return None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise SinkError(f"sink {sink}: {SUMMARY} is damaged; name another folder, or --overwrite")
    return found


def _begin(sink: str) -> None:
    """Say that an import is under way, and clear away what an earlier one left."""
    _put_summary(sink, {"is_complete": False})
    for name in store.list_names(sink):
        if name.startswith("part-") and name.endswith(".parquet"):
            store.delete(store.join(sink, name))


def _put_summary(sink: str, said: dict[str, Any]) -> None:
    document = {"kind": KIND, "schema_version": SCHEMA_VERSION, **said}
    data = json.dumps(document, indent=1, ensure_ascii=False).encode()
    store.put_bytes(store.join(sink, SUMMARY), data)
