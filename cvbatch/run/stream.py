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
import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.util import ActorPool

from cvbatch import worker
from cvbatch.config import RunConfig
from cvbatch.errors import ConfigError, CvbatchError
from cvbatch.run.cluster import Resources
from cvbatch.types import ChunkRef
from cvbatch.wire import (
    image_batches_to_table,
    predictions_to_table,
    table_to_image_batches,
    table_to_predictions,
)
from cvbatch.worker import PartReport, WorkOrder

if TYPE_CHECKING:
    import ray.data

_CHUNK_RETRIES = 3  # times that a chunk may take its worker down before the job stops


@dataclass(frozen=True)
class Wiring:
    """How the work lies on the cluster."""

    arrangement: str  # "fused" | "streaming"
    num_actors: int
    cpus_per_actor: float
    gpus_per_actor: float


def choose_wiring(
    run: RunConfig, source_format: str, resources: Resources, num_chunks: int
) -> Wiring:
    """Return the wiring for a job: streaming where there are GPUs, fused where not.

    A tar is one chunk of unknown length, too long to hold decoded: its job is always fused.

    Raises:
        ConfigError: the cluster lacks what the job asks for.
    """
    gpus = run.gpus_per_actor
    if gpus is None:
        gpus = 1.0 if resources.num_gpus >= 1 else resources.num_gpus
    arrangement = run.arrangement
    if arrangement == "auto":
        is_streaming = resources.num_gpus > 0 and source_format != "webdataset"
        arrangement = "streaming" if is_streaming else "fused"
    if arrangement == "streaming" and source_format == "webdataset":
        raise ConfigError("run.arrangement: streaming cannot take tars; say fused or auto")
    spare = 1.0 if arrangement == "streaming" else 0.0  # a CPU that reads and writes
    room = math.floor((resources.num_cpus - spare) / run.cpus_per_actor + 1e-9)
    if gpus > 0:
        room = min(room, math.floor(resources.num_gpus / gpus + 1e-9))
    wanted = run.actors or room
    if room < 1 or wanted > room:
        raise ConfigError(
            f"run.actors: {max(wanted, 1)} with {run.cpus_per_actor:g} CPU and {gpus:g} GPU each "
            f"({arrangement}) do not fit a cluster of {resources.num_cpus:g} CPU and "
            f"{resources.num_gpus:g} GPU; {max(room, 0)} would"
        )
    return Wiring(arrangement, max(1, min(wanted, num_chunks)), run.cpus_per_actor, gpus)


def run_chunks(order: WorkOrder, refs: Sequence[ChunkRef], wiring: Wiring) -> Iterator[PartReport]:
    """Do the chunks on the connected cluster; yield each one's report as its file is written.

    Raises:
        CvbatchError: what stopped a worker, as it was raised there.
    """
    if not refs:
        return
    try:
        with closing(_WIRINGS[wiring.arrangement](refs, order, wiring)) as reports:
            yield from reports
    except ray.exceptions.RayError as error:
        raise _told(error) from None


def _fused(
    refs: Sequence[ChunkRef], order: WorkOrder, wiring: Wiring
) -> Generator[PartReport, None, None]:
    """Hand chunk after chunk to a pool of actors.

    Plain actors, not Ray Data: where nothing flows between stages it would add only its start-up
    (every worker imports it) and actors of its own beside ours.
    """
    actor = ray.remote(worker.FusedWorker).options(
        num_cpus=wiring.cpus_per_actor,
        num_gpus=wiring.gpus_per_actor,
        max_restarts=-1,
        max_task_retries=_CHUNK_RETRIES,
    )
    actors = [actor.remote(order) for _ in range(wiring.num_actors)]
    try:
        yield from ActorPool(actors).map_unordered(_work, refs)
    finally:
        for one in actors:
            ray.kill(one)


def _work(actor: Any, ref: ChunkRef) -> Any:
    return actor.work.remote(ref)


def _streaming(
    refs: Sequence[ChunkRef], order: WorkOrder, wiring: Wiring
) -> Generator[PartReport, None, None]:
    """Let Ray Data stream the chunks through decoding, models and writing."""
    tables = _dataset(refs, order, wiring).iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=0
    )
    for table in tables:
        for row in table.to_pylist():
            yield PartReport(**{**row, "failures": dict(row["failures"])})


def _dataset(refs: Sequence[ChunkRef], order: WorkOrder, wiring: Wiring) -> ray.data.Dataset:
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
        fn_args=(order,),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=1,
    )
    predicted = decoded.map_batches(
        _PredictActor,
        fn_constructor_args=(order,),
        batch_size=1,  # a row is a batch of images; Ray wants a number where there are GPUs
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=wiring.num_actors),
        num_cpus=wiring.cpus_per_actor,
        num_gpus=wiring.gpus_per_actor,
    )
    return predicted.map_batches(
        _write,
        fn_args=(order,),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=0.5,
    )


_COUNT = "chunk_images"  # rides along, so that no writer takes a part for the whole
_WIRINGS = {"fused": _fused, "streaming": _streaming}


class _PredictActor:
    def __init__(self, order: WorkOrder) -> None:
        self._predictor = worker.load_predictor(order)

    def __call__(self, table: pa.Table) -> pa.Table:
        said = predictions_to_table([self._predictor(b) for b in table_to_image_batches(table)])
        return said.append_column(_COUNT, table[_COUNT])


def _decode(table: pa.Table, order: WorkOrder) -> pa.Table:
    (ref,) = _refs(table)
    batches = image_batches_to_table(list(worker.read_and_decode(order, ref)))
    return batches.append_column(_COUNT, pa.array([ref.num_images] * len(batches), pa.int64()))


def _write(table: pa.Table, order: WorkOrder) -> pa.Table:
    (num_images,) = set(table[_COUNT].to_pylist())
    predictions = table_to_predictions(table)
    (chunk_id,) = {said.chunk_id for said in predictions}
    if sum(map(len, predictions)) != num_images:
        raise CvbatchError(
            f"chunk {chunk_id} came to its writer with {sum(map(len, predictions))} of "
            f"{num_images} images: Ray split its block; use run.arrangement: fused, and report it"
        )
    return _report_table([worker.write(order, chunk_id, predictions)])


def _refs(table: pa.Table) -> list[ChunkRef]:
    return [ChunkRef(**row) for row in table.to_pylist()]


_REPORT = pa.schema(
    [
        ("chunk_id", pa.string()),
        ("num_images", pa.int64()),
        ("failures", pa.map_(pa.string(), pa.int64())),
        ("num_bytes", pa.int64()),
    ]
)


def _report_table(reports: Sequence[PartReport]) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {**asdict(report), "failures": list(report.failures.items())} for report in reports
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
