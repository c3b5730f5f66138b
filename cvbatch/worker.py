"""The three steps of a chunk as plain callables: read and decode, predict, write.

Ray wires them one of two ways (`cvbatch.run.stream`); a test calls them as they are. All a step
needs to know comes in one small `WorkOrder`, so a step that died starts again anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from cvbatch.config import JobConfig
from cvbatch.data import schema, sink, store
from cvbatch.data.decode import Limits, decode_images
from cvbatch.data.plan import read_chunk
from cvbatch.data.sources import read_chunk_images
from cvbatch.predict import LoadedModel, Predictor
from cvbatch.programs import BuiltProgram
from cvbatch.types import ChunkRef, ImageBatch, ModelSpec, Predictions


@dataclass(frozen=True)
class WorkOrder:
    """What the workers of a job must know; small, whatever the models weigh."""

    job: JobConfig
    source_format: str  # never "auto"
    specs: tuple[ModelSpec, ...]
    program_uris: tuple[str, ...]
    metadata: bytes  # of every Parquet file
    threads: int  # of one program

    @property
    def result_models(self) -> list[schema.ResultModel]:
        """Return the models as the result knows them."""
        pairs = zip(self.job.models, self.specs, strict=True)
        return [schema.ResultModel(config, spec) for config, spec in pairs]


@dataclass(frozen=True)
class PartReport:
    """What became of one chunk."""

    chunk_id: str
    num_images: int
    failures: dict[str, int]  # "stage/kind" → images
    num_bytes: int  # of the file

    @property
    def num_failed(self) -> int:
        """Return how many of the images have no predictions."""
        return sum(self.failures.values())


def read_and_decode(order: WorkOrder, ref: ChunkRef) -> Iterator[ImageBatch]:
    """Yield the chunk's images, decoded and resized for every model, in the manifest's order."""
    source = order.job.source
    images = read_chunk_images(
        read_chunk(ref), order.source_format, source.image_column, max_bytes=source.max_bytes
    )
    keys = list(dict.fromkeys(spec.input_key for spec in order.specs))
    limits = Limits(source.max_bytes, source.max_pixels, source.reduced_jpeg)
    return decode_images(images, keys, limits, ref.chunk_id, order.job.run.batch_size)


def load_predictor(order: WorkOrder, read: Callable[[str], bytes] = store.read_bytes) -> Predictor:
    """Return the job's models, loaded into this process."""
    models = []
    for config, uri in zip(order.job.models, order.program_uris, strict=True):
        built = BuiltProgram.from_bytes(read(uri))
        program = built.load(order.threads)
        models.append(LoadedModel(config, built.spec, program, built.batch_size))
    return Predictor(models)


def write(order: WorkOrder, chunk_id: str, predictions: Iterable[Predictions]) -> PartReport:
    """Write the chunk's rows as its file; return what it holds."""
    models = order.result_models
    arrow_schema = schema.result_schema(models)
    failures: Counter[str] = Counter()
    tables, num_images = [], 0
    for said in predictions:
        num_images += len(said)
        failures.update(f"{failure.stage}/{failure.kind}" for failure in said.failures.values())
        tables.append(schema.to_rows(said, models, arrow_schema))
    num_bytes = sink.write_part(order.job.sink.uri, chunk_id, tables, arrow_schema, order.metadata)
    return PartReport(chunk_id, num_images, dict(failures), num_bytes)


class FusedWorker:
    """A chunk from read to write in one process: pixels never leave it.

    It is made empty and told the order with each chunk, so that it can start before there is an
    order, and again anywhere without one.
    """

    def __init__(self) -> None:
        self._predictor: Predictor | None = None

    def work(self, order: WorkOrder, ref: ChunkRef) -> PartReport:
        """Return the report of a chunk, its file written. The order is the same at every call."""
        if self._predictor is None:
            self._predictor = load_predictor(order)
        batches = read_and_decode(order, ref)
        return write(order, ref.chunk_id, map(self._predictor, batches))
