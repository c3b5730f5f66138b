"""Run an import: read the annotations, validate all images, then write the shards.

All images are validated before anything is written, so that a refusal leaves the sink unchanged.
Then they are read again and written, one shard at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from cvbatch.config.predict import SCHEMA_VERSION
from cvbatch.core.errors import CvbatchError, SinkError
from cvbatch.core.progress import Listener
from cvbatch.datasets.schema import KIND
from cvbatch.importers.annotations import AnnotatedDataset
from cvbatch.importers.coco import read_coco
from cvbatch.importers.csv_file import read_csv
from cvbatch.importers.folders import read_folders
from cvbatch.importers.image_check import ImageCheck
from cvbatch.importers.import_report import ImportReport
from cvbatch.importers.masks import read_masks
from cvbatch.importers.options import ImportOptions
from cvbatch.importers.predictions import read_predictions
from cvbatch.importers.shard_writer import ShardWriter
from cvbatch.importers.trimaps import read_trimaps
from cvbatch.importers.validation import LabelledImage, validated_images
from cvbatch.importers.voc import read_voc
from cvbatch.importers.yolo import read_yolo
from cvbatch.storage import store
from cvbatch.storage.sink import Sink

FORMATS: dict[str, Callable[[str, ImportOptions, ImportReport], AnnotatedDataset]] = {
    "folders": read_folders,
    "csv": read_csv,
    "voc": read_voc,
    "coco": read_coco,
    "yolo": read_yolo,
    "trimaps": read_trimaps,
    "masks": read_masks,
    "predictions": read_predictions,
}
_ISSUES = "_cvbatch/issues.jsonl"


def import_labels(
    format_: str,
    source: str,
    sink: str,
    options: ImportOptions,
    chosen: Mapping[str, str],
    listener: Listener,
) -> ImportReport:
    """Write a data set as labelled Parquet; return the report.

    Args:
        format_: a key of FORMATS.
        source: folder or file of the data set.
        sink: an empty folder, or one with an interrupted import.
        options: options of the format.
        chosen: flag of `RULES` → action, for flags that do not have their default.
        listener: receives the progress.

    Raises:
        RefusedError: nothing was written.
        CvbatchError: the import was interrupted; the same call starts again.
    """
    source, sink_uri = store.absolute(source), store.absolute(sink)
    if source == sink_uri:
        raise SinkError(f"the source and the sink are both {source}; use another folder as sink")
    with Sink(options.storage, sink_uri, "import", listener.info) as target:
        _check_sink(target, options.overwrite)
        listener.phase("reading the annotations")
        report, second_pass = ImportReport(chosen), ImportReport(chosen)
        dataset = FORMATS[format_](source, options, report)
        dataset = replace(dataset, has_images=options.has_images)
        check = ImageCheck(is_enabled=options.check_images and options.has_images)
        for _ in _validated("checking", dataset, options, report, check, listener):
            pass
        check.finish_first_pass()
        report.check(source)
        target.acquire()
        target.clear("part-*.parquet")
        _write_summary(target, {"is_complete": False})
        writer = ShardWriter(target.storage, sink_uri, dataset, format_, options.shard_images)
        images = _validated("writing", dataset, options, second_pass, check, listener)
        for image in target.guarded(images):
            writer.add(image)
        writer.close()
        _check_unchanged(source, report, second_pass)
        target.put(_ISSUES, report.issue_lines())
        _write_summary(target, _summary(format_, dataset, report, writer.files))
        target.remove_leftovers()
    return report


def _validated(
    phase: str,
    dataset: AnnotatedDataset,
    options: ImportOptions,
    report: ImportReport,
    check: ImageCheck,
    listener: Listener,
) -> Iterator[LabelledImage]:
    report.classes = {
        column: Counter(dict.fromkeys(dataset.classes[column], 0))
        for column in dataset.columns
        if column in dataset.classes
    }
    listener.phase(phase, dataset.num_images, "images")
    return validated_images(dataset, options, report, check, listener.advanced)


def _check_unchanged(source: str, first: ImportReport, second: ImportReport) -> None:
    """Raise CvbatchError if the second pass over the data set found other images or classes."""
    if (second.images, second.classes) != (first.images, first.classes):
        raise CvbatchError(
            f"{source} changed while it was imported: {first.num_written:,} valid images, "
            f"then {second.num_written:,}; run the import again"
        )


def _summary(
    format_: str, dataset: AnnotatedDataset, report: ImportReport, files: Mapping[str, int]
) -> dict[str, Any]:
    """Return the summary of an import as JSON-ready values."""
    return {
        "is_complete": True,
        "format": format_,
        "columns": list(dataset.columns),
        **report.as_json(),
        "files": dict(files),
    }


def _check_sink(sink: Sink, overwrite: bool) -> None:
    """Raise if the sink contains labelled data, unless an interrupted import wrote it."""
    state = sink.open(overwrite=overwrite)
    if state is not None and state.get("is_complete") is not False:
        raise SinkError(
            f"sink {sink.uri} contains labelled data; use another folder or --overwrite"
        )


def _write_summary(sink: Sink, summary: dict[str, Any]) -> None:
    sink.write_state({"kind": KIND, "schema_version": SCHEMA_VERSION, **summary})
