"""The conductor of a prediction job: the same plain callables, wired in two ways.

*Fused*: a chunk stays in one Ray actor from read to write. Best where the models run on CPUs: they
are the bottleneck and nothing is carried between processes.

*Streaming*, by Ray Data: chunks are read and decoded by CPU tasks, predicted by actors that hold
the models, encoded and written by CPU tasks. Best where there are GPUs: CPU nodes feed them. A
chunk is one block all the way, so its file is written by one task, and no pixel goes further than
the models.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from cvbatch.core.errors import CvbatchError
from cvbatch.core.types import ChunkRef, ChunkReport
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

if TYPE_CHECKING:
    import ray.data


def start_actors(wiring: Allocation) -> ActorPool | None:
    """Start the fused wiring's actors, empty: they come up while the models still build.

    Ray Data starts those of the streaming wiring itself.
    """
    return ActorPool(wiring) if wiring.arrangement == "fused" else None


def run_chunks(
    order: PredictSpec,
    refs: Sequence[ChunkRef],
    wiring: Allocation,
    crew: ActorPool | None,
    meters: RunMetrics,
) -> Generator[ChunkReport, None, None]:
    """Do the chunks on the connected cluster; yield each one's report as its file is written.

    crew: from `start_actors`. meters: hear of chunks that are written, and of those under way.

    Raises:
        CvbatchError: what stopped a worker, as it was raised there.
    """
    if not refs:
        return
    wired = crew.run(refs, order) if crew else _streaming(refs, order, wiring, meters)
    try:
        with closing(wired) as reports:
            for report in reports:
                meters.written(report)
                if crew:
                    meters.waiting("fused", crew.num_working)
                yield report
    except ray.exceptions.RayError as error:
        raise _told(error) from None


def _streaming(
    refs: Sequence[ChunkRef], order: PredictSpec, wiring: Allocation, meters: RunMetrics
) -> Generator[ChunkReport, None, None]:
    """Let Ray Data stream the chunks through decoding, models and writing."""
    attempts = start_attempts()  # lives as long as this generator holds it
    tables = _dataset(refs, order, wiring, attempts).iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=0
    )
    for table in tables:
        for stage, num_chunks in ray.get(attempts.depths.remote()).items():
            meters.waiting(stage, num_chunks)
        for row in table.to_pylist():
            maps = {name: dict(row[name]) for name in ("failures", "examples", "seconds")}
            yield ChunkReport(**{**row, **maps})


def _dataset(
    refs: Sequence[ChunkRef], order: PredictSpec, wiring: Allocation, attempts: Any
) -> ray.data.Dataset:
    import ray.data  # takes seconds, and only this wiring needs it

    context = ray.data.DataContext.get_current()
    context.target_max_block_size = None  # a chunk is one block, never split
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # listener and errors tell it all
    chunks = ray.data.from_items([asdict(ref) for ref in refs], override_num_blocks=len(refs))
    decoded = chunks.map_batches(
        _decode,
        fn_args=(order, attempts),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=1,
    )
    predicted = decoded.map_batches(
        _PredictActor,
        fn_constructor_args=(order, attempts, wiring.num_actors + MAX_DEATHS),
        batch_size=1,  # a row is a batch of images; Ray wants a number where there are GPUs
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=wiring.num_actors),
        num_cpus=wiring.cpus_per_actor,
        num_gpus=wiring.gpus_per_actor,
    )
    return predicted.map_batches(
        _write,
        fn_args=(order, attempts),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=0.5,
    )


_COUNT = "chunk_images"  # rides along, so that no writer takes a part for the whole
_EFFORT = "effort"  # of each row, as JSON


class _PredictActor:
    def __init__(self, order: PredictSpec, attempts: Any, max_starts: int) -> None:
        self._attempts = attempts
        self._has_worked = False
        self._starts = ray.get(attempts.begin.remote(MODELS))
        self._is_refused = self._starts >= max_starts  # told when called: Ray garbles it here
        if not self._is_refused:
            self._predictor = steps.load_predictor(order)

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._is_refused:
            raise CvbatchError(
                f"the models took their workers down {self._starts} times in a row: look whether "
                "they fit the memory of a worker and at Ray's logs, then run again"
            )
        effort = StageTimer.of(table[_EFFORT].to_pylist())
        batches = table_to_image_batches(table)
        said = predictions_to_table(list(effort.along("predict", map(self._predictor, batches))))
        if not self._has_worked:
            self._has_worked = True
            self._attempts.end.remote(MODELS)
        return _with_effort(said.append_column(_COUNT, table[_COUNT]), effort)


def _decode(table: pa.Table, order: PredictSpec, attempts: Any) -> pa.Table:
    (ref,) = _refs(table)
    deaths = ray.get(attempts.begin.remote(DECODE, ref.chunk_id))
    if deaths:  # in the actor, where Ray has put decoding there: the models were not to blame
        attempts.end.remote(MODELS)
    if deaths >= MAX_DEATHS:
        raise crashing_chunk_error(ref, "its decoding was begun as often and never ended")
    is_careful = deaths >= ISOLATE_AFTER
    effort = StageTimer()
    reader = _reader(order.source_format, order.job.source.image_column)
    batches = image_batches_to_table(
        list(steps.read_and_decode(order, reader, ref, effort, is_careful=is_careful))
    )
    ray.get(attempts.end.remote(DECODE, ref.chunk_id))
    counts = pa.array([ref.num_images] * len(batches), pa.int64())
    return _with_effort(batches.append_column(_COUNT, counts), effort)


@lru_cache(maxsize=1)  # tasks are plain calls: only their process lasts from chunk to chunk
def _reader(source_format: str, image_column: str) -> ChunkReader:
    return ChunkReader(source_format, image_column)


def _with_effort(table: pa.Table, effort: StageTimer) -> pa.Table:
    """Return the table with what all of it took in the first row, and nothing in the others."""
    said = [effort.as_json(), *[StageTimer().as_json()] * (len(table) - 1)][: len(table)]
    return table.append_column(_EFFORT, pa.array(said, pa.string()))


def _write(table: pa.Table, order: PredictSpec, attempts: Any) -> pa.Table:
    (num_images,) = set(table[_COUNT].to_pylist())
    predictions = table_to_predictions(table)
    (chunk_id,) = {said.chunk_id for said in predictions}
    if sum(map(len, predictions)) != num_images:
        raise CvbatchError(
            f"chunk {chunk_id} came to its writer with {sum(map(len, predictions))} of "
            f"{num_images} images: Ray split its block; use run.arrangement: fused, and report it"
        )
    if (deaths := ray.get(attempts.begin.remote(WRITE, chunk_id))) >= MAX_DEATHS:
        raise CvbatchError(
            f"writing the file of chunk {chunk_id} took its worker down {deaths} times; look at "
            "Ray's logs and for memory to spare, then run again"
        )
    report = steps.write(order, chunk_id, predictions, StageTimer.of(table[_EFFORT].to_pylist()))
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
    ]
)


def _report_table(reports: Sequence[ChunkReport]) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {
            **asdict(report),
            "failures": list(report.failures.items()),
            "examples": list(report.examples.items()),
            "seconds": list(report.seconds.items()),
        }
        for report in reports
    ]
    return pa.Table.from_pylist(rows, schema=_REPORT)


def _told(error: ray.exceptions.RayError) -> CvbatchError:
    """Return what stopped a worker: our own error as it was raised there, or the first cause."""
    causes: list[BaseException] = [error]
    while (inner := getattr(causes[-1], "cause", None) or causes[-1].__cause__) is not None:
        causes.append(inner)
    # Ray appends advice of its own to messages: the first line is the one that was raised.
    lines = {cause: (str(cause).strip().splitlines() or [""])[0][:500] for cause in causes}
    for cause, line in lines.items():
        if isinstance(cause, CvbatchError) and not isinstance(cause, ray.exceptions.RayError):
            return type(cause)(line)
    return CvbatchError(f"a worker stopped: {type(causes[-1]).__name__}: {lines[causes[-1]]}")
