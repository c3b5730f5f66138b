"""Run an evaluation job: check it, join predictions and truth, score the parts, write metrics.

Nothing is written before both sides are checked. The sink's `_cvbatch/evaluation.json` says what
is compared and whether that is complete.
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
from cvbatch.core.errors import ConfigError
from cvbatch.core.progress import Listener
from cvbatch.core.tasks import CLASS_COLUMNS
from cvbatch.distributed.parallel_map import ParallelMap, stateless
from cvbatch.distributed.resources import Resources, local_resources
from cvbatch.distributed.session import connected, joins_a_cluster
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
from cvbatch.evaluate.join import GroundTruth, JoinResult, join, load_ground_truth, predictions_only
from cvbatch.evaluate.scoring import EvaluationSpec, Scores, merge_scores
from cvbatch.inference.programs import BuiltProgram
from cvbatch.results.result import Result
from cvbatch.storage import store
from cvbatch.storage.sink import Sink

_SHOWN = 3  # ids named on the terminal
_REPLICATES = 10  # drawn by one task
# Items that are worth a worker: with fewer for each, starting Ray takes longer than the work.
_PARTS_A_WORKER = 16
_SHARES_A_WORKER = 2  # of images with heatmaps
_BOXES = "heatmap_boxes.parquet"
_CLEARED = (_BOXES, "precision_recall_*.png", "confusion_*.png", plots.CURVES_FILE)
_UNMATCHED = pa.schema([("image_id", pa.string()), ("side", pa.string()), ("reason", pa.string())])


@dataclass
class EvaluationSummary:
    """What an evaluation came to."""

    sink: str
    fingerprint: str
    joined_by: str
    images: dict[str, int]
    num_chunks_left: int  # of the prediction, when it was compared
    figures: list[dict[str, Any]] = field(default_factory=list)  # those over all classes
    seconds: float = 0.0
    is_new: bool = True  # False: it was done before

    def as_json(self) -> dict[str, Any]:
        """Return the summary as JSON-ready values."""
        return asdict(self)

    def rows(self) -> list[tuple[str, ...]]:
        """Return the figures as cells: task, metric, value, 95 % interval, count."""
        return [
            (
                one["task"],
                one["metric"],
                _cell(one["value"]),
                "" if one["low"] is None else f"{one['low']:.4f} to {one['high']:.4f}",
                f"{one['count']:,}",
            )
            for one in self.figures
        ]


def _cell(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


class _Heatmaps(NamedTuple):
    """Heatmaps that were found to be in order, and which of them are judged."""

    subject: HeatmapSource
    class_of: dict[str, np.ndarray]
    shares: list[ImageGroup]
    program: BuiltProgram


def evaluate(job: EvaluateJob, listener: Listener, *, overwrite: bool = False) -> EvaluationSummary:
    """Run the job; return what came of it.

    Raises:
        RefusedError: nothing was written.
        CvbatchError: stopped midway; the same call begins again.
    """
    store.set_retry_policy(job.run.retry_policy)
    with Sink(store.absolute(job.sink.uri), "evaluate", listener.say) as sink:
        return _evaluate(job, sink, listener, overwrite=overwrite)


def _evaluate(
    job: EvaluateJob, sink: Sink, listener: Listener, *, overwrite: bool
) -> EvaluationSummary:
    started = time.perf_counter()
    result = Result(job.predictions.uri, needs_rows=True)
    truth = load_ground_truth(job.truth.uri, job.truth.splits) if job.truth else None
    order = make_evaluation_spec(job.evaluation, result, truth)
    identity = fingerprint(job, [result.identity, truth.identity if truth else ""])
    done = sink.open(identity, overwrite=overwrite)
    if done and done.get("summary"):
        return EvaluationSummary(**{**done["summary"], "is_new": False})
    joined = join(result, truth, job.evaluation.join) if truth else predictions_only(result)
    heatmaps = _find_heatmaps(job, result, truth, joined)
    _warn(result, order, joined, listener)
    scored, replicates, judgement = _work(job, sink, order, joined, heatmaps, listener)
    figures = columns.metric_rows(order, scored, replicates)
    figures += heatmap_metrics.heatmap_metric_rows(judgement.scores, order)
    summary = EvaluationSummary(
        sink.uri,
        identity,
        joined.kind,
        _count_images(scored, joined, judgement if heatmaps else None),
        result.num_chunks_left,
        [asdict(figure) for figure in figures if figure.class_name is None],
    )
    about = _about(job, result, truth, summary)
    sink.clear(*_CLEARED)
    sink.write_state({**about, "is_complete": False})
    for name, data in _files(order, scored, judgement, figures, joined, about):
        sink.put(name, data)
    summary.seconds = time.perf_counter() - started
    sink.write_state({**about, "is_complete": True, "summary": summary.as_json()})
    sink.remove_leftovers()
    return summary


def _find_heatmaps(
    job: EvaluateJob, result: Result, truth: GroundTruth | None, joined: JoinResult
) -> _Heatmaps | None:
    """Return the heatmaps that are asked for; None: none are."""
    said = job.evaluation
    if said.heatmaps is None:
        return None
    subject = load_heatmap_source(result)
    class_of = match_heatmap_classes(said, result, truth)
    shares = sample_images(subject, joined.parts, said.heatmaps, said.seed)
    return _Heatmaps(subject, class_of, shares, load_or_build_program(subject))


def _work(
    job: EvaluateJob,
    sink: Sink,
    order: EvaluationSpec,
    joined: JoinResult,
    heatmaps: _Heatmaps | None,
    listener: Listener,
) -> tuple[Scores, metrics_table.Replicates, HeatmapScores]:
    """Return all scores, the replicates that are still to be formed, and what heatmaps came to."""
    pieces = joined.parts if joined.kind else []
    with ExitStack() as stack:
        resources = stack.enter_context(connected()) if joins_a_cluster() else local_resources()
        workers = _choose_workers(job, resources, len(pieces), _PARTS_A_WORKER)
        work = ParallelMap(workers, job.run.retry_policy, listener)
        judging = _judging(job, resources, heatmaps, listener)
        if work.needs_ray or judging.needs_ray:
            stack.enter_context(connected())
        sink.acquire()
        parts_scored = work.run(stateless(columns.score_part), order, pieces, "parts scored")
        scored = merge_scores(sink.guarded(parts_scored))
        replicates: metrics_table.Replicates = {}
        asked = boxes.bootstrap_input(order, scored)
        if asked is not None:
            numbers = range(1, order.num_replicates + 1)
            shares = [numbers[i : i + _REPLICATES] for i in range(0, len(numbers), _REPLICATES)]
            what = "shares of replicates drawn"
            draws = work.run(stateless(boxes.bootstrap_average_precision), asked, shares, what)
            for some in sink.guarded(draws):
                replicates |= some
        if heatmaps is None:
            return scored, replicates, HeatmapScores()
        subject, class_of, chosen, program = heatmaps
        judged = evaluate_heatmaps(subject, program, chosen, class_of, job.evaluation, judging)
        return scored, replicates, judged


def _judging(
    job: EvaluateJob, resources: Resources, heatmaps: _Heatmaps | None, listener: Listener
) -> ParallelMap:
    """Return who judges heatmaps: on a cluster's GPUs where the network runs in TensorFlow."""
    if heatmaps is None:
        return ParallelMap(1, job.run.retry_policy, listener)
    workers = _choose_workers(job, resources, len(heatmaps.shares), _SHARES_A_WORKER)
    if heatmaps.program.engine != "tensorflow" or resources.num_gpus < 1:
        return ParallelMap(workers, job.run.retry_policy, listener)
    return ParallelMap(
        min(workers, int(resources.num_gpus)), job.run.retry_policy, listener, gpus=1.0
    )


def _count_images(
    scored: Scores, joined: JoinResult, judgement: HeatmapScores | None
) -> dict[str, int]:
    """Return how many images are what; those with heatmaps where these were asked for."""
    counts = dict(sorted(scored.counts.items()))
    one_sided = {"no_truth": len(joined.no_truth), "no_prediction": len(joined.no_prediction)}
    counts |= {**one_sided, "other_splits": joined.num_other_splits}
    if judgement is None:
        return counts
    num_judged = len({one.image_id for one in judgement.scores})
    with_heatmaps = {"heatmaps_judged": num_judged, "heatmaps_left_out": len(judgement.excluded)}
    return {"images": num_judged, **counts, **with_heatmaps}


def _files(
    order: EvaluationSpec,
    scored: Scores,
    judgement: HeatmapScores,
    figures: Sequence[metrics_table.MetricRow],
    joined: JoinResult,
    about: dict[str, Any],
) -> Iterator[tuple[str, bytes | pa.Buffer]]:
    """Yield what an evaluation leaves, by name."""
    yield "metrics.parquet", metrics_table.to_parquet(figures)
    yield "unmatched.parquet", _unmatched(joined, scored, judgement)
    yield from columns.plot_files(order, scored).items()
    details = columns.metric_details(order, scored)
    if judgement.scores:
        yield _BOXES, heatmap_metrics.boxes_to_parquet(judgement.scores)
        yield (
            plots.CURVES_FILE,
            plots.draw_faithfulness_curves(heatmap_metrics.mean_curves(judgement.scores)),
        )
        details["heatmap"] = heatmap_metrics.heatmap_details(judgement)
    told = {key: about[key] for key in ("schema_version", "images", "joined_by", "evaluation")}
    yield "metrics.json", metrics_table.to_json(figures, told, details)


def _choose_workers(
    job: EvaluateJob, resources: Resources, num_items: int, worth_a_worker: int
) -> int:
    """Return how many work at once; one alone that joins no cluster needs no Ray."""
    room = max(1, int(resources.num_cpus))
    if job.run.workers is not None and job.run.workers > room:
        raise ConfigError(
            f"run.workers: {job.run.workers} do not fit a cluster of {resources.num_cpus:g} CPU; "
            f"{room} would"
        )
    wanted = job.run.workers or min(room, num_items // worth_a_worker)
    return max(1, min(wanted, num_items))


def _warn(result: Result, order: EvaluationSpec, joined: JoinResult, listener: Listener) -> None:
    """Say what is not compared."""
    if result.num_chunks_left:
        listener.say(
            f"the prediction is not finished: {result.num_chunks_left:,} of its chunks are not "
            "done, their images count as not predicted"
        )
    for column, names in unmatched_classes(order).items():
        if names:
            listener.say(
                f"{CLASS_COLUMNS[column]}: no predicted class stands for "
                f"{_named(names, len(names))}; all of it counts as missed"
            )
    for ids, lacks in ((joined.no_truth, "no truth"), (joined.no_prediction, "no prediction")):
        if len(ids):
            shown = _named(ids.slice(0, _SHOWN).to_pylist(), len(ids))
            listener.say(f"{len(ids):,} images have {lacks} and are left out: {shown}")
    if joined.num_other_splits:
        listener.say(f"{joined.num_other_splits:,} images are of other splits and are left out")
    if joined.kind:
        listener.say(f"{joined.num_images:,} images are on both sides, joined by {joined.kind}")


def _named(names: Sequence[str], count: int) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown + (f" and {count - _SHOWN:,} more" if count > _SHOWN else "")


def _about(
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


def _unmatched(joined: JoinResult, scored: Scores, judgement: HeatmapScores) -> pa.Buffer:
    """Return every image that is on one side only, or has no answer, as a Parquet file.

    Of those whose heatmaps could not be judged the side is that of the originals.
    """
    left_out = judgement.excluded
    kinds = [
        (joined.no_truth, "predictions", ["no_truth"] * len(joined.no_truth)),
        (joined.no_prediction, "truth", ["no_prediction"] * len(joined.no_prediction)),
        (pa.array(scored.failed, pa.string()), "predictions", ["failed"] * len(scored.failed)),
        (pa.array(left_out, pa.string()), "originals", [why.kind for why in left_out.values()]),
    ]
    ids = pa.chunked_array([one.cast(pa.string()) for one, _, _ in kinds])
    sides = [side for one, side, _ in kinds for _ in range(len(one))]
    reasons = [reason for _, _, said in kinds for reason in said]
    buffer = pa.BufferOutputStream()
    table = pa.table([ids, sides, reasons], schema=_UNMATCHED)
    pq.write_table(table, buffer, store_schema=False)
    return buffer.getvalue()
