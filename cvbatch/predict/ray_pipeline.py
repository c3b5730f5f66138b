"""Run the steps of a prediction on Ray, in fused or streaming mode.

*Fused*: one Ray actor reads, decodes, predicts and writes a chunk. Best if the models run on CPUs:
they are the bottleneck, and no data moves between processes.

*Streaming*, with Ray Data: CPU tasks read and decode chunks, actors with the models predict, CPU
tasks encode and write. Best if there are GPUs: CPU nodes prepare their batches. A chunk stays one
block, so one task writes its file, and pixels are not sent further than the models.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from cvbatch.core.errors import CvbatchError
from cvbatch.core.types import ChunkRef, ChunkReport, Log, SourceOptions
from cvbatch.distributed.resources import Allocation
from cvbatch.predict import steps
from cvbatch.predict.ray_actor_pool import (
    ISOLATE_AFTER,
    MAX_DEATHS,
    ActorPool,
    crashing_chunk_error,
)
from cvbatch.predict.ray_attempts import DECODE, MODELS, WRITE, start_attempts
from cvbatch.predict.ray_metrics import RunMetrics
from cvbatch.predict.serialization import (
    image_batches_to_table,
    predictions_to_table,
    table_to_image_batches,
    table_to_predictions,
)
from cvbatch.predict.stage_timer import StageTimer
from cvbatch.predict.steps import PredictSpec
from cvbatch.sources.readers import ChunkReader
from cvbatch.storage.store import Storage

if TYPE_CHECKING:
    import ray.data


def start_actors(allocation: Allocation, report: Log) -> ActorPool | None:
    """Start the actors of fused mode, without models; None in streaming mode.

    They start while the models are compiled. Ray Data starts the actors of streaming mode.

    Args:
        allocation: number and resources of actors.
        report: receives a line about each actor that dies.
    """
    return ActorPool(allocation, report) if allocation.arrangement == "fused" else None


def run_chunks(
    spec: PredictSpec,
    refs: Sequence[ChunkRef],
    allocation: Allocation,
    pool: ActorPool | None,
    metrics: RunMetrics,
) -> Generator[ChunkReport, None, None]:
    """Process the chunks on the connected cluster; yield the report of each written chunk.

    Args:
        spec: for the workers.
        refs: the chunks.
        allocation: number and resources of actors.
        pool: of `start_actors`.
        metrics: receive the reports and the queue depths.

    Raises:
        CvbatchError: the error that stopped a worker.
    """
    if not refs:
        return
    running = pool.run(refs, spec) if pool else _streaming(refs, spec, allocation, metrics)
    try:
        with closing(running) as reports:
            for report in reports:
                metrics.add_chunk(report)
                if pool:
                    metrics.set_queue_depth("fused", pool.num_working)
                yield report
    except ray.exceptions.RayError as error:
        raise _original_error(error) from None


def _streaming(
    refs: Sequence[ChunkRef], spec: PredictSpec, allocation: Allocation, metrics: RunMetrics
) -> Generator[ChunkReport, None, None]:
    """Process the chunks with Ray Data."""
    attempts = start_attempts()  # the handle keeps the actor alive
    tables = _dataset(refs, spec, allocation, attempts).iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=0
    )
    for table in tables:
        for stage, num_chunks in ray.get(attempts.depths.remote()).items():
            metrics.set_queue_depth(stage, num_chunks)
        for row in table.to_pylist():
            values: dict[str, Any] = {
                name: dict(value) if pa.types.is_map(_REPORT.field(name).type) else value
                for name, value in row.items()
            }
            yield ChunkReport(**values)


def _dataset(
    refs: Sequence[ChunkRef], spec: PredictSpec, allocation: Allocation, attempts: Any
) -> ray.data.Dataset:
    import ray.data  # takes seconds, and only this mode needs it

    context = ray.data.DataContext.get_current()
    context.target_max_block_size = None  # a chunk is one block, never split
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    # Listener and exceptions report progress and errors.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    chunks = ray.data.from_items([asdict(ref) for ref in refs], override_num_blocks=len(refs))
    decoded = chunks.map_batches(
        _decode,
        fn_args=(spec, attempts),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=1,
    )
    predicted = decoded.map_batches(
        _PredictActor,
        fn_constructor_args=(spec, attempts, allocation.num_actors + MAX_DEATHS),
        batch_size=1,  # a row is a batch of images; Ray requires a number if there are GPUs
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=allocation.num_actors),
        num_cpus=allocation.cpus_per_actor,
        num_gpus=allocation.gpus_per_actor,
    )
    return predicted.map_batches(
        _write,
        fn_args=(spec, attempts),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=0.5,
    )


_REF = "chunk"  # ChunkRef as JSON; the writer checks that its block is complete
_TIMER = "timer"  # StageTimer as JSON


class _PredictActor:
    def __init__(self, spec: PredictSpec, attempts: Any, max_starts: int) -> None:
        self._attempts = attempts
        self._has_worked = False
        self._num_starts = ray.get(attempts.begin.remote(MODELS))
        self._is_refused = self._num_starts >= max_starts  # Ray garbles an error raised here
        if not self._is_refused:
            self._predictor = steps.load_predictor(spec)

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._is_refused:
            raise CvbatchError(
                f"the models crashed their workers {self._num_starts} times in a row: check that "
                "they fit the memory of a worker, look at Ray's logs, then run again"
            )
        timer = StageTimer.from_json(table[_TIMER].to_pylist())
        batches = table_to_image_batches(table)
        predictions = list(timer.measure_items("predict", map(self._predictor, batches)))
        if not self._has_worked:
            self._has_worked = True
            self._attempts.end.remote(MODELS)
        predicted = predictions_to_table(predictions)
        return _with_timer(predicted.append_column(_REF, table[_REF]), timer)


def _decode(table: pa.Table, spec: PredictSpec, attempts: Any) -> pa.Table:
    (ref,) = _refs(table)
    num_deaths = ray.get(attempts.begin.remote(DECODE, ref.chunk_id))
    if num_deaths:  # Ray may run this task in an actor's process: then decoding crashed, no model
        attempts.end.remote(MODELS)
    if num_deaths >= MAX_DEATHS:
        raise crashing_chunk_error(
            spec.storage, ref, "its decoding started as often and never ended"
        )
    timer = StageTimer()
    source = spec.job.source
    reader = _reader(spec.storage, spec.source_format, source.image_column, source.options)
    is_isolated = num_deaths >= ISOLATE_AFTER
    batches = image_batches_to_table(
        list(steps.read_and_decode(spec, reader, ref, timer, is_isolated=is_isolated))
    )
    ray.get(attempts.end.remote(DECODE, ref.chunk_id))
    refs = pa.array([json.dumps(asdict(ref))] * len(batches), pa.string())
    return _with_timer(batches.append_column(_REF, refs), timer)


@lru_cache(maxsize=1)  # tasks are plain calls: only the process outlives a chunk
def _reader(
    storage: Storage, source_format: str, image_column: str, options: SourceOptions
) -> ChunkReader:
    return ChunkReader(storage, source_format, image_column, options=options)


def _with_timer(table: pa.Table, timer: StageTimer) -> pa.Table:
    """Return the table with the timer in the first row and empty timers in the others."""
    timers = [timer.as_json(), *[StageTimer().as_json()] * (len(table) - 1)][: len(table)]
    return table.append_column(_TIMER, pa.array(timers, pa.string()))


def _write(table: pa.Table, spec: PredictSpec, attempts: Any) -> pa.Table:
    (text,) = set(table[_REF].to_pylist())
    ref = ChunkRef(**json.loads(text))
    predictions = table_to_predictions(table)
    (chunk_id,) = {batch.chunk_id for batch in predictions}
    num_predicted = sum(map(len, predictions))
    if num_predicted != ref.num_images:
        raise CvbatchError(
            f"chunk {chunk_id} reached its writer with {num_predicted} of {ref.num_images} images: "
            "Ray split its block; use run.arrangement: fused, and report it"
        )
    if (num_deaths := ray.get(attempts.begin.remote(WRITE, chunk_id))) >= MAX_DEATHS:
        raise CvbatchError(
            f"writing the file of chunk {chunk_id} crashed its worker {num_deaths} times; look at "
            "Ray's logs, give the workers more memory, then run again"
        )
    timer = StageTimer.from_json(table[_TIMER].to_pylist())
    report = steps.write(spec, ref, predictions, timer)
    ray.get(attempts.end.remote(WRITE, chunk_id))
    return _report_table([report])


def _refs(table: pa.Table) -> list[ChunkRef]:
    return [ChunkRef(**row) for row in table.to_pylist()]


_REPORT = pa.schema(
    [
        ("chunk_id", pa.string()),
        ("num_images", pa.int64()),
        ("failures", pa.map_(pa.string(), pa.int64())),
        ("num_bytes", pa.int64()),
        ("examples", pa.map_(pa.string(), pa.list_(pa.list_(pa.string())))),
        ("num_bytes_read", pa.int64()),
        ("seconds", pa.map_(pa.string(), pa.float64())),
        ("ignored", pa.map_(pa.string(), pa.int64())),
        ("ignored_examples", pa.map_(pa.string(), pa.list_(pa.string()))),
        ("num_heatmaps", pa.int64()),
        ("num_empty_heatmaps", pa.int64()),
    ]
)


def _report_table(reports: Sequence[ChunkReport]) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {
            name: list(value.items()) if isinstance(value, dict) else value
            for name, value in asdict(report).items()
        }
        for report in reports
    ]
    return pa.Table.from_pylist(rows, schema=_REPORT)


def _original_error(error: ray.exceptions.RayError) -> CvbatchError:
    """Return the error of a worker: our own as it was raised there, otherwise the first cause."""
    causes: list[BaseException] = [error]
    while (inner := getattr(causes[-1], "cause", None) or causes[-1].__cause__) is not None:
        causes.append(inner)
    # Ray appends advice to messages: the first line is the one that was raised.
    lines = {cause: (str(cause).strip().splitlines() or [""])[0][:500] for cause in causes}
    for cause, line in lines.items():
        if isinstance(cause, CvbatchError) and not isinstance(cause, ray.exceptions.RayError):
            return type(cause)(line)
    return CvbatchError(f"a worker stopped: {type(causes[-1]).__name__}: {lines[causes[-1]]}")
