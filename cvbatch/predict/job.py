"""Run a prediction job: validate, plan, compile the models, process chunks, summarize.

Nothing is written before the plan is made and the models are compiled, so a refused job does not
change the sink.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cvbatch.config.predict import SCHEMA_VERSION, JobConfig, fingerprint
from cvbatch.core.errors import ConfigError
from cvbatch.core.json_log import new_run_id
from cvbatch.core.progress import Listener, counted
from cvbatch.core.types import ChunkRef, ChunkReport
from cvbatch.core.version import __version__
from cvbatch.distributed import hardware
from cvbatch.distributed.memory import memory_per_actor
from cvbatch.distributed.resources import Resources, local_resources
from cvbatch.distributed.session import connect_ray, joins_a_cluster
from cvbatch.inference.builder import ProgramBuilder
from cvbatch.inference.programs import (
    BuildRequest,
    BuiltOutput,
    BuiltProgram,
    Identity,
    build_requests,
    identify,
    outputs_by_section,
    program_uri,
    worker_packages,
)
from cvbatch.inference.sample_images import NUM_TRIED, SampleImages
from cvbatch.planning import part_files
from cvbatch.planning.plan import Plan, plan_files, power_of_two
from cvbatch.predict.allocation import choose_allocation
from cvbatch.predict.memory_check import check_programs
from cvbatch.predict.steps import PredictSpec
from cvbatch.predict.summary import Summary
from cvbatch.results import kept_columns, run_history, schema, writer
from cvbatch.sources.discovery import find_files
from cvbatch.sources.formats import INPUT_FORMATS
from cvbatch.storage.sink import Sink
from cvbatch.storage.store import Storage

if TYPE_CHECKING:
    from cvbatch.distributed.preflight import WorkerPackages

_THREADS = 16
_SHORT_BATCH = 4  # MobileNetV2 on a CPU: 7.8 ms per image in batches of 4, 9.0 of 16


@dataclass(frozen=True)
class Preparation:
    """A validated job and its plan."""

    job: JobConfig
    sink: Sink
    identities: list[Identity]
    engine: str
    fingerprint: str
    plan: Plan

    @property
    def requests(self) -> list[BuildRequest]:
        """Return the build requests of the programs; they may use the memory that is free now."""
        return build_requests(self.job, self.identities, self.engine, hardware.memory_bytes())


def prepare(
    job: JobConfig, sink: Sink, listener: Listener, resources: Resources, *, overwrite: bool = False
) -> Preparation:
    """Validate and plan a job. Writes nothing.

    Args:
        listener: receives progress and changes of the source.
        resources: of the cluster; they choose the engine if it is auto.
        overwrite: accept a sink with another result.

    Raises:
        RefusedError: a model file, the source or the sink does not fit the job.
    """
    kept_columns.check_kept_names(job.source.keep_columns)
    identities = [identify(sink.storage, config) for config in job.models]
    engine = job.run.engine
    if engine == "auto":
        uses_gpus = resources.num_gpus > 0 and not job.computes_on_cpus
        engine = "tensorflow" if uses_gpus else "litert"
    if engine == "litert" and job.run.precision != "float32":
        raise ConfigError(
            f"run.precision {job.run.precision}: this cluster has no GPU, so run.engine auto is "
            "litert, which computes in float32; set engine: tensorflow, or precision: float32"
        )
    job_fingerprint = fingerprint(job, [identity.fingerprint for identity in identities], engine)

    def stored_batch(state: dict[str, Any]) -> int:  # a state of an old version has no job
        return int(state["job"]["run"]["batch_size"]) if "job" in state else job.run.batch_size

    stored = sink.open(job_fingerprint, overwrite=overwrite, parse=stored_batch) or 1
    min_batch = min(job.run.batch_size, stored)
    plan = _plan(job, sink, listener, min_batch)
    job = _with_short_batches(job, plan, min_batch)
    if plan.ignored:
        listener.info(f"files of the source that are not read: {plan.ignored.text}")
    if plan.num_changed or plan.num_removed:
        listener.info(
            f"source changed since the last run: {plan.num_new:,} new, {plan.num_changed:,} "
            f"changed, {plan.num_removed:,} removed files"
        )
    return Preparation(job, sink, identities, engine, job_fingerprint, plan)


def _plan(job: JobConfig, sink: Sink, listener: Listener, min_images: int) -> Plan:
    """List the source and plan its chunks: of `chunk_images` if the job sets it, else fewer."""
    source, run = job.source, job.run
    listener.phase("listing", unit="files")
    files = find_files(
        sink.storage, source.uri, source.format, sink.uri, listener.advanced, source.options
    )
    shortest = None if "chunk_images" in run.model_fields_set else min_images
    limits = run.chunk_images, run.chunk_bytes, shortest
    return plan_files(sink.storage, files, source.image_column, sink.uri, *limits)


def _with_short_batches(job: JobConfig, plan: Plan, min_batch: int) -> JobConfig:
    """Return the job with batches no longer than its chunks: a program always computes full ones.

    All but the shortest chunks have the same short batch, so that the user's cache has one program
    for most small sources.

    Args:
        min_batch: of the programs that are in the sink, which are used again.
    """
    longest = max((ref.num_images for ref in plan.chunks), default=0)
    if job.has_tiles or not all(ref.num_images for ref in plan.chunks):  # more than one per image
        return job
    batch = job.run.batch_size
    if longest < batch:
        batch = max(min(power_of_two(longest), _SHORT_BATCH), min_batch)
    return job.model_copy(update={"run": job.run.model_copy(update={"batch_size": batch})})


def predict(
    job: JobConfig,
    listener: Listener,
    *,
    run: str | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
) -> Summary:
    """Run a job, or resume it: chunks that are done are not processed again.

    Args:
        listener: receives the progress.
        run: id of the run in metrics and summary; None: a new one.
        overwrite: remove another result from the sink, and process all chunks.
        retry_failed: also process done chunks that have failed rows.

    Raises:
        RefusedError: nothing was written.
        CvbatchError: the job was interrupted; the same call resumes it.
    """
    started = time.perf_counter()
    storage = Storage(job.run.retry_policy)
    with ExitStack() as stack:
        sink = stack.enter_context(Sink(storage, job.sink.uri, "predict", listener.info))
        resources = stack.enter_context(connect_ray()) if joins_a_cluster() else local_resources()
        ready = prepare(job, sink, listener, resources, overwrite=overwrite)
        summary = Summary.of(ready.plan, sink.uri, ready.fingerprint, run or new_run_id())
        pending = list(ready.plan.chunks if overwrite else ready.plan.pending)
        if retry_failed and not overwrite:
            pending = _with_failed(ready, pending)
        summary.num_chunks_before = len(ready.plan.chunks) - len(pending)
        summary.num_planned = sum(ref.num_images for ref in pending)
        has_work = bool(pending) or not ready.plan.is_finished
        if pending:
            _run(ready, pending, summary, resources, listener, stack, overwrite=overwrite)
        elif has_work:  # changed files have no image any more
            sink.acquire()
            _commit_plan(ready)
    _note_empty_heatmaps(job, summary, listener)
    summary.seconds = time.perf_counter() - started
    summary.num_chunks_left = len(pending) - summary.num_chunks
    if not pending:
        runs = (run for run in run_history.latest(storage, sink.uri) if run.num_images)
        summary.before = next(((run.num_images, run.num_failed) for run in runs), None)
    summary.check_failure_limit(job.run.max_failure_fraction)
    sink.remove_leftovers()
    if has_work:
        run_history.write_run(storage, sink.uri, summary.as_json())
    return summary


def _run(
    ready: Preparation,
    pending: list[ChunkRef],
    summary: Summary,
    resources: Resources,
    listener: Listener,
    stack: ExitStack,
    *,
    overwrite: bool,
) -> None:
    """Compile the models, start the actors and process the pending chunks."""
    job, sink = ready.job, ready.sink
    allocation = choose_allocation(job, ready.plan.format, resources, len(pending))
    memory = memory_per_actor(job.run.actor_memory_bytes, allocation, resources)
    requests = ready.requests
    uris = [program_uri(sink.uri, request) for request in requests]
    is_built = all(map(sink.storage.exists, uris))
    builder = None if is_built else start_builder(ready, requests, listener)
    if builder is None or not builder.missing:
        listener.phase("starting Ray")
    # Ray is imported and started while a child process compiles the models.
    from cvbatch.distributed.preflight import WorkerPackages
    from cvbatch.predict.ray_metrics import RunMetrics
    from cvbatch.predict.ray_pipeline import run_chunks, start_actors

    is_joined = joins_a_cluster()
    if not is_joined:
        stack.enter_context(connect_ray())
    worker = WorkerPackages(needs_gpu=allocation.gpus_per_actor > 0)
    with _check_nodes(ready, pending[0], listener, worker) if is_joined else nullcontext():
        pool = start_actors(allocation, listener.info)
        built = builder.result() if builder else _read_programs(sink.storage, uris)
        worker.packages = worker_packages(job.models, built)
    check_programs(job, built, allocation, memory)
    summary.notes = [note for program in built for note in program.notes]
    for note in summary.notes:
        listener.info(note)
    sink.acquire()
    if overwrite:
        sink.clear("part-*.parquet")
    spec = commit(ready, uris, built)
    listener.started(len(pending), summary.num_planned)
    metrics = RunMetrics(summary.run, len(pending))
    with closing(run_chunks(spec, pending, allocation, pool, metrics)) as reports:
        _collect(sink.guarded(reports), summary, listener, job.run.max_failure_fraction)


def start_builder(
    ready: Preparation, requests: Sequence[BuildRequest], listener: Listener
) -> ProgramBuilder:
    """Start to compile the programs of a job; it is a phase if the sink lacks any."""
    builder = ProgramBuilder(ready.sink.storage, requests, samples_of(ready), listener.info)
    if builder.missing:
        listener.phase(f"compiling {counted(len(builder.missing), 'models')}")
    return builder


def _collect(
    reports: Iterator[ChunkReport],
    summary: Summary,
    listener: Listener,
    max_failure_fraction: float,
) -> None:
    """Count the written chunks, until there is no other, or too many images have failed."""
    started = time.perf_counter()
    for report in reports:
        summary.add(report)
        summary.images_per_second = summary.num_images / (time.perf_counter() - started)
        listener.written(report, summary)
        if summary.must_stop(max_failure_fraction):
            return


def _note_empty_heatmaps(job: JobConfig, summary: Summary, listener: Listener) -> None:
    heatmaps = (getattr(config, "heatmap", None) for config in job.models)
    score = next((heatmap.score for heatmap in heatmaps if heatmap is not None), "")
    if note := summary.empty_heatmaps_note(score):
        summary.notes.append(note)
        listener.info(note)


def samples_of(ready: Preparation) -> SampleImages:
    """Return the first images of the plan, on which the networks are checked."""
    plan = ready.plan
    chunk = plan.first_items(plan.chunks, NUM_TRIED)
    return SampleImages.of(ready.job.source, plan.format, chunk, ready.job.run.image_timeout_s)


def _check_nodes(
    ready: Preparation, ref: ChunkRef, listener: Listener, worker: WorkerPackages
) -> AbstractContextManager[None]:
    """Check that all nodes of the joined cluster can run the job."""
    from cvbatch.distributed.preflight import check_nodes

    source_uri = ready.plan.read_chunk(ref).items[0].uri
    return check_nodes(ready.sink.storage, ready.sink.uri, source_uri, listener.info, worker)


def _read_programs(storage: Storage, uris: Sequence[str]) -> list[BuiltProgram]:
    """Return the programs that an earlier run stored in the sink."""
    return [BuiltProgram.from_bytes(storage.read_bytes(uri)) for uri in uris]


def commit(ready: Preparation, uris: Sequence[str], built: Sequence[BuiltProgram]) -> PredictSpec:
    """Write programs, state and manifest to the sink; return the spec of the workers.

    Args:
        ready: the job.
        uris: of the programs.
        built: the programs.
    """
    job, storage = ready.job, ready.sink.storage
    outputs = outputs_by_section(job.models, built)
    for uri, program in zip(uris, built, strict=True):
        if not storage.exists(uri):
            storage.put_bytes(uri, program.to_bytes())
    ready.sink.write_state(
        {
            "schema_version": SCHEMA_VERSION,
            "fingerprint": ready.fingerprint,
            "engine": ready.engine,
            "job": job.model_dump(mode="json"),  # resolved; one with credentials was refused
            "networks": [_facts_of(program, output) for program, output in outputs],
        }
    )
    _commit_plan(ready)
    specs = tuple(output.spec for _, output in outputs)
    models = [
        schema.ResultModel(config, spec) for config, spec in zip(job.models, specs, strict=True)
    ]
    return PredictSpec(
        job=job,
        source_format=ready.plan.format,
        specs=specs,
        program_uris=tuple(uris),
        metadata=schema.result_metadata(models, ready.fingerprint, __version__),
        threads=max(1, int(job.run.cpus_per_actor)),
        revisions=ready.plan.revisions,
        kept=_kept_fields(ready),
    )


def _kept_fields(ready: Preparation) -> tuple[pa.Field, ...]:
    """Return the columns of the source that the result gets, with the types of its first file."""
    source, plan = ready.job.source, ready.plan
    input_format = INPUT_FORMATS[plan.format].configured(source.options)
    first = plan.read_chunk(plan.chunks[0]).items[0]
    return tuple(input_format.kept_columns(ready.sink.storage, first.uri))


def _facts_of(program: BuiltProgram, output: BuiltOutput) -> dict[str, int | str | None]:
    """Return what the sink stores of a network; of a program of an old version as it did."""
    facts = {"parameters": program.parameters, "multiply_adds": program.multiply_adds}
    return facts | ({"activation": output.activation} if output.activation else {})


def _commit_plan(ready: Preparation) -> None:
    """Write the manifest, and delete the parts of chunks without units."""
    ready.plan.commit()
    for chunk_id in ready.plan.stale:
        ready.sink.storage.delete(ready.sink.join(part_files.part_name(chunk_id)))


def _with_failed(ready: Preparation, pending: list[ChunkRef]) -> list[ChunkRef]:
    """Return pending chunks and done chunks with failed rows, in the order of the plan."""

    def has_failed(chunk_id: str) -> bool:
        uri = ready.sink.join(part_files.part_name(chunk_id))
        return writer.has_failed_rows(ready.sink.storage, uri)

    done = sorted(ready.plan.done)
    with ThreadPoolExecutor(_THREADS) as pool:
        are_failed = pool.map(has_failed, done)
        chosen = {name for name, failed in zip(done, are_failed, strict=True) if failed}
    chosen |= {ref.chunk_id for ref in pending}
    return [ref for ref in ready.plan.chunks if ref.chunk_id in chosen]
