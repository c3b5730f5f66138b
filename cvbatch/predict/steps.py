"""Steps of a chunk as plain callables: read and decode, predict, write.

Ray runs them in one of two modes (`cvbatch.predict.ray_pipeline`); tests call them directly. A step
gets all it needs in a small `PredictSpec`, so it can be retried on any node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pyarrow as pa

from cvbatch.config.predict import JobConfig
from cvbatch.core.failures import add_failures
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
from cvbatch.inference.predictor import Predictor, load_models
from cvbatch.inference.programs import BuiltProgram
from cvbatch.planning import part_files
from cvbatch.planning.plan import read_chunk
from cvbatch.predict.stage_timer import StageTimer
from cvbatch.results import kept_columns, schema, writer
from cvbatch.sources.formats import INPUT_FORMATS
from cvbatch.sources.readers import ChunkReader
from cvbatch.storage.store import Storage


@dataclass(frozen=True)
class PredictSpec:
    """What the workers of a job need; small, because programs are read from the sink."""

    job: JobConfig
    source_format: str  # never "auto"
    specs: tuple[ModelSpec, ...]
    program_uris: tuple[str, ...]  # as `shared_networks` orders them; specs are one for each model
    metadata: bytes  # of every part
    threads: int  # of one program
    revisions: dict[str, int] = field(default_factory=dict)  # of chunks that were planned again
    kept: tuple[pa.Field, ...] = ()  # columns of the source that the result gets

    @property
    def storage(self) -> Storage:
        """Return the storage with the retry policy of the job."""
        return Storage(self.job.run.retry_policy)

    def new_reader(self) -> ChunkReader:
        """Return a reader of the chunks of the job."""
        source = self.job.source
        return ChunkReader(
            self.storage, self.source_format, source.image_column, options=source.options
        )

    @property
    def result_models(self) -> list[schema.ResultModel]:
        """Return the models of the result's schema."""
        pairs = zip(self.job.models, self.specs, strict=True)
        return [schema.ResultModel(config, spec) for config, spec in pairs]


def read_and_decode(
    spec: PredictSpec,
    reader: ChunkReader,
    ref: ChunkRef,
    timer: StageTimer,
    *,
    is_isolated: bool = False,
) -> Iterator[ImageBatch]:
    """Yield the images of a chunk, decoded and resized for all models, in manifest order.

    Args:
        reader: of the source of the job.
        timer: seconds and bytes are added to it.
        is_isolated: decode in a child process. An image that crashes its decoder, or takes longer
            than `run.image_timeout_s`, then fails alone; otherwise it ends this process.
    """
    source = spec.job.source
    images = reader.read(read_chunk(spec.storage, ref), source.max_bytes, timer.ignored)
    keys = list(dict.fromkeys(model.input_key for model in spec.specs))
    limits = Limits.from_source(source.model_dump())
    timeout_s = spec.job.run.image_timeout_s
    with ExitStack() as stack:
        decode_one = (
            stack.enter_context(IsolatedDecoder(timeout_s))
            if is_isolated
            else decode_with_alarm(timeout_s)
        )
        encoded = _count_bytes(timer.measure_items("read", images), timer)
        batches = decode_images(
            encoded, keys, limits, ref.chunk_id, spec.job.run.batch_size, decode_one
        )
        yield from timer.measure_items("decode", batches)


def _count_bytes(images: Iterable[EncodedImage], timer: StageTimer) -> Iterator[EncodedImage]:
    for image in images:
        timer.num_bytes_read += len(image.data)
        yield image


def load_predictor(spec: PredictSpec) -> Predictor:
    """Return the models of the job, loaded into this process."""
    storage = spec.storage
    programs = (BuiltProgram.from_bytes(storage.read_bytes(uri)) for uri in spec.program_uris)
    return Predictor(load_models(spec.job.models, programs, spec.threads))


def _kept_columns(spec: PredictSpec, ref: ChunkRef) -> list[pa.Table]:
    """Return the columns of `source.keep_columns` of a chunk."""
    input_format = INPUT_FORMATS[spec.source_format].configured(spec.job.source.options)
    return list(input_format.read_kept(spec.storage, read_chunk(spec.storage, ref).items))


def write(
    spec: PredictSpec, ref: ChunkRef, predictions: Iterable[Predictions], timer: StageTimer
) -> ChunkReport:
    """Write the rows of a chunk as its part.

    Args:
        ref: the chunk.
        predictions: of all its images, in order.
        timer: of the steps before; the report has its seconds and bytes.
    """
    models = spec.result_models
    chunk_id, arrow_schema = ref.chunk_id, schema.result_schema(models)
    failures: Counter[str] = Counter()
    examples: Examples = {}
    tables, num_images, num_heatmaps, num_empty = [], 0, 0, 0
    with timer.measure("write"):
        for batch in predictions:
            num_images += len(batch)
            for heatmaps in (model.heatmaps for model in batch.models if model.heatmaps):
                num_heatmaps += len(heatmaps.score)
                num_empty += heatmaps.num_empty
            add_failures(failures, examples, batch.image_id, batch.failures)
            tables.append(schema.to_rows(batch, models, arrow_schema))
        if spec.kept and tables:
            rows = pa.concat_tables(tables)
            tables = [kept_columns.with_kept_columns(rows, _kept_columns(spec, ref), spec.kept)]
        metadata = part_files.with_revision(spec.metadata, spec.revisions.get(chunk_id, 0))
        num_bytes = writer.write_part(
            spec.storage,
            spec.job.sink.uri,
            chunk_id,
            tables,
            schema.result_schema(models, spec.kept),
            metadata,
        )
    return ChunkReport(
        chunk_id,
        num_images,
        dict(failures),
        num_bytes,
        examples,
        timer.num_bytes_read,
        timer.seconds,
        timer.ignored.counts,
        timer.ignored.examples,
        num_heatmaps,
        num_empty,
    )


class FusedWorker:
    """All steps of a chunk in one process: pixels do not leave it.

    The constructor takes no spec, so that workers start before it is known; `load` sets it.
    """

    def __init__(self) -> None:
        self._spec: PredictSpec | None = None
        self._predictor: Predictor | None = None
        self._reader: ChunkReader | None = None

    def load(self, spec: PredictSpec) -> None:
        """Load the models of a job."""
        self._spec, self._predictor = spec, load_predictor(spec)
        self._reader = spec.new_reader()

    def work(self, ref: ChunkRef, *, is_isolated: bool) -> ChunkReport:
        """Process a chunk and write its part. `load` must have been called."""
        if self._spec is None or self._predictor is None or self._reader is None:
            raise RuntimeError("FusedWorker.work before FusedWorker.load")
        timer = StageTimer()
        batches = read_and_decode(self._spec, self._reader, ref, timer, is_isolated=is_isolated)
        predictions = timer.measure_items("predict", map(self._predictor, batches))
        return write(self._spec, ref, predictions, timer)
