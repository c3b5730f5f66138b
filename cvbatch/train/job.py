"""Run a training job: check it, build the network, train on Ray, write the model.

Nothing is written before data, network and memory are checked, so that a refusal leaves the sink
unchanged. The sink's `_cvbatch/training.json` says what is trained there and whether it is done:
the same command resumes an interrupted run, and does nothing after its end.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from cvbatch.config.base import SinkConfig
from cvbatch.config.train import TrainJob, fingerprint
from cvbatch.core.errors import SinkError, SourceError
from cvbatch.core.progress import Listener
from cvbatch.core.tasks import TASKS
from cvbatch.datasets.reader import (
    LabelledDataset,
    LabelSpec,
    Split,
    relative_box_sizes,
    scan_dataset,
)
from cvbatch.distributed.resources import Allocation, local_resources
from cvbatch.distributed.session import connected, joins_a_cluster
from cvbatch.models import model_files
from cvbatch.storage import store
from cvbatch.storage.sink import Sink
from cvbatch.storage.store import Storage
from cvbatch.train import network
from cvbatch.train.capacity import check_count, check_memory, choose_workers

_BEGUN = "_cvbatch/begun.keras"
_RUN = "_cvbatch/training"  # Ray Train's own: its checkpoints


@dataclass
class TrainSummary:
    """What a training came to."""

    sink: str
    fingerprint: str
    workers: int
    images: dict[str, int]  # by split
    is_new: bool = True  # False: it was done before
    epochs: int = 0
    steps: int = 0
    best_epoch: int = 0
    metrics: dict[str, dict[str, float | None]] = field(default_factory=dict)  # by split
    num_unusable: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0  # of this command

    def as_json(self) -> dict[str, Any]:
        """Return the summary as JSON-ready values."""
        return asdict(self)

    def told(self) -> str:
        """Return the figures in a line: those of the test images, or of the validation's."""
        for name in ("test", "validation"):
            if name in self.metrics:
                figures = (
                    f"{key} {'undefined' if value is None else f'{value:.4f}'}"
                    for key, value in self.metrics[name].items()
                )
                return f"{name} {', '.join(figures)}"
        return "not judged"


@dataclass(frozen=True)
class _State:
    """What the sink stores about the training in it."""

    fingerprint: str
    workers: int
    ready: network.Ready
    done: dict[str, Any] | None = None  # the summary of the complete run

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> _State:
        ready = network.Ready(**raw["ready"] | {"image_size": tuple(raw["ready"]["image_size"])})
        return cls(**raw | {"ready": ready})


def train(
    job: TrainJob, listener: Listener, *, overwrite: bool = False, resume: bool = False
) -> TrainSummary:
    """Run the job; return what came of it. A run that was stopped goes on.

    resume: refuse to begin anew.

    Raises:
        RefusedError: nothing was written.
        CvbatchError: stopped midway; the last checkpoint stays, the same call goes on.
    """
    started = time.perf_counter()
    storage = Storage(job.run.retry_policy)
    job = _with_absolute_uris(job)
    with ExitStack() as stack:
        sink = stack.enter_context(Sink(storage, job.sink.uri, "train", listener.say))
        resources = stack.enter_context(connected()) if joins_a_cluster() else local_resources()
        data = _chosen(scan_dataset(storage, job.source.uri, wanted_of(job)), job)
        identity = fingerprint(job, [data.identity, _model_identity(storage, job)])
        state: _State | None = sink.open(identity, overwrite=overwrite, parse=_State.parse)
        if resume and state is None:
            raise SinkError(f"--resume: sink {sink.uri} contains no training; omit --resume")
        if state is not None and state.done is not None:
            return TrainSummary(**{**state.done, "is_new": False})
        wiring = choose_workers(job, resources, state.workers if state else None)
        check_count(len(data.splits["train"]), job, wiring.num_actors)
        with tempfile.TemporaryDirectory(prefix="cvbatch-begun-") as folder:
            begun = None
            with _asked(storage, job, data, listener) if joins_a_cluster() else nullcontext():
                if state is None:
                    begun = Path(folder) / "begun.keras"
                    state = _begin(storage, job, data, identity, wiring, begun)
                check_memory(job, state.ready, wiring, resources)
            sink.acquire()
            if begun is not None:
                _commit(job, sink, state, begun)
        images = {name: len(split) for name, split in data.splits.items()}
        listener.say(_announcement(job, data, wiring) + ("" if begun is not None else "; going on"))
        if not joins_a_cluster():
            stack.enter_context(connected())
        # Ray prints of a worker that died on stdout, which is for results.
        with redirect_stdout(sys.stderr):
            said = _teach(job, sink, data, state, wiring, listener)
        summary = TrainSummary(
            sink.uri, identity, state.workers, images, seconds=time.perf_counter() - started, **said
        )
        sink.write_state(asdict(replace(state, done=summary.as_json())))
        sink.remove_leftovers()
    return summary


def _announcement(job: TrainJob, data: LabelledDataset, wiring: Allocation) -> str:
    images = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    return (
        f"{images} images, {len(data.classes)} classes, {wiring.num_actors} workers with batches "
        f"of {job.training.batch_size}"
    )


def _with_absolute_uris(job: TrainJob) -> TrainJob:
    """Return the job with URIs that mean the same in the working directory of every worker."""
    source = job.source.model_copy(update={"uri": [store.absolute(uri) for uri in job.source.uri]})
    sink = SinkConfig(uri=store.absolute(job.sink.uri))
    return job.model_copy(update={"sink": sink, "source": source})


def wanted_of(job: TrainJob) -> LabelSpec:
    """Return what of the labelled data the job learns."""
    task = TASKS[job.model.task]
    return LabelSpec(task.label_column, task.is_whole_image and not job.model.multi_label)


def _chosen(found: LabelledDataset, job: TrainJob) -> LabelledDataset:
    """Return the data with the job's splits alone, by the names of their roles.

    Raises:
        SourceError: a split is empty, or images lack the label that is learnt.
    """
    chosen = {}
    for role, name in job.source.splits.model_dump().items():
        if name is None:
            continue
        split = found.splits.get(name, Split(name, (), 0))
        if split.num_unlabelled and job.source.unlabelled == "refuse":
            one = "exactly one label" if wanted_of(job).is_single else "a label"
            raise SourceError(
                f"{split.num_unlabelled:,} images of split {name!r} do not have {one} in column "
                f"{wanted_of(job).column!r}, which {job.model.task} learns; say "
                "source.unlabelled: skip to leave them out"
            )
        if len(split):
            chosen[role] = split
        elif role != "test":
            there = ", ".join(repr(other) for other in found.splits) or "none"
            null = f", or source.splits.{role}: null" if role == "validation" else ""
            raise SourceError(
                f"no labelled image belongs to split {name!r} ({role}); there are {there}: import "
                f"the data with --split 0.8,0.1,0.1{null}"
            )
    return LabelledDataset(found.classes, chosen, found.identity)


def _model_identity(storage: Storage, job: TrainJob) -> str:
    """Return what the model is beyond its name: the SHA-256 of the files it names."""
    named = (job.model.model, job.model.weights or "")
    digests = []
    for uri in named:
        if uri.endswith((".keras", ".h5")):
            digest = model_files.sha256(model_files.fetch(storage, uri))
            model_files.check(uri, digest, job.model.sha256)
            digests.append(digest)
    return json.dumps(digests)


def _asked(
    storage: Storage, job: TrainJob, data: LabelledDataset, listener: Listener
) -> AbstractContextManager[None]:
    """Ask the nodes of a cluster that was joined whether they can do the job."""
    from cvbatch.distributed.preflight import nodes_checked

    source_uri = data.splits["train"].groups[0].uri
    return nodes_checked(storage, job.sink.uri, source_uri, listener.say)


def _begin(
    storage: Storage,
    job: TrainJob,
    data: LabelledDataset,
    identity: str,
    wiring: Allocation,
    begun: Path,
) -> _State:
    """Build the network into a local file; return what will be said of the training."""
    anchors = None
    if job.model.fits_anchors:
        anchors = _anchors(storage, data.splits["train"], job)
    ready = network.make_ready(storage, job, data.classes, anchors, begun)
    return _State(identity, wiring.num_actors, ready)


def _anchors(storage: Storage, split: Split, job: TrainJob) -> Sequence[Sequence[float]]:
    from cvbatch.geometry.anchors import fit_anchors

    try:
        found = fit_anchors(
            relative_box_sizes(storage, split), job.model.anchors, job.training.seed
        )
    except ValueError as error:
        raise SourceError(
            f"the anchors cannot be fitted to the boxes of split {split.name!r} ({error}); say "
            "model.anchors: 0 to keep the network's own"
        ) from None
    return [[float(side) for side in shape] for shape in found]


def _commit(job: TrainJob, sink: Sink, state: _State, begun: Path) -> None:
    """Write what the workers and the next run need; nothing of an overwritten run remains."""
    sink.clear("model.keras", _RUN)
    sink.put(_BEGUN, begun.read_bytes())
    run = job.run.model_copy(update={"workers": state.workers})
    training = job.training.model_copy(update={"metric": state.ready.metric})
    model = job.model.model_copy(update={"image_size": state.ready.image_size})
    if job.model.model.endswith(".keras"):
        model = job.model
    resolved = job.model_copy(update={"run": run, "training": training, "model": model})
    text = yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    sink.put("config.yaml", text.encode())
    sink.write_state(asdict(state))


def _teach(
    job: TrainJob,
    sink: Sink,
    data: LabelledDataset,
    state: _State,
    wiring: Allocation,
    listener: Listener,
) -> dict[str, Any]:
    """Run the lessons on Ray, which is imported only now."""
    from cvbatch.train.ray_trainer import run_training
    from cvbatch.train.worker_spec import WorkerSpec

    images_per_step = state.workers * job.training.batch_size * job.training.accumulate
    gpus = wiring.gpus_per_actor
    run = job.run.model_copy(update={"workers": state.workers, "gpus_per_worker": gpus})
    lessons = WorkerSpec(
        storage=sink.storage,
        job=job.model_copy(update={"run": run}),
        data=data,
        wanted=wanted_of(job),
        image_size=state.ready.image_size,
        channels=state.ready.channels,
        metric=state.ready.metric,
        num_workers=state.workers,
        steps_per_epoch=-(-len(data.splits["train"]) // images_per_step),
        begun_uri=sink.join(_BEGUN),
        sink_uri=sink.uri,
        lease_token=sink.lease_token,
    )
    return run_training(lessons, listener.epoch, sink.check)
