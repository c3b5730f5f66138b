"""Run a training job: check it, build the network, train on Ray, write the model.

Nothing is written before data, network and memory are checked, so that a refusal leaves the sink
unchanged. The sink's `_cvbatch/training.json` describes the training and whether it is complete:
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

from cvbatch.config.base import NAMED_WEIGHTS, SinkConfig
from cvbatch.config.train import TrainJob, fingerprint
from cvbatch.core.errors import SinkError, SourceError
from cvbatch.core.extras import require_tensorflow
from cvbatch.core.progress import Listener, counted
from cvbatch.core.tasks import TASKS
from cvbatch.datasets.reader import (
    LabelledDataset,
    LabelSpec,
    Split,
    count_labels,
    relative_box_sizes,
    scan_dataset,
)
from cvbatch.distributed.resources import Allocation, Resources, local_resources
from cvbatch.distributed.session import connect_ray, joins_a_cluster
from cvbatch.models import model_files, trusted_modules
from cvbatch.models.keras_settings import keras_variables
from cvbatch.plots.figure import require_matplotlib
from cvbatch.storage import store
from cvbatch.storage.sink import Sink
from cvbatch.storage.store import Storage
from cvbatch.train import network
from cvbatch.train.capacity import check_memory, check_num_images, choose_workers
from cvbatch.train.class_weights import with_class_weights, with_ignored_class
from cvbatch.train.history import CLASS_SEPARATOR
from cvbatch.train.run_notes import data_notes

_INITIAL_MODEL = "_cvbatch/begun.keras"  # stored; the name must not change
_RAY_TRAIN = "_cvbatch/training"  # Ray Train's state and checkpoints


@dataclass
class TrainSummary:
    """Result of a training."""

    sink: str
    fingerprint: str
    workers: int
    images: dict[str, int]  # by split
    is_new: bool = True  # False: it was complete before
    epochs: int = 0
    steps: int = 0
    best_epoch: int = 0
    metrics: dict[str, dict[str, float | None]] = field(default_factory=dict)  # by split
    num_unusable: dict[str, Any] = field(default_factory=dict)  # count, by kind, and examples
    num_unlabelled: dict[str, int] = field(default_factory=dict)  # by split; left out as well
    notes: list[str] = field(default_factory=list)  # on the network, the data and the history
    seconds: float = 0.0  # of this command

    def as_json(self) -> dict[str, Any]:
        """Return the summary as JSON-ready values."""
        return asdict(self)

    def summary_line(self) -> str:
        """Return the metrics on the test or validation images, and how many images are left out."""
        return "; ".join(filter(None, (self._metrics_text(), self._left_out_text())))

    def _left_out_text(self) -> str:
        """Return how many images were not used, and why; "": all were used."""
        reasons = [
            f"{count:,} {kind.replace('_', ' ')}"
            for kind, count in self.num_unusable.get("kinds", {}).items()
        ]
        reasons += [
            f"{count:,} without a label in {split}"
            for split, count in self.num_unlabelled.items()
            if count
        ]
        total = self.num_unusable.get("count", 0) + sum(self.num_unlabelled.values())
        return f"{total:,} images left out ({', '.join(reasons)})" if total else ""

    def _metrics_text(self) -> str:
        for name in ("test", "validation"):
            if name in self.metrics:
                values = (
                    f"{key} {'undefined' if value is None else f'{value:.4f}'}"
                    for key, value in self.metrics[name].items()
                    if CLASS_SEPARATOR not in key and not key.startswith("loss_")
                )
                return f"{name} {', '.join(values)}"
        return "not validated: source.splits names neither a validation nor a test split"


@dataclass(frozen=True)
class _State:
    """What the sink stores about its training."""

    fingerprint: str
    workers: int
    ready: network.BuiltNetwork
    done: dict[str, Any] | None = None  # the summary of the complete run

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> _State:
        built = network.BuiltNetwork(**raw["ready"])
        height, width = built.image_size  # JSON has lists
        built = replace(built, image_size=(height, width), notes=tuple(built.notes))
        return cls(**raw | {"ready": built})


def train(
    job: TrainJob, listener: Listener, *, overwrite: bool = False, resume: bool = False
) -> TrainSummary:
    """Run a training job, or resume it if it was interrupted.

    Args:
        listener: receives messages and the metrics of each epoch.
        overwrite: delete an earlier training in the sink.
        resume: fail if there is no training to resume.

    Raises:
        RefusedError: the job cannot be run; nothing was written.
        CvbatchError: the training stopped before it finished; the same call resumes it from the
            last checkpoint.
    """
    started = time.perf_counter()
    require_tensorflow()
    require_matplotlib()
    job = _with_absolute_uris(job)
    with ExitStack() as stack:
        storage = Storage(job.run.retry_policy)
        sink = stack.enter_context(Sink(storage, job.sink.uri, "train", listener.info))
        resources = stack.enter_context(connect_ray()) if joins_a_cluster() else local_resources()
        listener.phase("reading the labels")
        data = _select_splits(scan_dataset(storage, job.source.uri, label_spec_of(job)), job)
        identity = fingerprint(job, [data.identity, _model_identity(storage, job)])
        state: _State | None = sink.open(identity, overwrite=overwrite, parse=_State.parse)
        if resume and state is None:
            raise SinkError(f"--resume: sink {sink.uri} contains no training; omit --resume")
        if state is not None and state.done is not None:
            return TrainSummary(**{**state.done, "is_new": False})
        _check_num_classes(job, data)
        column = label_spec_of(job).column
        counts = count_labels(storage, data.splits["train"], column, len(data.classes))
        job = with_class_weights(with_ignored_class(job, data.classes), data.classes, counts)
        allocation = choose_workers(job, resources, state.workers if state else None)
        check_num_images(len(data.splits["train"]), job, allocation.num_actors)
        run = _Run(job, sink, data, identity, allocation, listener)
        return run.train(state, resources, data_notes(job, data, counts), started)


@dataclass(frozen=True)
class _Run:
    """A training whose workers fit the cluster and whose steps fit the data."""

    job: TrainJob
    sink: Sink
    data: LabelledDataset
    fingerprint: str
    allocation: Allocation
    listener: Listener

    def train(
        self, state: _State | None, resources: Resources, notes: list[str], started: float
    ) -> TrainSummary:
        """Train to the end; write the summary into the sink and return it.

        Args:
            state: of the run to resume; None: a new one.
            resources: of the cluster.
            notes: on the data.
            started: when the command started; `time.perf_counter`.
        """
        suffix = "" if state is None else "; resuming"
        state = self._prepare(state, resources)
        notes = [*state.ready.notes, *notes]
        for note in (*notes, self._announcement() + suffix):
            self.listener.info(note)
        with ExitStack() as stack:
            if not joins_a_cluster():
                self.listener.phase("starting Ray")
                stack.enter_context(keras_variables())  # Ray's controller imports Keras as well
                stack.enter_context(connect_ray())
            self.listener.phase("training", self.job.training.num_epochs, "epochs")
            # Ray writes messages about lost workers to stdout, which is for results.
            stack.enter_context(redirect_stdout(sys.stderr))
            result = self._train_on_ray(state)
        for note in result["notes"]:
            self.listener.info(note)
        splits = self.data.splits.items()
        result |= {
            "notes": [*notes, *result["notes"]],
            "images": {name: len(split) for name, split in splits},
            "num_unlabelled": {name: split.num_unlabelled for name, split in splits},
            "seconds": time.perf_counter() - started,
        }
        summary = TrainSummary(self.sink.uri, self.fingerprint, state.workers, **result)
        self.sink.write_state(asdict(replace(state, done=summary.as_json())))
        self.sink.remove_leftovers()
        return summary

    def _prepare(self, state: _State | None, resources: Resources) -> _State:
        """Check the rest, lock the sink and write the initial state, unless there is one."""
        with tempfile.TemporaryDirectory(prefix="cvbatch-initial-") as folder:
            initial_model = None
            with self._nodes_checked() if joins_a_cluster() else nullcontext():
                if state is None:
                    self.listener.phase("building the network")
                    initial_model = Path(folder) / "initial.keras"
                    state = self._build(initial_model)
                check_memory(self.job, state.ready, self.allocation, resources)
            self.sink.acquire()
            if initial_model is not None:
                self._write_initial(state, initial_model)
        return state

    def _nodes_checked(self) -> AbstractContextManager[None]:
        """Check that the nodes of the joined cluster can run the job."""
        from cvbatch.distributed.preflight import WorkerPackages, check_nodes

        source_uri = self.data.splits["train"].groups[0].uri
        sink, worker = self.sink, WorkerPackages.of_network(self.job.model.model)
        return check_nodes(sink.storage, sink.uri, source_uri, self.listener.info, worker)

    def _build(self, initial_model: Path) -> _State:
        """Build the network, save it in a local file, and return the state of a new training."""
        anchors = None
        if self.job.model.fits_anchors:
            anchors = _fit_anchors(self.sink.storage, self.data.splits["train"], self.job)
        built = network.build_network(
            self.sink.storage, self.job, self.data, anchors, initial_model
        )
        return _State(self.fingerprint, self.allocation.num_actors, built)

    def _write_initial(self, state: _State, initial_model: Path) -> None:
        """Write what the workers and a resumed run need; delete an overwritten training."""
        job, sink = self.job, self.sink
        sink.clear("model.keras", _RAY_TRAIN)
        sink.put(_INITIAL_MODEL, initial_model.read_bytes())
        run = job.run.model_copy(update={"workers": state.workers})
        training = job.training.model_copy(update={"metric": state.ready.metric})
        model = job.model.model_copy(update={"image_size": state.ready.image_size})
        if not job.model.is_built_in:
            model = job.model
        resolved = job.model_copy(update={"run": run, "training": training, "model": model})
        values = resolved.model_dump(mode="json")
        sink.put(
            "config.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode()
        )
        sink.write_state(asdict(state))

    def _announcement(self) -> str:
        """Return the numbers of images, classes and workers as one line."""
        images = ", ".join(f"{len(split):,} {name}" for name, split in self.data.splits.items())
        workers = counted(self.allocation.num_actors, "workers")
        return (
            f"{images} images, {len(self.data.classes)} classes, {workers} with batches of "
            f"{self.job.training.batch_size}"
        )

    def _train_on_ray(self, state: _State) -> dict[str, Any]:
        """Train on Ray, which is imported only now; return the fields of the summary."""
        from cvbatch.train.ray_trainer import run_training
        from cvbatch.train.worker_spec import WorkerSpec

        job, sink = self.job, self.sink
        images_per_step = state.workers * job.training.batch_size * job.training.accumulate
        resolved = {"workers": state.workers, "gpus_per_worker": self.allocation.gpus_per_actor}
        job = network.with_activation(job, state.ready.activation)
        spec = WorkerSpec(
            job=job.model_copy(update={"run": job.run.model_copy(update=resolved)}),
            data=self.data,
            label_spec=label_spec_of(job),
            image_size=state.ready.image_size,
            channels=state.ready.channels,
            metric=state.ready.metric,
            num_workers=state.workers,
            steps_per_epoch=-(-len(self.data.splits["train"]) // images_per_step),
            initial_model_uri=sink.join(_INITIAL_MODEL),
            sink_uri=sink.uri,
            lease_token=sink.lease_token,
        )
        return run_training(spec, self.listener, sink.check)


def _with_absolute_uris(job: TrainJob) -> TrainJob:
    """Return the job with URIs that do not depend on a worker's working directory."""
    source = job.source.model_copy(update={"uri": [store.absolute(uri) for uri in job.source.uri]})
    sink = SinkConfig(uri=store.absolute(job.sink.uri))
    return job.model_copy(update={"sink": sink, "source": source})


def label_spec_of(job: TrainJob) -> LabelSpec:
    """Return the label column that the job's task requires."""
    task = TASKS[job.model.task]
    return LabelSpec(task.label_column, task.is_whole_image and not job.model.multi_label)


def _select_splits(labelled: LabelledDataset, job: TrainJob) -> LabelledDataset:
    """Return the data with the job's splits only, named train, validation and test.

    Raises:
        SourceError: a split is empty, or images lack the required label.
    """
    selected = {}
    for role, name in job.source.splits.model_dump().items():
        if name is None:
            continue
        split = labelled.splits.get(name, Split(name, (), 0))
        if split.num_unlabelled and job.source.unlabelled == "refuse":
            label = "exactly one label" if label_spec_of(job).is_single else "a label"
            raise SourceError(
                f"{split.num_unlabelled:,} images of split {name!r} do not have {label} in column "
                f"{label_spec_of(job).column!r}, which {job.model.task} requires; set "
                "source.unlabelled: skip to leave them out"
            )
        if len(split):
            selected[role] = split
        elif role != "test":
            known = ", ".join(repr(other) for other in labelled.splits) or "none"
            null = f", or set source.splits.{role}: null" if role == "validation" else ""
            raise SourceError(
                f"no labelled image belongs to split {name!r} ({role}); known splits: {known}; "
                f"import the data with --split 0.8,0.1,0.1{null}"
            )
    return LabelledDataset(labelled.classes, selected, labelled.identity)


def _check_num_classes(job: TrainJob, data: LabelledDataset) -> None:
    """Raise SourceError if exclusive classes leave nothing to decide."""
    if job.model.task == "classification" and not job.model.multi_label and len(data.classes) < 2:
        raise SourceError(
            f"the data has one class, {data.classes[0]!r}, and classification needs at least two; "
            "import images of other classes too, or set model.multi_label: true"
        )


def _model_identity(storage: Storage, job: TrainJob) -> str:
    """Return the SHA-256 of the job's model or weights file, and trusted versions, as JSON."""
    digests: list[str | dict[str, str]] = []
    uri = job.model.weights if job.model.is_built_in else job.model.model
    if uri is not None and uri not in NAMED_WEIGHTS:
        digest = model_files.model_sha256(storage, uri)
        model_files.check(uri, digest, job.model.sha256)
        digests.append(digest)
    if job.model.trust:
        digests.append(trusted_modules.versions(job.model.trust))
    return json.dumps(digests)


def _fit_anchors(storage: Storage, split: Split, job: TrainJob) -> Sequence[Sequence[float]]:
    from cvbatch.geometry.anchors import fit_anchors

    try:
        anchors = fit_anchors(
            relative_box_sizes(storage, split), job.model.anchors, job.training.seed
        )
    except ValueError as error:
        raise SourceError(
            f"the anchors cannot be fitted to the boxes of split {split.name!r} ({error}); set "
            "model.anchors: 0 to keep the network's own"
        ) from None
    return [[float(side) for side in shape] for shape in anchors]
