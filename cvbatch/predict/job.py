"""A prediction job from its file to its summary: refuse, plan, build, run, sum up.

Until the models are built and the plan is made nothing is written, so that every refusal leaves
the sink as it was.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass

from cvbatch.config.predict import SCHEMA_VERSION, JobConfig, fingerprint
from cvbatch.core.errors import ConfigError
from cvbatch.core.json_log import new_run
from cvbatch.core.progress import Listener
from cvbatch.core.types import ChunkRef
from cvbatch.core.version import __version__
from cvbatch.distributed.memory import memory_of_each
from cvbatch.distributed.resources import Resources, local_resources
from cvbatch.distributed.session import connected, joins_a_cluster
from cvbatch.inference.builder import ProgramBuilder
from cvbatch.inference.programs import (
    BuiltProgram,
    Identity,
    identify,
    program_uri,
    requests_for,
)
from cvbatch.planning import part_files
from cvbatch.planning.plan import Plan, make_plan
from cvbatch.predict.allocation import choose_allocation
from cvbatch.predict.memory_check import actor_need, check_batch
from cvbatch.predict.steps import PredictSpec
from cvbatch.predict.summary import Summary
from cvbatch.results import run_history, schema, writer
from cvbatch.storage import store
from cvbatch.storage.sink import Sink

_THREADS = 16


@dataclass(frozen=True)
class Preparation:
    """A job that was found to be in order, and what it comes to."""

    job: JobConfig
    sink: Sink
    identities: list[Identity]
    engine: str
    fingerprint: str
    plan: Plan


def prepare(
    job: JobConfig, sink: Sink, listener: Listener, resources: Resources, *, overwrite: bool = False
) -> Preparation:
    """Return the job planned. Writes nothing.

    Raises:
        RefusedError: a model file, the source or the sink is not as the job needs it.
    """
    store.set_retry_policy(job.run.retry_policy)
    identities = [identify(config) for config in job.models]
    engine = job.run.engine
    if engine == "auto":
        engine = "tensorflow" if resources.num_gpus > 0 else "litert"
    if engine == "litert" and job.run.precision != "float32":
        raise ConfigError(
            f"run.precision {job.run.precision}: this cluster has no GPU, so run.engine auto is "
            "litert, which computes in float32; say engine: tensorflow, or precision: float32"
        )
    job_fingerprint = fingerprint(job, [one.fingerprint for one in identities], engine)
    sink.open(job_fingerprint, overwrite=overwrite)
    plan = make_plan(
        job.source,
        sink.uri,
        job.run.chunk_images,
        job.run.chunk_bytes,
        on_progress=listener.listed,
    )
    if plan.num_changed or plan.num_removed:
        listener.say(
            f"since they were planned {plan.num_changed:,} files have changed and "
            f"{plan.num_removed:,} are gone; {plan.num_new:,} are new"
        )
    return Preparation(job, sink, identities, engine, job_fingerprint, plan)


def predict(
    job: JobConfig,
    listener: Listener,
    *,
    run: str | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
) -> Summary:
    """Run the job; return what was done. Whatever was done before is not done again.

    run: the id that metrics and summary carry; None for a new one.

    Raises:
        RefusedError: nothing was written.
        CvbatchError: stopped midway; what is written stays, the same call goes on.
    """
    started = time.perf_counter()
    store.set_retry_policy(job.run.retry_policy)
    with ExitStack() as stack:
        sink = stack.enter_context(Sink(job.sink.uri, "predict", listener.say))
        resources = stack.enter_context(connected()) if joins_a_cluster() else local_resources()
        ready = prepare(job, sink, listener, resources, overwrite=overwrite)
        summary = Summary.of(ready.plan, sink.uri, ready.fingerprint, run or new_run())
        left = list(ready.plan.chunks if overwrite else ready.plan.pending)
        if retry_failed and not overwrite:
            left = _with_failed(ready, left)
        summary.num_chunks_before = len(ready.plan.chunks) - len(left)
        summary.num_planned = sum(ref.num_images for ref in left)
        has_work = bool(left) or not ready.plan.is_finished
        if left:
            _run(ready, left, summary, resources, listener, stack, overwrite=overwrite)
        elif has_work:  # of what changed nothing is left
            sink.acquire()
            _commit_plan(ready)
    summary.seconds = time.perf_counter() - started
    summary.num_chunks_left = len(left) - summary.num_chunks
    if not left:
        worked = (run for run in run_history.latest(sink.uri) if run.num_images)
        summary.before = next(((run.num_images, run.num_failed) for run in worked), None)
    summary.check_failure_limit(job.run.max_failure_fraction)
    sink.remove_leftovers()
    if has_work:
        run_history.write_run(sink.uri, summary.as_json())
    return summary


def _run(
    ready: Preparation,
    left: list[ChunkRef],
    summary: Summary,
    resources: Resources,
    listener: Listener,
    stack: ExitStack,
    *,
    overwrite: bool,
) -> None:
    """Build the models, start the actors, write the chunks that are left."""
    job, sink = ready.job, ready.sink
    wiring = choose_allocation(job, ready.plan.format, resources, len(left))
    memory = memory_of_each(job.run.actor_memory_bytes, wiring, resources)
    requests = requests_for(job, ready.identities, ready.engine)
    uris = [program_uri(sink.uri, request) for request in requests]
    building = None if all(map(store.exists, uris)) else ProgramBuilder(requests)
    # The models are building; Ray, imported and started only now, keeps them company.
    from cvbatch.predict.ray_metrics import RunMetrics
    from cvbatch.predict.ray_pipeline import run_chunks, start_actors

    is_joined = joins_a_cluster()
    if not is_joined:
        stack.enter_context(connected())
    with _asked(job, ready.plan, left[0], listener) if is_joined else nullcontext():
        actors = start_actors(wiring)
        built = building.result() if building else _read_programs(uris)
    check_batch(job.run.batch_size, actor_need(built, wiring), memory, wiring.num_actors)
    for program in built:
        if program.note:
            listener.say(program.note)
    sink.acquire()
    if overwrite:
        sink.clear("part-*.parquet")
    order = _commit(ready, uris, built)
    listener.begun(len(left), summary.num_planned)
    begun = time.perf_counter()
    meters = RunMetrics(summary.run, len(left))
    with closing(run_chunks(order, left, wiring, actors, meters)) as reports:
        for report in sink.guarded(reports):
            summary.add(report)
            summary.images_per_second = summary.num_images / (time.perf_counter() - begun)
            listener.written(report, summary)
            if summary.must_stop(job.run.max_failure_fraction):
                break


def _asked(
    job: JobConfig, plan: Plan, ref: ChunkRef, listener: Listener
) -> AbstractContextManager[None]:
    """Ask the nodes of a cluster that was joined whether they can do the job."""
    from cvbatch.distributed.preflight import nodes_checked

    source_uri = plan.read_chunk(ref).items[0].uri
    return nodes_checked(job.sink.uri, source_uri, job.run.retry_policy, listener.say)


def _read_programs(uris: Sequence[str]) -> list[BuiltProgram]:
    """Return the programs that an earlier run left in the sink."""
    return [BuiltProgram.from_bytes(store.read_bytes(uri)) for uri in uris]


def _commit(ready: Preparation, uris: Sequence[str], built: Sequence[BuiltProgram]) -> PredictSpec:
    """Write what the workers and the next run need; return the workers' order.

    uris: where the programs belong.
    """
    job = ready.job
    for uri, program in zip(uris, built, strict=True):
        if not store.exists(uri):
            store.put_bytes(uri, program.to_bytes())
    ready.sink.write_state(
        {
            "schema_version": SCHEMA_VERSION,
            "fingerprint": ready.fingerprint,
            "engine": ready.engine,
            "job": job.model_dump(mode="json"),  # resolved; one with credentials was refused
            "networks": [
                {"parameters": program.parameters, "multiply_adds": program.multiply_adds}
                for program in built
            ],
        }
    )
    _commit_plan(ready)
    specs = tuple(program.spec for program in built)
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
    )


def _commit_plan(ready: Preparation) -> None:
    """Write what is planned, and remove the files of chunks that hold nothing any more."""
    ready.plan.commit()
    for chunk_id in ready.plan.stale:
        store.delete(ready.sink.join(part_files.part_name(chunk_id)))


def _with_failed(ready: Preparation, left: list[ChunkRef]) -> list[ChunkRef]:
    """Return the chunks left and those done that have failed rows, in the plan's order."""

    def has_failed(chunk_id: str) -> bool:
        return writer.has_failed_rows(ready.sink.join(part_files.part_name(chunk_id)))

    done = sorted(ready.plan.done)
    with ThreadPoolExecutor(_THREADS) as pool:
        again = {
            name for name, failed in zip(done, pool.map(has_failed, done), strict=True) if failed
        }
    again |= {ref.chunk_id for ref in left}
    return [ref for ref in ready.plan.chunks if ref.chunk_id in again]
