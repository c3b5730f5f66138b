"""Says before a run what it would come to: chunks, images, bytes, time, size. Writes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from typing import NamedTuple

from cvbatch.config.predict import JobConfig
from cvbatch.core.child_process import silent_stderr
from cvbatch.core.progress import Listener
from cvbatch.core.types import ChunkRef, EncodedImage
from cvbatch.distributed.memory import memory_of_each
from cvbatch.distributed.resources import local_resources
from cvbatch.distributed.session import connected, joins_a_cluster
from cvbatch.images.decode import Limits, decode_images
from cvbatch.images.isolated_decode import IsolatedDecoder
from cvbatch.inference.builder import ProgramBuilder
from cvbatch.inference.predictor import LoadedModel, Predictor
from cvbatch.inference.programs import BuiltProgram, requests_for
from cvbatch.predict.allocation import choose_allocation
from cvbatch.predict.job import Preparation, prepare
from cvbatch.predict.memory_check import actor_need, check_batch
from cvbatch.results import schema, writer
from cvbatch.sources.readers import ChunkReader
from cvbatch.storage.lease import current_holder
from cvbatch.storage.sink import Sink

SAMPLE_IMAGES = 64


@dataclass(frozen=True)
class Estimate:
    """What a job would come to."""

    num_chunks: int
    num_chunks_done: int
    num_images: int  # of all chunks; 0 where only reading can count them
    num_images_left: int
    num_new: int  # files that no earlier run knew
    num_changed: int  # files that changed since: their chunks are done again
    num_removed: int  # files that are gone: their rows stay
    num_bytes: int  # of the source
    num_ignored_files: int  # that are not images
    arrangement: str
    num_actors: int
    needed_bytes: int  # of an actor's memory, at least; 0 where nothing is left to do
    actor_memory_bytes: int | None  # that it has; None where nobody tells
    sampled_images: int
    sampled_failures: int
    seconds: float  # estimated, start-up left out
    result_bytes: int  # estimated

    def as_json(self) -> dict[str, object]:
        """Return the estimate as JSON-ready values."""
        return asdict(self)

    def as_text(self) -> str:
        """Return the estimate as a table for a person."""
        unknown = "known after reading" if not self.num_images else ""
        has = self.actor_memory_bytes
        return "\n".join(
            [
                f"chunks            {self.num_chunks:,}, of which done {self.num_chunks_done:,}",
                f"images            {unknown or f'{self.num_images:,}'}"
                f"{'' if unknown else f', of which left {self.num_images_left:,}'}",
                f"files             {self.num_new:,} new, {self.num_changed:,} changed, "
                f"{self.num_removed:,} gone since they were planned",
                f"source bytes      {self.num_bytes:,}",
                f"other files       {self.num_ignored_files:,}, left alone",
                f"arrangement       {self.arrangement}, {self.num_actors} actors",
                f"actor's memory    {self.needed_bytes:,} bytes at least, of "
                f"{'an unknown number' if has is None else f'{has:,}'}",
                f"sampled           {self.sampled_images} images, {self.sampled_failures} failed",
                f"estimated time    {self.seconds:,.1f} s",
                f"estimated result  {self.result_bytes:,} bytes",
            ]
        )


def estimate(job: JobConfig, listener: Listener, *, overwrite: bool = False) -> Estimate:
    """Return what the job would come to, from the plan and a timed sample of its first images.

    Raises:
        RefusedError: as the job itself would.
    """
    with ExitStack() as stack:
        resources = stack.enter_context(connected()) if joins_a_cluster() else local_resources()
        sink = Sink(job.sink.uri, "predict", listener.say)
        ready = prepare(job, sink, listener, resources, overwrite=overwrite)
    if holder := current_holder(sink.uri):
        listener.say(f"the sink is in use by {holder}: until that run ends, this job is refused")
    plan = ready.plan
    left = list(plan.chunks if overwrite else plan.pending)
    wiring = choose_allocation(job, plan.format, resources, max(1, len(left)))
    requests = requests_for(job, ready.identities, ready.engine)
    programs = ProgramBuilder(requests).result() if left else []
    need = actor_need(programs, wiring)
    memory = memory_of_each(job.run.actor_memory_bytes, wiring, resources)
    check_batch(job.run.batch_size, need, memory, wiring.num_actors)
    listener.say(f"sampling up to {SAMPLE_IMAGES} images")
    sample = _sample(ready, left[0], programs) if left else _Sample(0, 0, 0, 0.0, 0)
    images_left = sum(ref.num_images for ref in left)
    if images_left:
        share = images_left / max(1, sample.num_images)
    else:  # only reading can count them: their bytes stand for them
        share = sum(ref.size_bytes for ref in left) / max(1, sample.num_bytes)
    return Estimate(
        num_chunks=len(plan.chunks),
        num_chunks_done=len(plan.chunks) - len(left),
        num_images=plan.num_images,
        num_images_left=images_left,
        num_new=plan.num_new,
        num_changed=plan.num_changed,
        num_removed=plan.num_removed,
        num_bytes=plan.num_bytes,
        num_ignored_files=plan.num_ignored_files,
        arrangement=wiring.arrangement,
        num_actors=wiring.num_actors,
        needed_bytes=need.of(job.run.batch_size) if left else 0,
        actor_memory_bytes=memory,
        sampled_images=sample.num_images,
        sampled_failures=sample.num_failed,
        seconds=round(sample.seconds * share / wiring.num_actors, 3),
        result_bytes=int(sample.result_bytes * share),
    )


class _Sample(NamedTuple):
    num_images: int
    num_failed: int
    num_bytes: int  # encoded
    seconds: float
    result_bytes: int


def _sample(ready: Preparation, ref: ChunkRef, programs: list[BuiltProgram]) -> _Sample:
    """Return what the first images of a chunk came to, worked in this process."""
    job = ready.job
    with silent_stderr():  # LiteRT tells the terminal of its delegate
        models = [
            LoadedModel(config, built.spec, built.load(1), built.batch_size)
            for config, built in zip(job.models, programs, strict=True)
        ]
    predictor = Predictor(models)
    result_models = [schema.ResultModel(model.config, model.spec) for model in models]
    arrow_schema = schema.result_schema(result_models)
    chunk = ready.plan.read_chunk(ref)
    reader = ChunkReader(ready.plan.format, job.source.image_column)
    images = reader.read(chunk, job.source.max_bytes)
    keys = list(dict.fromkeys(model.spec.input_key for model in models))
    limits = Limits(job.source.max_bytes, job.source.max_pixels, job.source.reduced_jpeg)
    num_bytes = 0

    def weighed() -> Iterator[EncodedImage]:
        nonlocal num_bytes
        for image in islice(images, SAMPLE_IMAGES):
            num_bytes += len(image.data)
            yield image

    # With care, as nobody knows these images yet: they must not end the command.
    with IsolatedDecoder(job.run.image_timeout_s) as decode_one:
        decode_one(b"", keys, limits)  # starts its process, which is not the sample's time
        started = time.perf_counter()
        batches = decode_images(
            weighed(), keys, limits, chunk.chunk_id, job.run.batch_size, decode_one
        )
        said = [predictor(batch) for batch in batches]
    rows = [schema.to_rows(one, result_models, arrow_schema) for one in said]
    size = writer.encode_part(rows, arrow_schema, b"{}").size
    seconds = time.perf_counter() - started
    num_failed = sum(len(one.failures) for one in said)
    return _Sample(sum(map(len, said)), num_failed, num_bytes, seconds, size)
