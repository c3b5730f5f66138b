"""Run an explanation job: check it, inspect the network, do the pieces that are missing.

Nothing is written before network, source and sink are checked. The sink's `_cvbatch/explain.json`
says what is explained there. Each piece of the work leaves a file, so that the same command resumes
an interrupted run, and does nothing after its end.
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
from cvbatch.config.explain import EXPLANATION_VERSION, OF_THE_MODEL, ExplainJob, fingerprint
from cvbatch.core.child_process import ChildProcess, silent_stderr
from cvbatch.core.errors import ConfigError
from cvbatch.core.failures import are_too_many, as_json, merge
from cvbatch.core.progress import Listener
from cvbatch.core.types import Examples
from cvbatch.core.version import __version__
from cvbatch.distributed.parallel_map import ParallelMap
from cvbatch.distributed.resources import Resources, local_resources
from cvbatch.distributed.session import connected, joins_a_cluster
from cvbatch.explain.spec import (
    IMAGES,
    NETWORK,
    PICTURES,
    ExplainSpec,
    NetworkFacts,
    Piece,
    PieceReport,
    file_uri,
)
from cvbatch.explain.work import inspect_network, work_on
from cvbatch.inference.programs import BuildRequest, Identity, identify
from cvbatch.planning import part_files
from cvbatch.planning.plan import Plan, make_plan
from cvbatch.storage import store
from cvbatch.storage.sink import Sink
from cvbatch.storage.store import Storage

_FOLDERS = (*OF_THE_MODEL, PICTURES)
_CLEARED = (f"{IMAGES}/part-*.parquet", *_FOLDERS)  # the plan of the images stays
_CHUNK_BYTES = 256 << 20
_WORTH_A_WORKER = 4  # chunks: with fewer for each, loading TensorFlow takes longer than the work


@dataclass
class ExplainSummary:
    """What an explanation came to; the counts are of this run."""

    sink: str
    fingerprint: str
    num_images: int = 0
    num_failed: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # "stage/kind" → images
    examples: Examples = field(default_factory=dict)
    num_pictures: int = 0
    seconds: float = 0.0
    is_over_failure_limit: bool = False
    is_new: bool = False  # False: there was nothing to do

    def add(self, report: PieceReport) -> None:
        """Count a piece in."""
        self.is_new = True
        self.num_images += report.num_images
        self.num_failed += report.failures.total()
        self.failures.update(report.failures)
        merge(self.examples, report.examples)
        self.num_pictures += report.num_pictures

    def judge(self, counted: tuple[int, int], max_failure_fraction: float) -> None:
        """Say whether too many failed of the images that the last run with any had."""
        self.is_over_failure_limit = are_too_many(*counted, max_failure_fraction)

    def as_json(self) -> dict[str, Any]:
        """Return the summary as JSON-ready values."""
        return vars(self) | as_json(self.failures, self.examples)

    def told(self) -> str:
        """Return the end of the last line on the terminal."""
        if not self.is_new:
            return f"nothing to do, all is in {self.sink}"
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.failures.most_common(5))
        failed = f", {self.num_failed:,} failed ({kinds})" if kinds else ""
        return (
            f"done, {self.num_pictures:,} pictures into {self.sink}, "
            f"{self.num_images:,} images{failed}"
        )


def explain(job: ExplainJob, listener: Listener, *, overwrite: bool = False) -> ExplainSummary:
    """Run the job; return what was done. Whatever was done before is not done again.

    Raises:
        RefusedError: nothing was written.
        CvbatchError: stopped midway; what is written stays, the same call goes on.
    """
    started = time.perf_counter()
    storage = Storage(job.run.retry_policy)
    job = _with_absolute_uris(job)
    summary = ExplainSummary(job.sink.uri, "")
    with ExitStack() as stack:
        sink = stack.enter_context(Sink(storage, job.sink.uri, "explain", listener.say))
        resources = stack.enter_context(connected()) if joins_a_cluster() else local_resources()
        identity = identify(storage, job.model)
        summary.fingerprint = fingerprint(job, identity.fingerprint)
        state = sink.open(summary.fingerprint, overwrite=overwrite)
        plan = _plan(storage, job, listener)
        if state and state.get("is_complete") and (plan is None or plan.is_finished):
            summary.judge(state.get("counted") or (0, 0), job.run.max_failure_fraction)
            return summary
        workers = _choose_workers(job, resources, plan)
        with tempfile.TemporaryDirectory(prefix="cvbatch-explain-") as folder:
            saved = Path(folder) / "network.keras"
            with _asked(storage, job, plan, listener) if joins_a_cluster() else nullcontext():
                facts = _facts(storage, job, identity, saved, is_alone=_is_alone(workers))
            order = _order(storage, job, summary.fingerprint, facts, plan, workers)
            sink.acquire()
            if overwrite:
                sink.clear(*_CLEARED)
            _commit(order, sink, plan, saved)
        pieces = _pieces(order, plan, overwrite)
        listener.say(_announced(pieces))
        parallel_map = ParallelMap(workers, listener)
        for report in sink.guarded(parallel_map.run(work_on, order, pieces, "pieces done")):
            summary.add(report)
        summary.seconds = time.perf_counter() - started
        counted = summary.num_images, summary.num_failed
        summary.judge(counted, job.run.max_failure_fraction)
        sink.write_state(_state(order, counted))
        sink.remove_leftovers(IMAGES, *_FOLDERS)
    return summary


def _asked(
    storage: Storage, job: ExplainJob, plan: Plan | None, listener: Listener
) -> AbstractContextManager[None]:
    """Ask the nodes of a cluster that was joined whether they can do the job."""
    from cvbatch.distributed.preflight import nodes_checked

    source_uri = plan.read_chunk(plan.chunks[0]).items[0].uri if plan else None
    return nodes_checked(storage, job.sink.uri, source_uri, listener.say)


def _with_absolute_uris(job: ExplainJob) -> ExplainJob:
    """Return the job with URIs that mean the same in whatever folder a process works."""
    said: dict[str, Any] = {"sink": SinkConfig(uri=store.absolute(job.sink.uri))}
    if job.source is not None:
        uris = [store.absolute(uri) for uri in job.source.uri]
        said["source"] = job.source.model_copy(update={"uri": uris})
    return job.model_copy(update=said)


def _plan(storage: Storage, job: ExplainJob, listener: Listener) -> Plan | None:
    """Return the chunks of images, None where nothing is asked about images."""
    if not job.wants_images or job.source is None:
        return None
    folder = store.join(job.sink.uri, IMAGES)
    return make_plan(
        storage,
        job.source,
        folder,
        job.run.chunk_images,
        _CHUNK_BYTES,
        on_progress=listener.listed,
    )


def _choose_workers(job: ExplainJob, resources: Resources, plan: Plan | None) -> int:
    """Return how many work at once; here a few images are done sooner by one alone."""
    room = max(1, int(resources.num_cpus))
    if job.run.workers is not None:
        if job.run.workers > room:
            raise ConfigError(
                f"run.workers: {job.run.workers} do not fit a cluster of {resources.num_cpus:g} "
                f"CPU; {room} would"
            )
        return job.run.workers
    if joins_a_cluster():
        return room
    num_chunks = len(plan.pending) if plan else 0
    return max(1, min(room, num_chunks // _WORTH_A_WORKER))


def _is_alone(workers: int) -> bool:
    """Say whether this process does the work itself."""
    return workers == 1 and not joins_a_cluster()


def _facts(
    storage: Storage, job: ExplainJob, identity: Identity, saved: Path, *, is_alone: bool
) -> NetworkFacts:
    """Return what the job means for its network, and save that for the workers."""
    request = BuildRequest(job.model, identity, "tensorflow", "float32", job.run.batch_size)
    if is_alone:
        with silent_stderr():
            return inspect_network(storage, job, request, saved)
    return ChildProcess(inspect_network, storage, job, request, saved).result(
        "looks the network over", "make room, or run the job on a larger machine"
    )


def _order(
    storage: Storage,
    job: ExplainJob,
    identity: str,
    facts: NetworkFacts,
    plan: Plan | None,
    workers: int,
) -> ExplainSpec:
    metadata = {
        "schema_version": EXPLANATION_VERSION,
        "cvbatch_version": __version__,
        "fingerprint": identity,
        "model": job.model.model_dump(mode="json", exclude_none=True),
        "classes": list(facts.classes),
        "input_size": list(facts.image_size),
    }
    return ExplainSpec(
        storage,
        job,
        identity,
        facts,
        json.dumps(metadata, sort_keys=True, ensure_ascii=False).encode(),
        plan.format if plan else "",
        plan.revisions if plan else {},
        None if _is_alone(workers) else 1,
    )


def _commit(order: ExplainSpec, sink: Sink, plan: Plan | None, saved: Path) -> None:
    """Write what the workers and the next run need."""
    sink.put(NETWORK, saved.read_bytes())
    sink.write_state(_state(order, None))
    if plan is not None:
        plan.commit()
        for chunk_id in plan.stale:
            order.storage.delete(order.uri(IMAGES, part_files.part_name(chunk_id)))


def _state(order: ExplainSpec, counted: tuple[int, int] | None) -> dict[str, Any]:
    """Return the state that is stored in the sink.

    counted: images and failures of the complete run; None before.
    """
    return {
        "schema_version": EXPLANATION_VERSION,
        "fingerprint": order.fingerprint,
        "is_complete": counted is not None,
        "counted": counted,
        "layers": order.facts.layers,
        "job": order.job.model_dump(mode="json"),
    }


def _pieces(order: ExplainSpec, plan: Plan | None, overwrite: bool) -> list[Piece]:
    """Return what is left to do."""
    left = []
    for kind in OF_THE_MODEL:
        names = order.storage.list_names(order.uri(kind))
        for layer in order.facts.layers.get(kind, ()):
            piece = Piece(kind, layer)
            if overwrite or file_uri(order, piece).rsplit("/", 1)[1] not in names:
                left.append(piece)
    if plan is not None:
        refs = plan.chunks if overwrite else plan.pending
        left += [Piece(IMAGES, ref=ref) for ref in refs]
    return left


def _announced(pieces: Sequence[Piece]) -> str:
    counts = Counter(piece.kind for piece in pieces)
    images = sum(piece.ref.num_images for piece in pieces if piece.ref)
    told = [f"{counts[kind]} layers' {kind}" for kind in OF_THE_MODEL if counts[kind]]
    if counts[IMAGES]:
        told.append(f"{counts[IMAGES]:,} chunks" + (f" of {images:,} images" if images else ""))
    return f"{' and '.join(told) or 'nothing'} to do"
