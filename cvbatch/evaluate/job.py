"""Run an evaluation job: validate it, join predictions and labels, score the parts, write metrics.

Nothing is written before both inputs are checked. `_cvbatch/evaluation.json` in the sink records
what is evaluated and whether the evaluation is complete.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cvbatch.config.evaluate import EVALUATION_VERSION, EvaluateJob, fingerprint
from cvbatch.core.progress import Listener
from cvbatch.core.tasks import CLASS_COLUMNS
from cvbatch.distributed.parallel_map import ParallelMap, stateless
from cvbatch.distributed.resources import Resources, local_resources
from cvbatch.distributed.session import connect_ray, joins_a_cluster
from cvbatch.evaluate import boxes, columns, heatmap_metrics, metrics_table, plots
from cvbatch.evaluate.class_map import (
    make_evaluation_spec,
    match_heatmap_classes,
    unmatched_classes,
)
from cvbatch.evaluate.heatmap_faithfulness import HeatmapScores, ImageGroup
from cvbatch.evaluate.heatmap_job import (
    HeatmapSource,
    evaluate_heatmaps,
    load_heatmap_source,
    load_or_build_program,
    sample_images,
)
from cvbatch.evaluate.join import (
    GroundTruth,
    JoinResult,
    join,
    load_ground_truth,
    predictions_only,
)
from cvbatch.evaluate.metrics_table import MetricRow, Replicates
from cvbatch.evaluate.scoring import EvaluationSpec, Scores, merge_scores
from cvbatch.inference.programs import BuiltProgram
from cvbatch.plots.faithfulness import draw_faithfulness
from cvbatch.plots.figure import require_matplotlib, to_files
from cvbatch.results.result import Result
from cvbatch.storage import store
from cvbatch.storage.sink import Sink
from cvbatch.storage.store import Storage

_MAX_NAMED = 3  # ids or classes in a message
_COMPLETE_SCORE = 0.01  # predictions down to it have nearly all boxes, as in a validation
_TASK_REPLICATES = 10  # bootstrap replicates of one task
# Minimum items for each worker: with fewer, starting Ray takes longer than the work.
_PARTS_PER_WORKER = 16
_GROUPS_PER_WORKER = 2  # groups of images with heatmaps
_BOXES_FILE = "heatmap_boxes.parquet"
_CLEARED = (_BOXES_FILE, *plots.FILES)
_UNMATCHED = pa.schema([("image_id", pa.string()), ("side", pa.string()), ("reason", pa.string())])

_REASONS = {  # count of images → why they are not compared
    "no_truth": "without ground truth",
    "no_prediction": "without prediction",
    "other_splits": "of other splits",
    "heatmaps_left_out": "without heatmaps to measure",
    **{f"{task}_unlabelled": f"without true {column}" for column, task in CLASS_COLUMNS.items()},
}


@dataclass
class EvaluationSummary:
    """Summary of an evaluation."""

    sink: str
    fingerprint: str
    joined_by: str  # key of the join
    images: dict[str, int]  # counts of images
    num_chunks_left: int  # pending chunks of the prediction
    figures: list[dict[str, Any]] = field(default_factory=list)  # metrics over all classes
    seconds: float = 0.0
    is_new: bool = True  # False: the evaluation was complete before

    def as_json(self) -> dict[str, Any]:
        """Return the summary as JSON-ready values."""
        return asdict(self)

    @property
    def left_out_text(self) -> str:
        """Return which images were not compared, and why, as the end of a sentence; or ""."""
        reasons = [
            f"{count:,} {text}" for key, text in _REASONS.items() if (count := self.images.get(key))
        ]
        text = f"; not compared: {', '.join(reasons)}" if reasons else ""
        if self.num_chunks_left:
            text += (
                f"; {self.num_chunks_left:,} chunks are not predicted yet: run `cvbatch predict` "
                "again, then this command with --overwrite"
            )
        return text

    def rows(self) -> list[tuple[str, ...]]:
        """Return the metrics as table cells: task, metric, value, 95 % interval, count."""
        return [
            (
                row["task"],
                row["metric"],
                "undefined" if row["value"] is None else f"{row['value']:.4f}",
                "" if row["low"] is None else f"{row['low']:.4f} to {row['high']:.4f}",
                f"{row['count']:,}",
            )
            for row in self.figures
        ]


class _Heatmaps(NamedTuple):
    """Validated heatmaps, and the sample of images to evaluate."""

    source: HeatmapSource
    class_of: dict[str, np.ndarray]
    groups: list[ImageGroup]
    program: BuiltProgram


def evaluate(job: EvaluateJob, listener: Listener, *, overwrite: bool = False) -> EvaluationSummary:
    """Run a job. A complete evaluation of the same inputs is not repeated.

    Args:
        listener: receives the progress.
        overwrite: replace another evaluation in the sink.

    Raises:
        RefusedError: nothing was written.
        CvbatchError: the job was interrupted; the same call starts it again.
    """
    require_matplotlib()
    storage = Storage(job.run.retry_policy)
    with Sink(storage, store.absolute(job.sink.uri), "evaluate", listener.info) as sink:
        return _evaluate(job, sink, listener, overwrite=overwrite)


def _evaluate(
    job: EvaluateJob, sink: Sink, listener: Listener, *, overwrite: bool
) -> EvaluationSummary:
    started = time.perf_counter()
    listener.phase("reading predictions and labels" if job.truth else "reading predictions")
    result = Result(sink.storage, job.predictions.uri, needs_rows=True)
    truth = None
    if job.truth:
        truth = load_ground_truth(sink.storage, job.truth.uri, job.truth.splits)
    spec = make_evaluation_spec(job.evaluation, result, truth)
    job_fingerprint = fingerprint(job, [result.identity, truth.identity if truth else ""])
    state = sink.open(job_fingerprint, overwrite=overwrite)
    if state and state.get("summary"):
        return EvaluationSummary(**{**state["summary"], "is_new": False})
    joined = join(result, truth, job.evaluation.join) if truth else predictions_only(result)
    heatmaps = _load_heatmaps(job, result, truth, joined, listener)
    _report_differences(result, spec, joined, listener)
    scores, replicates, heatmap_scores = _score(job, sink, spec, joined, heatmaps, listener)
    metrics = columns.metric_rows(spec, scores, replicates)
    metrics += heatmap_metrics.heatmap_metric_rows(heatmap_scores.scores, spec)
    summary = EvaluationSummary(
        sink.uri,
        job_fingerprint,
        joined.key,
        _count_images(scores, joined, heatmap_scores if heatmaps else None),
        result.num_chunks_left,
        [asdict(row) for row in metrics if row.class_name is None],
    )
    header = _state(job, result, truth, summary)
    sink.clear(*_CLEARED)
    sink.write_state({**header, "is_complete": False})
    for name, data in _files(spec, scores, heatmap_scores, metrics, joined, header):
        sink.put(name, data)
    summary.seconds = time.perf_counter() - started
    sink.write_state({**header, "is_complete": True, "summary": summary.as_json()})
    sink.remove_leftovers()
    return summary


def _load_heatmaps(
    job: EvaluateJob,
    result: Result,
    truth: GroundTruth | None,
    joined: JoinResult,
    listener: Listener,
) -> _Heatmaps | None:
    """Return the heatmaps to evaluate; None if the job does not evaluate heatmaps."""
    config = job.evaluation
    if config.heatmaps is None:
        return None
    source = load_heatmap_source(result)
    class_of = match_heatmap_classes(config, result, truth)
    groups = sample_images(source, joined.parts, config.heatmaps, config.seed)
    return _Heatmaps(source, class_of, groups, load_or_build_program(source, listener.info))


def _score(
    job: EvaluateJob,
    sink: Sink,
    spec: EvaluationSpec,
    joined: JoinResult,
    heatmaps: _Heatmaps | None,
    listener: Listener,
) -> tuple[Scores, Replicates, HeatmapScores]:
    """Return the scores of all images, bootstrap replicates, and the scores of heatmaps."""
    parts = joined.parts if joined.key else []
    with ExitStack() as stack:
        resources = stack.enter_context(connect_ray()) if joins_a_cluster() else local_resources()
        num_workers = _choose_workers(job, resources, len(parts), _PARTS_PER_WORKER)
        workers = ParallelMap(num_workers, listener)
        heatmap_workers = _heatmap_workers(job, resources, heatmaps, listener)
        if workers.needs_ray or heatmap_workers.needs_ray:
            stack.enter_context(connect_ray())
        sink.acquire()
        num_images = sum(len(part.part_row) for part in parts)
        listener.phase("comparing predictions with labels", num_images, "images")
        part_scores = workers.run(stateless(columns.score_part), spec, parts, _num_scored)
        scores = merge_scores(sink.guarded(part_scores))
        replicates = _bootstrap(sink, spec, scores, workers)
        if heatmaps is None:
            return scores, replicates, HeatmapScores()
        heatmap_scores = evaluate_heatmaps(
            heatmaps.source,
            heatmaps.program,
            heatmaps.groups,
            heatmaps.class_of,
            job.evaluation,
            heatmap_workers,
        )
        return scores, replicates, heatmap_scores


def _num_scored(scores: Scores) -> int:
    return scores.counts["images"]


def _bootstrap(
    sink: Sink, spec: EvaluationSpec, scores: Scores, workers: ParallelMap
) -> Replicates:
    """Return bootstrap replicates of average precision; {} without boxes."""
    replicates: Replicates = {}
    data = boxes.bootstrap_input(spec, scores)
    if data is not None:
        numbers = range(1, spec.num_replicates + 1)
        ranges = [
            numbers[i : i + _TASK_REPLICATES] for i in range(0, len(numbers), _TASK_REPLICATES)
        ]
        workers.listener.phase("computing confidence intervals", len(numbers), "replicates")
        call = stateless(boxes.bootstrap_average_precision)
        for some in sink.guarded(workers.run(call, data, ranges, len)):
            replicates |= some
    return replicates


def _heatmap_workers(
    job: EvaluateJob, resources: Resources, heatmaps: _Heatmaps | None, listener: Listener
) -> ParallelMap:
    """Return the workers that evaluate heatmaps; with a GPU each if the engine is TensorFlow."""
    if heatmaps is None:
        return ParallelMap(1, listener)
    num_workers = _choose_workers(job, resources, len(heatmaps.groups), _GROUPS_PER_WORKER)
    if heatmaps.program.engine != "tensorflow" or resources.num_gpus < 1:
        return ParallelMap(num_workers, listener)
    num_workers = min(num_workers, int(resources.num_gpus))
    return ParallelMap(num_workers, listener, gpus=1.0)


def _count_images(
    scores: Scores, joined: JoinResult, heatmap_scores: HeatmapScores | None
) -> dict[str, int]:
    """Return counts of images; heatmap_scores: None if heatmaps are not evaluated."""
    counts = dict(sorted(scores.counts.items()))
    unmatched = {"no_truth": len(joined.no_truth), "no_prediction": len(joined.no_prediction)}
    counts |= {**unmatched, "other_splits": joined.num_other_splits}
    if heatmap_scores is None:
        return counts
    num_images = len({score.image_id for score in heatmap_scores.scores})
    with_heatmaps = {
        "heatmaps_judged": num_images,
        "heatmaps_left_out": len(heatmap_scores.excluded),
    }
    return {"images": num_images, **counts, **with_heatmaps}


def _files(
    spec: EvaluationSpec,
    scores: Scores,
    heatmap_scores: HeatmapScores,
    metrics: Sequence[MetricRow],
    joined: JoinResult,
    header: dict[str, Any],
) -> Iterator[tuple[str, bytes | pa.Buffer]]:
    """Yield name and contents of the files of an evaluation."""
    yield "metrics.parquet", metrics_table.to_parquet(metrics)
    yield "unmatched.parquet", _unmatched(joined, scores, heatmap_scores)
    yield from columns.plot_files(spec, scores, metrics).items()
    details = columns.metric_details(spec, scores)
    if heatmap_scores.scores:
        yield _BOXES_FILE, heatmap_metrics.boxes_to_parquet(heatmap_scores.scores)
        mean_curves = heatmap_metrics.mean_curves(heatmap_scores.scores)
        figure = draw_faithfulness(mean_curves, "Faithfulness of heatmaps")
        yield from to_files("insertion_deletion", figure).items()
        details["heatmap"] = heatmap_metrics.heatmap_details(heatmap_scores)
    keys = ("schema_version", "images", "joined_by", "evaluation")
    yield (
        "metrics.json",
        metrics_table.to_json(metrics, {key: header[key] for key in keys}, details),
    )


def _choose_workers(
    job: EvaluateJob, resources: Resources, num_items: int, items_per_worker: int
) -> int:
    """Return the number of workers; 1 needs no Ray unless a cluster was joined."""
    max_workers = resources.max_workers(job.run.workers)
    wanted = job.run.workers or min(max_workers, num_items // items_per_worker)
    return max(1, min(wanted, num_items))


def _report_differences(
    result: Result, spec: EvaluationSpec, joined: JoinResult, listener: Listener
) -> None:
    """Report images and classes that are not evaluated."""
    if result.num_chunks_left:
        listener.info(
            f"the prediction is not finished: {result.num_chunks_left:,} of its chunks are not "
            "done, their images count as not predicted"
        )
    for column, names in unmatched_classes(spec).items():
        if names:
            listener.info(
                f"{CLASS_COLUMNS[column]}: no predicted class matches "
                f"{_named(names, len(names))}; these count as missed"
            )
    model = result.models["boxes"] if "boxes" in spec.classes else {}
    threshold = model.get("options", {}).get("score_threshold", 0)
    if threshold > _COMPLETE_SCORE:
        listener.info(
            f"detection: the predictions have no boxes below their score_threshold, {threshold:g}, "
            "which lowers average precision; predict with score_threshold: "
            f"{_COMPLETE_SCORE:g} to compare it with that of a training"
        )
    for ids, lacks in ((joined.no_truth, "no truth"), (joined.no_prediction, "no prediction")):
        if len(ids):
            first = _named(ids.slice(0, _MAX_NAMED).to_pylist(), len(ids))
            listener.info(f"{len(ids):,} images have {lacks} and are left out: {first}")
    if joined.num_other_splits:
        listener.info(f"{joined.num_other_splits:,} images are in other splits and are left out")
    if joined.key:
        listener.info(
            f"{joined.num_images:,} images are predicted and labelled, joined by {joined.key}"
        )


def _named(names: Sequence[str], count: int) -> str:
    first = ", ".join(names[:_MAX_NAMED])
    return first + (f" and {count - _MAX_NAMED:,} more" if count > _MAX_NAMED else "")


def _state(
    job: EvaluateJob, result: Result, truth: GroundTruth | None, summary: EvaluationSummary
) -> dict[str, Any]:
    return {
        "schema_version": EVALUATION_VERSION,
        "fingerprint": summary.fingerprint,
        "predictions": {"uri": result.uri, "identity": result.identity},
        "truth": job.truth and truth and {"uri": job.truth.uri, "identity": truth.identity},
        "joined_by": summary.joined_by,
        "images": summary.images,
        "evaluation": job.evaluation.model_dump(mode="json"),
        "job": job.model_dump(mode="json"),
    }


def _unmatched(joined: JoinResult, scores: Scores, heatmap_scores: HeatmapScores) -> pa.Buffer:
    """Return the images without labels, predictions or evaluated heatmaps, as a Parquet file.

    For images whose heatmaps cannot be evaluated, the side is "originals".
    """
    excluded = heatmap_scores.excluded
    kinds = [failure.kind for failure in excluded.values()]
    groups = [
        (joined.no_truth, "predictions", ["no_truth"] * len(joined.no_truth)),
        (joined.no_prediction, "truth", ["no_prediction"] * len(joined.no_prediction)),
        (pa.array(scores.failed, pa.string()), "predictions", ["failed"] * len(scores.failed)),
        (pa.array(excluded, pa.string()), "originals", kinds),
    ]
    ids = pa.chunked_array([group_ids.cast(pa.string()) for group_ids, _, _ in groups])
    sides = [side for group_ids, side, _ in groups for _ in range(len(group_ids))]
    reasons = [reason for _, _, group_reasons in groups for reason in group_reasons]
    buffer = pa.BufferOutputStream()
    table = pa.table([ids, sides, reasons], schema=_UNMATCHED)
    pq.write_table(table, buffer, store_schema=False)
    return buffer.getvalue()
