"""Run an explanation job: check it, inspect the network, process the units that are missing.

Nothing is written before network, source and sink are checked. `_cvbatch/explain.json` in the sink
contains the job and its state. Each unit of work writes one Parquet file, so the same command
resumes an interrupted run and does nothing when the job is complete.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cvbatch.config.base import SinkConfig
from cvbatch.config.explain import EXPLANATION_VERSION, MODEL_ONLY_SECTIONS, ExplainJob, fingerprint
from cvbatch.core.child_process import ChildProcess, silent_stderr
from cvbatch.core.extras import require_tensorflow
from cvbatch.core.failures import as_json, is_over_limit, merge_examples
from cvbatch.core.progress import Listener
from cvbatch.core.types import Examples
from cvbatch.core.version import __version__
from cvbatch.distributed import hardware
from cvbatch.distributed.parallel_map import ParallelMap
from cvbatch.distributed.resources import Resources, local_resources
from cvbatch.distributed.session import connect_ray, joins_a_cluster
from cvbatch.explain.spec import (
    IMAGES,
    NETWORK,
    PICTURES,
    ExplainSpec,
    NetworkFacts,
    UnitReport,
    WorkUnit,
    output_uri,
)
from cvbatch.explain.work import inspect_network, start_worker
from cvbatch.inference.programs import BuildRequest, Identity, identify
from cvbatch.inference.sample_images import NUM_TRIED, SampleImages
from cvbatch.planning import part_files
from cvbatch.planning.plan import Plan, make_plan
from cvbatch.storage import store
from cvbatch.storage.sink import Sink
from cvbatch.storage.store import Storage

_FOLDERS = (*MODEL_ONLY_SECTIONS, PICTURES)
_CLEARED = (f"{IMAGES}/part-*.parquet", *_FOLDERS)  # the manifest of the images is not deleted
_CHUNK_BYTES = 256 << 20
_MIN_CHUNKS_PER_WORKER = 4  # with fewer, loading TensorFlow takes longer than the work


@dataclass
class ExplainSummary:
    """Result of an explanation; the counts are those of this run.

    Attributes:
        sink: URI.
        fingerprint: of the job.
        num_images: images that were processed, failed ones included.
        num_failed: images that failed.
        failures: "stage/kind" → number of images.
        examples: of failed images.
        num_pictures: PNG files that were written.
        seconds: duration of the run.
        is_over_failure_limit: whether too many images failed in the last run that had images.
        is_new: whether anything was computed; False if the job was complete.
    """

    sink: str
    fingerprint: str
    num_images: int = 0
    num_failed: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    examples: Examples = field(default_factory=dict)
    num_pictures: int = 0
    seconds: float = 0.0
    is_over_failure_limit: bool = False
    is_new: bool = False

    def add(self, report: UnitReport) -> None:
        """Add the counts of one unit of work."""
        self.is_new = True
        self.num_images += report.num_images
        self.num_failed += report.failures.total()
        self.failures.update(report.failures)
        merge_examples(self.examples, report.examples)
        self.num_pictures += report.num_pictures

    def check_failure_limit(self, counts: tuple[int, int], max_failure_fraction: float) -> None:
        """Set `is_over_failure_limit` from the numbers of images and of failed images."""
        self.is_over_failure_limit = is_over_limit(*counts, max_failure_fraction)

    def as_json(self) -> dict[str, Any]:
        """Return the summary as JSON-ready values."""
        return vars(self) | as_json(self.failures, self.examples)

    def summary_line(self) -> str:
        """Return one line of text for the terminal."""
        if not self.is_new:
            return f"nothing to do, {self.sink} is complete"
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.failures.most_common(5))
        failed = f", {self.num_failed:,} failed ({kinds})" if kinds else ""
        return (
            f"done, {self.num_pictures:,} pictures into {self.sink}, "
            f"{self.num_images:,} images{failed}"
        )


def explain(job: ExplainJob, listener: Listener, *, overwrite: bool = False) -> ExplainSummary:
    """Run an explanation job. Units of work that an earlier run completed are skipped.

    Args:
        listener: receives progress.
        overwrite: delete results of another job in the sink, and compute all units again.

    Raises:
        RefusedError: the job was refused before anything was written.
        CvbatchError: the run was interrupted; the same call resumes it.
    """
    started = time.perf_counter()
    storage = Storage(job.run.retry_policy)
    job = _with_absolute_uris(job)
    summary = ExplainSummary(job.sink.uri, "")
    with ExitStack() as stack:
        sink = stack.enter_context(Sink(storage, job.sink.uri, "explain", listener.info))
        resources = stack.enter_context(connect_ray()) if joins_a_cluster() else local_resources()
        identity = identify(storage, job.model)
        summary.fingerprint = fingerprint(job, identity.fingerprint)
        state = sink.open(summary.fingerprint, overwrite=overwrite)
        plan = _plan(storage, job, listener)
        if state and state.get("is_complete") and (plan is None or plan.is_finished):
            counts = state.get("counted") or (0, 0)
            summary.check_failure_limit(counts, job.run.max_failure_fraction)
            return summary
        require_tensorflow()
        workers = _choose_workers(job, resources, plan)
        listener.phase("inspecting the network")
        with _check_nodes(storage, job, plan, listener) if joins_a_cluster() else nullcontext():
            facts, network = _inspect_network(storage, job, identity, workers, plan)
        if facts.activation_reason:
            listener.info(facts.activation_reason)
        spec = _make_spec(job, summary.fingerprint, facts, plan, workers)
        sink.acquire()
        if overwrite:
            sink.clear(*_CLEARED)
        _commit(spec, sink, plan, network)
        units = _pending_units(spec, plan, overwrite)
        listener.info(_describe(units))
        listener.phase("explaining", *_amount(units))
        reports = ParallelMap(workers, listener).run(start_worker, spec, units, _size)
        for report in sink.guarded(reports):
            summary.add(report)
        summary.seconds = time.perf_counter() - started
        counts = summary.num_images, summary.num_failed
        summary.check_failure_limit(counts, job.run.max_failure_fraction)
        sink.write_state(_state(spec, counts))
        sink.remove_leftovers(IMAGES, *_FOLDERS)
    return summary


def _check_nodes(
    storage: Storage, job: ExplainJob, plan: Plan | None, listener: Listener
) -> AbstractContextManager[None]:
    """Check in the background that each node of the cluster can run the job."""
    from cvbatch.distributed.preflight import WorkerPackages, check_nodes

    source_uri = plan.read_chunk(plan.chunks[0]).items[0].uri if plan else None
    worker = WorkerPackages.of_network(job.model.model)
    return check_nodes(storage, job.sink.uri, source_uri, listener.info, worker)


def _with_absolute_uris(job: ExplainJob) -> ExplainJob:
    """Return the job with absolute URIs, because workers may have another working directory."""
    update: dict[str, Any] = {"sink": SinkConfig(uri=store.absolute(job.sink.uri))}
    if job.source is not None:
        uris = [store.absolute(uri) for uri in job.source.uri]
        update["source"] = job.source.model_copy(update={"uri": uris})
    return job.model_copy(update=update)


def _plan(storage: Storage, job: ExplainJob, listener: Listener) -> Plan | None:
    """Return the plan of the images; None if no section needs images."""
    if not job.needs_images or job.source is None:
        return None
    listener.phase("listing", unit="files")
    folder = store.join(job.sink.uri, IMAGES)
    return make_plan(
        storage,
        job.source,
        folder,
        job.run.chunk_images,
        _CHUNK_BYTES,
        on_progress=listener.advanced,
        options=job.source.options,
    )


def _choose_workers(job: ExplainJob, resources: Resources, plan: Plan | None) -> int:
    """Return the number of workers: run.workers, all CPUs of a cluster, or as many as pay off."""
    max_workers = resources.max_workers(job.run.workers)
    if job.run.workers is not None:
        return job.run.workers
    if joins_a_cluster():
        return max_workers
    num_chunks = len(plan.pending) if plan else 0
    return max(1, min(max_workers, num_chunks // _MIN_CHUNKS_PER_WORKER))


def _runs_in_process(workers: int) -> bool:
    """Return whether this process does all the work, without workers."""
    return workers == 1 and not joins_a_cluster()


def _inspect_network(
    storage: Storage,
    job: ExplainJob,
    identity: Identity,
    workers: int,
    plan: Plan | None,
) -> tuple[NetworkFacts, bytes]:
    """Resolve the job for its network; in a child process for workers.

    Returns:
        What the job needs of the network, and its .keras file.
    """
    request = BuildRequest(
        job.model,
        identity,
        "tensorflow",
        "float32",
        job.run.batch_size,
        memory_bytes=hardware.memory_bytes(),
    )
    samples = None
    if job.source and plan and plan.chunks:
        chunk = plan.first_items(plan.chunks, NUM_TRIED)
        samples = SampleImages.of(job.source, plan.format, chunk, job.run.image_timeout_s)
    with tempfile.TemporaryDirectory(prefix="cvbatch-explain-") as folder:
        saved = Path(folder) / "network.keras"
        if _runs_in_process(workers):
            with silent_stderr():
                facts = inspect_network(storage, job, request, saved, samples)
        else:
            facts = ChildProcess(inspect_network, storage, job, request, saved, samples).result(
                "inspects the network", "free memory, or run the job on a larger machine"
            )
        return facts, saved.read_bytes()


def _make_spec(
    job: ExplainJob,
    fingerprint: str,
    facts: NetworkFacts,
    plan: Plan | None,
    workers: int,
) -> ExplainSpec:
    metadata = {
        "schema_version": EXPLANATION_VERSION,
        "cvbatch_version": __version__,
        "fingerprint": fingerprint,
        "model": job.model.model_dump(mode="json", exclude_none=True),
        "classes": list(facts.classes),
        "input_size": list(facts.image_size),
    }
    return ExplainSpec(
        job,
        fingerprint,
        facts,
        json.dumps(metadata, sort_keys=True, ensure_ascii=False).encode(),
        plan.format if plan else "",
        plan.revisions if plan else {},
        None if _runs_in_process(workers) else 1,
    )


def _commit(spec: ExplainSpec, sink: Sink, plan: Plan | None, network: bytes) -> None:
    """Write network, state and plan to the sink, and delete the parts of stale chunks."""
    sink.put(NETWORK, network)
    sink.write_state(_state(spec, None))
    if plan is not None:
        plan.commit()
        for chunk_id in plan.stale:
            spec.storage.delete(spec.uri(IMAGES, part_files.part_name(chunk_id)))


def _state(spec: ExplainSpec, counts: tuple[int, int] | None) -> dict[str, Any]:
    """Return the state that is stored in the sink.

    counts: images and failed images of the complete run; None while it is not complete.
    """
    return {
        "schema_version": EXPLANATION_VERSION,
        "fingerprint": spec.fingerprint,
        "is_complete": counts is not None,
        "counted": counts,
        "layers": spec.facts.layers,
        "job": spec.job.model_dump(mode="json"),
    }


def _pending_units(spec: ExplainSpec, plan: Plan | None, overwrite: bool) -> list[WorkUnit]:
    """Return the units of work whose Parquet file does not exist; with `overwrite` all units."""
    pending = []
    for kind in MODEL_ONLY_SECTIONS:
        names = spec.storage.list_names(spec.uri(kind))
        for layer in spec.facts.layers.get(kind, ()):
            unit = WorkUnit(kind, layer)
            if overwrite or output_uri(spec, unit).rsplit("/", 1)[1] not in names:
                pending.append(unit)
    if plan is not None:
        refs = plan.chunks if overwrite else plan.pending
        pending += [WorkUnit(IMAGES, ref=ref) for ref in refs]
    return pending


def _amount(units: Sequence[WorkUnit]) -> tuple[int, str]:
    """Return the amount of work and its unit: a layer, or an image (a tar, if it is not read)."""
    num_layers = sum(unit.ref is None for unit in units)
    num_images = sum(max(1, unit.ref.num_images) for unit in units if unit.ref)
    unit = "images" if num_images else "layers"
    return num_layers + num_images, "layers and images" if num_layers and num_images else unit


def _size(report: UnitReport) -> int:
    return max(1, report.num_images)


def _describe(units: Sequence[WorkUnit]) -> str:
    counts = Counter(unit.kind for unit in units)
    num_images = sum(unit.ref.num_images for unit in units if unit.ref)
    parts = [f"{kind} of {counts[kind]} layers" for kind in MODEL_ONLY_SECTIONS if counts[kind]]
    if counts[IMAGES]:
        of_images = f" of {num_images:,} images" if num_images else ""
        parts.append(f"{counts[IMAGES]:,} chunks{of_images}")
    return f"to do: {', '.join(parts) or 'nothing'}"
