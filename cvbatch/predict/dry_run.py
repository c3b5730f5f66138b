"""Estimate chunks, images, bytes, time and output size of a prediction; write nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from typing import NamedTuple

from cvbatch.config.predict import JobConfig
from cvbatch.core.child_process import silent_stderr
from cvbatch.core.ignored import Ignored
from cvbatch.core.progress import Listener
from cvbatch.core.types import ChunkRef, EncodedImage
from cvbatch.distributed.memory import memory_per_actor
from cvbatch.distributed.resources import local_resources
from cvbatch.distributed.session import connect_ray, joins_a_cluster
from cvbatch.images.decode import Limits, decode_images
from cvbatch.images.isolated_decode import IsolatedDecoder
from cvbatch.inference.predictor import Predictor, load_models
from cvbatch.inference.programs import BuiltProgram
from cvbatch.predict.allocation import choose_allocation
from cvbatch.predict.job import Preparation, prepare, start_builder
from cvbatch.predict.memory_check import actor_need, check_programs
from cvbatch.results import schema, writer
from cvbatch.sources.readers import ChunkReader
from cvbatch.storage.lease import current_holder
from cvbatch.storage.sink import Sink
from cvbatch.storage.store import Storage

SAMPLE_IMAGES = 64


@dataclass(frozen=True)
class Estimate:
    """Estimate of a job."""

    num_chunks: int
    num_chunks_done: int
    num_images: int  # of all chunks; 0 if unknown before reading
    num_images_left: int
    num_new: int  # files that were not planned before
    num_changed: int  # files that changed since they were planned; their chunks are processed again
    num_removed: int  # planned files that are no longer in the source; their rows stay
    num_bytes: int  # of the source
    num_ignored_files: int  # of the source, without junk
    ignored: dict[str, int]  # kind → files of the source that are not read
    ignored_examples: dict[str, list[str]]
    arrangement: str
    num_actors: int
    needed_bytes: int  # minimum memory of an actor; 0 if nothing is pending
    actor_memory_bytes: int | None  # available memory of an actor; None: unknown
    sampled_images: int
    sampled_failures: int
    seconds: float  # estimated, without start-up
    result_bytes: int  # estimated
    engines: list[str]  # of the models, in the order of the job; empty if nothing is pending
    notes: list[str]  # about the models, such as operations that the engine lacks

    def as_json(self) -> dict[str, object]:
        """Return the estimate as JSON-ready values."""
        return asdict(self)

    def as_text(self) -> str:
        """Return the estimate as lines of text."""
        images = "known after reading"
        if self.num_images:
            images = f"{self.num_images:,}, of which pending {self.num_images_left:,}"
        memory = self.actor_memory_bytes
        memory_text = "an unknown number" if memory is None else f"{memory:,}"
        return "\n".join(
            [
                f"chunks            {self.num_chunks:,}, of which done {self.num_chunks_done:,}",
                f"images            {images}",
                f"files             {self.num_new:,} new, {self.num_changed:,} changed, "
                f"{self.num_removed:,} removed since the last run",
                f"source bytes      {self.num_bytes:,}",
                f"not read          {Ignored(self.ignored, self.ignored_examples).text or 'none'}",
                f"arrangement       {self.arrangement}, {self.num_actors} actors",
                f"engine            {', '.join(self.engines) or 'none'}",
                f"actor's memory    {self.needed_bytes:,} bytes at least, of {memory_text}",
                f"sampled           {self.sampled_images} images, {self.sampled_failures} failed",
                f"estimated time    {self.seconds:,.1f} s",
                f"estimated result  {self.result_bytes:,} bytes",
            ]
        )


def estimate(job: JobConfig, listener: Listener, *, overwrite: bool = False) -> Estimate:
    """Return the estimate of a job, from its plan and a timed sample of its first images.

    Raises:
        RefusedError: as `cvbatch.predict.job.predict`.
    """
    with ExitStack() as stack:
        resources = stack.enter_context(connect_ray()) if joins_a_cluster() else local_resources()
        sink = Sink(Storage(job.run.retry_policy), job.sink.uri, "predict", listener.info)
        ready = prepare(job, sink, listener, resources, overwrite=overwrite)
    job = ready.job
    if holder := current_holder(sink.storage, sink.uri):
        listener.info(f"the sink is in use by {holder}: this job is refused until that run ends")
    plan = ready.plan
    pending = list(plan.chunks if overwrite else plan.pending)
    allocation = choose_allocation(job, plan.format, resources, max(1, len(pending)))
    programs = start_builder(ready, ready.requests, listener).result() if pending else []
    notes = [note for program in programs for note in program.notes]
    for note in notes:
        listener.info(note)
    memory = memory_per_actor(job.run.actor_memory_bytes, allocation, resources)
    if programs:
        check_programs(job, programs, allocation, memory)
    num_pending = sum(ref.num_images for ref in pending)
    listener.phase("sampling", min(SAMPLE_IMAGES, num_pending), "images")
    sample = _sample(ready, pending[0], programs) if pending else _Sample(0, 0, 0, 0.0, 0)
    scale = _scale(pending, sample)
    return Estimate(
        num_chunks=len(plan.chunks),
        num_chunks_done=len(plan.chunks) - len(pending),
        num_images=plan.num_images,
        num_images_left=num_pending,
        num_new=plan.num_new,
        num_changed=plan.num_changed,
        num_removed=plan.num_removed,
        num_bytes=plan.num_bytes,
        num_ignored_files=plan.num_ignored_files,
        ignored=plan.ignored.counts,
        ignored_examples=plan.ignored.examples,
        arrangement=allocation.arrangement,
        num_actors=allocation.num_actors,
        needed_bytes=actor_need(programs, allocation).of(job.run.batch_size) if pending else 0,
        actor_memory_bytes=memory,
        sampled_images=sample.num_images,
        sampled_failures=sample.num_failed,
        seconds=round(sample.seconds * scale / allocation.num_actors, 3),
        result_bytes=int(sample.result_bytes * scale),
        engines=[program.engine for program in programs],
        notes=notes,
    )


def _scale(pending: Sequence[ChunkRef], sample: _Sample) -> float:
    """Return how much larger the work is than the sample: by images, or by bytes (tars)."""
    num_images = sum(ref.num_images for ref in pending)
    if num_images:
        return num_images / max(1, sample.num_images)
    return sum(ref.size_bytes for ref in pending) / max(1, sample.num_bytes)


class _Sample(NamedTuple):
    num_images: int
    num_failed: int
    num_bytes: int  # encoded
    seconds: float
    result_bytes: int


def _sample(ready: Preparation, ref: ChunkRef, programs: list[BuiltProgram]) -> _Sample:
    """Process the first images of a chunk in this process and time them."""
    job = ready.job
    with silent_stderr():  # LiteRT prints its delegate
        models = load_models(job.models, programs, 1)
    predictor = Predictor(models)
    result_models = [schema.ResultModel(model.config, model.spec) for model in models]
    arrow_schema = schema.result_schema(result_models)
    chunk = ready.plan.read_chunk(ref)
    reader = ChunkReader(
        ready.sink.storage,
        ready.plan.format,
        job.source.image_column,
        options=job.source.options,
    )
    images = reader.read(chunk, job.source.max_bytes)
    keys = list(dict.fromkeys(model.spec.input_key for model in models))
    limits = Limits.from_source(job.source.model_dump())
    num_bytes = 0

    def count_bytes() -> Iterator[EncodedImage]:
        nonlocal num_bytes
        for image in islice(images, SAMPLE_IMAGES):
            num_bytes += len(image.data)
            yield image

    # Unknown images may crash the decoder; that must not end the command.
    with IsolatedDecoder(job.run.image_timeout_s) as decode_one:
        decode_one(b"", keys, limits)  # starts the child process before the time is measured
        started = time.perf_counter()
        batches = decode_images(
            count_bytes(), keys, limits, chunk.chunk_id, job.run.batch_size, decode_one
        )
        predictions = [predictor(batch) for batch in batches]
    rows = [schema.to_rows(batch, result_models, arrow_schema) for batch in predictions]
    size = writer.encode_part(rows, arrow_schema, b"{}").size
    seconds = time.perf_counter() - started
    num_failed = sum(len(batch.failures) for batch in predictions)
    return _Sample(sum(map(len, predictions)), num_failed, num_bytes, seconds, size)
