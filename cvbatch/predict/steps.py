"""The three steps of a chunk as plain callables: read and decode, predict, write.

Ray wires them one of two ways (`cvbatch.predict.ray_pipeline`); a test calls them as they are. All
a step needs to know comes in one small `PredictSpec`, so a step that died starts again anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from cvbatch.config.predict import JobConfig
from cvbatch.core.failures import note
from cvbatch.core.types import (
    ChunkRef,
    ChunkReport,
    EncodedImage,
    Examples,
    ImageBatch,
    ModelSpec,
    Predictions,
)
from cvbatch.images.decode import Limits, decode_images
from cvbatch.images.isolated_decode import IsolatedDecoder, decode_with_alarm
from cvbatch.inference.predictor import LoadedModel, Predictor
from cvbatch.inference.programs import BuiltProgram
from cvbatch.planning import part_files
from cvbatch.planning.plan import read_chunk
from cvbatch.predict.stage_timer import StageTimer
from cvbatch.results import schema, writer
from cvbatch.sources.readers import ChunkReader
from cvbatch.storage import store


@dataclass(frozen=True)
class PredictSpec:
    """What the workers of a job must know; small, whatever the models weigh."""

    job: JobConfig
    source_format: str  # never "auto"
    specs: tuple[ModelSpec, ...]
    program_uris: tuple[str, ...]
    metadata: bytes  # of every Parquet file
    threads: int  # of one program
    revisions: dict[str, int] = field(default_factory=dict)  # of chunks that were planned again

    @property
    def result_models(self) -> list[schema.ResultModel]:
        """Return the models as the result knows them."""
        pairs = zip(self.job.models, self.specs, strict=True)
        return [schema.ResultModel(config, spec) for config, spec in pairs]


def read_and_decode(
    order: PredictSpec,
    reader: ChunkReader,
    ref: ChunkRef,
    effort: StageTimer,
    *,
    is_isolated: bool = False,
) -> Iterator[ImageBatch]:
    """Yield the chunk's images, decoded and resized for every model, in the manifest's order.

    reader: of the order's source. effort: what it takes is added there.

    An image that crashes its decoder, or takes longer than `run.image_timeout_s`, ends this
    process; with `is_isolated` another one, and fails alone.
    """
    store.set_retry_policy(order.job.run.retry_policy)
    source = order.job.source
    images = reader.read(read_chunk(ref), source.max_bytes)
    keys = list(dict.fromkeys(spec.input_key for spec in order.specs))
    limits = Limits(source.max_bytes, source.max_pixels, source.reduced_jpeg)
    timeout_s = order.job.run.image_timeout_s
    with ExitStack() as stack:
        decode_one = (
            stack.enter_context(IsolatedDecoder(timeout_s))
            if is_isolated
            else decode_with_alarm(timeout_s)
        )
        read = _weighed(effort.measure_items("read", images), effort)
        batches = decode_images(
            read, keys, limits, ref.chunk_id, order.job.run.batch_size, decode_one
        )
        yield from effort.measure_items("decode", batches)


def _weighed(images: Iterable[EncodedImage], effort: StageTimer) -> Iterator[EncodedImage]:
    for image in images:
        effort.num_bytes_read += len(image.data)
        yield image


def load_predictor(
    order: PredictSpec, read: Callable[[str], bytes] = store.read_bytes
) -> Predictor:
    """Return the job's models, loaded into this process."""
    store.set_retry_policy(order.job.run.retry_policy)
    models = []
    for config, uri in zip(order.job.models, order.program_uris, strict=True):
        built = BuiltProgram.from_bytes(read(uri))
        program = built.load(order.threads)
        models.append(LoadedModel(config, built.spec, program, built.batch_size))
    return Predictor(models)


def write(
    order: PredictSpec, chunk_id: str, predictions: Iterable[Predictions], effort: StageTimer
) -> ChunkReport:
    """Write the chunk's rows as its file; return what it holds, and what it took until now."""
    store.set_retry_policy(order.job.run.retry_policy)
    models = order.result_models
    arrow_schema = schema.result_schema(models)
    counts: Counter[str] = Counter()
    examples: Examples = {}
    tables, num_images = [], 0
    with effort.measure("write"):
        for said in predictions:
            num_images += len(said)
            note(counts, examples, said.image_id, said.failures)
            tables.append(schema.to_rows(said, models, arrow_schema))
        metadata = part_files.with_revision(order.metadata, order.revisions.get(chunk_id, 0))
        num_bytes = writer.write_part(order.job.sink.uri, chunk_id, tables, arrow_schema, metadata)
    return ChunkReport(
        chunk_id,
        num_images,
        dict(counts),
        num_bytes,
        examples,
        effort.num_bytes_read,
        effort.seconds,
    )


class FusedWorker:
    """A chunk from read to write in one process: pixels never leave it.

    It is made empty, so that it can start before there is an order, and told the order once.
    """

    def __init__(self) -> None:
        self._order: PredictSpec | None = None
        self._predictor: Predictor | None = None
        self._reader: ChunkReader | None = None

    def load(self, order: PredictSpec) -> None:
        """Take the order and load its models."""
        self._order, self._predictor = order, load_predictor(order)
        self._reader = ChunkReader(order.source_format, order.job.source.image_column)

    def work(self, ref: ChunkRef, *, is_isolated: bool) -> ChunkReport:
        """Return the report of a chunk, its file written. The order must have been told."""
        if self._order is None or self._predictor is None or self._reader is None:
            raise RuntimeError("FusedWorker.work before FusedWorker.load")
        effort = StageTimer()
        batches = read_and_decode(self._order, self._reader, ref, effort, is_isolated=is_isolated)
        predictions = effort.measure_items("predict", map(self._predictor, batches))
        return write(self._order, ref.chunk_id, predictions, effort)
