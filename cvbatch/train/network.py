"""The network of a training job: built and checked once, learnt by every worker, saved whole."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvbatch.config.train import TrainingConfig, TrainJob
from cvbatch.core.child_process import ChildProcess
from cvbatch.core.errors import ConfigError, ModelError
from cvbatch.models import model_files
from cvbatch.models.metadata import DEMO_FILES, read_card, write_card
from cvbatch.storage.store import Storage

if TYPE_CHECKING:
    import keras

    from cvbatch.train.learners.base import Learner
    from cvbatch.train.optimizers import Optimization
    from cvbatch.train.phases import Phase

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Ready:
    """What the driver must know of a network that is ready to learn."""

    image_size: tuple[int, int]  # height, width
    channels: int  # 3, or 1 for a network that takes grey
    metric: str  # the best checkpoint is chosen by
    weight_bytes: int
    trainable_bytes: int  # in the phase that trains most
    map_bytes: int  # of one image, that are in memory together at the least
    optimizer_slots: int


def make_ready(
    storage: Storage,
    job: TrainJob,
    classes: Sequence[str],
    anchors: Sequence[Sequence[float]] | None,
    file: Path,
) -> Ready:
    """Build the job's network and save it in `file`, in a process that ends and takes its memory.

    anchors: what the data's boxes are like, for a detector that takes them from there.

    Raises:
        RefusedError: the network cannot be had, or does not fit the task, its classes, its recipe
            or its metric.
    """
    building = ChildProcess(_make_ready, storage, job, tuple(classes), anchors, file)
    return building.result(f"builds model {job.model.model!r}", "choose a smaller one or make room")


def _make_ready(
    storage: Storage,
    job: TrainJob,
    classes: tuple[str, ...],
    anchors: Sequence[Sequence[float]] | None,
    file: Path,
) -> Ready:
    import keras

    from cvbatch.models import cost
    from cvbatch.train.optimizers import OPTIMIZERS
    from cvbatch.train.phases import freeze

    keras.utils.set_random_seed(job.training.seed)
    _check_card(storage, job, classes)
    options = dict(job.model.build or {})
    if job.model.multi_label:
        options = {"multi_label": True} | options
    if anchors is not None:
        options = {"anchors": anchors} | options
    model = _network(storage, job, len(classes), options)
    size = _image_size(job, model)
    model = _plain(model)
    model.save(file)
    learner = learner_of(job, model, len(classes))
    needed = cost.compute_cost(_at_its_largest(job, model, learner.trained))
    trainable = []
    for phase in phases(job.training):
        freeze(learner.trained, phase)
        trainable.append(sum(math.prod(v.shape) for v in learner.trained.trainable_weights))
    is_whole = job.training.recipe == "scratch" or "all" in (
        phase.part for phase in phases(job.training)
    )
    return Ready(
        image_size=size,
        channels=int(model.inputs[0].shape[3]),
        metric=learner.metric,
        weight_bytes=needed.weight_bytes,
        trainable_bytes=max(trainable) * _FLOAT_BYTES,
        map_bytes=needed.training_bytes if is_whole else needed.inference_bytes,
        optimizer_slots=OPTIMIZERS[job.training.optimizer].num_slots,
    )


def _network(
    storage: Storage, job: TrainJob, num_classes: int, options: dict[str, Any]
) -> keras.Model:
    """Return the job's network with its weights.

    A file of a keras.applications network with ImageNet's classes serves any others: the head is
    then new, as it is with `weights: imagenet`.
    """
    from cvbatch.models import registry
    from cvbatch.models.applications import APPLICATIONS, IMAGENET_CLASSES
    from cvbatch.models.weights import WEIGHTS_SUFFIXES

    said = job.model
    is_own = said.model.endswith(".keras") or said.weights == "demo"
    with tempfile.TemporaryDirectory(prefix="cvbatch-model-") as folder:
        load = partial(
            registry.load_model,
            said.model,
            said.weights,
            local_file=lambda uri: model_files.download(storage, uri, Path(folder), said.sha256),
            image_size=said.image_size,
            options=options,
        )
        try:
            return load(num_classes=None if is_own else num_classes)
        except ModelError as refusal:
            if said.model not in APPLICATIONS or not str(said.weights).endswith(WEIGHTS_SUFFIXES):
                raise
            try:
                whole = load(num_classes=IMAGENET_CLASSES)
            except ModelError:
                raise refusal from None
    fresh = registry.build(said.model, num_classes, said.image_size, options)
    for mine, theirs in zip(fresh.weights, whole.weights, strict=True):
        if mine.shape == theirs.shape:  # all but the head
            mine.assign(theirs)
    return fresh


def _at_its_largest(job: TrainJob, model: keras.Model, trained: keras.Model) -> keras.Model:
    """Return the view of the model that is trained, over the largest images of its training.

    Raises:
        RefusedError: it cannot have one of their sizes.
    """
    from cvbatch.models import graph_surgery
    from cvbatch.train.learners.detection import check_size

    sizes = sorted(job.training.image_sizes or [], key=math.prod)
    for size in sizes:
        check_size(model, size)
    resized = [graph_surgery.with_image_size(trained, size) for size in sizes]
    return resized[-1] if resized else trained


def _check_card(storage: Storage, job: TrainJob, classes: tuple[str, ...]) -> None:
    """Refuse a trained file whose classes are called otherwise than the data's."""
    model = job.model.model
    file = DEMO_FILES.get(model) if job.model.weights == "demo" else None
    if model.endswith(".keras"):
        file = model_files.fetch(storage, model)
    card = read_card(file) if file else None
    if card is not None and card.classes != classes:
        raise ModelError(
            f"model {model!r} knows the classes {', '.join(card.classes[:10])}, but the data has "
            f"{', '.join(classes[:10])}; import the data with these --classes, or begin from "
            "another network"
        )


def _image_size(job: TrainJob, model: keras.Model) -> tuple[int, int]:
    shape = model.inputs[0].shape if len(model.inputs) == 1 else model.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[3] not in (1, 3):
        raise ModelError(
            f"model {job.model.model!r} takes {shape}; a model of this job takes one input of "
            "shape (batch, height, width, 3 or 1)"
        )
    if None in shape[1:3]:
        raise ModelError(
            f"model {job.model.model!r} leaves its image size open; save it with one, or take a "
            "network of the zoo and say model.image_size"
        )
    return int(shape[1]), int(shape[2])


def _plain(model: keras.Model) -> keras.Model:
    """Return a model of one input, and of one output if so, with the tensors not in lists."""
    import keras

    output = model.output
    if isinstance(output, (list, tuple)) and len(output) == 1:
        output = output[0]
    if output is model.output and model.input is model.inputs[0]:
        return model
    return keras.Model(model.inputs[0], output, name=model.name)


def learner_of(job: TrainJob, model: keras.Model, num_classes: int) -> Learner:
    """Return how a model learns the job's task, with the metric the job chooses by.

    Raises:
        ModelError: the model does not fit the task or the number of classes.
        ConfigError: the task has no such metric, or the weights of the classes are not one each.
    """
    from cvbatch.train.learners.base import LEARNERS

    entry = LEARNERS[job.model.task]
    learner = entry.build(model, num_classes, **entry.options(job))
    if job.training.metric is not None:
        known = list(learner.summarize(learner.nothing()))
        if job.training.metric not in known:
            raise ConfigError(
                f"training.metric: {job.training.metric!r} is not measured for "
                f"{job.model.task}; one of {', '.join(known)}"
            )
        learner.metric = job.training.metric
    return learner


def load(file: Path, name: str, precision: str) -> keras.Model:
    """Return the network of a file, computing in a precision; call it in the strategy's scope.

    name: what the user knows the file as.
    """
    from cvbatch.models import registry
    from cvbatch.models.precision import with_precision

    model = registry.load_file(name, file)
    return model if precision == "float32" else with_precision(model, precision)


def save(job: TrainJob, learned: keras.Model, classes: Sequence[str], begun: Path) -> bytes:
    """Return the .keras file of a network that has learnt: float32, whole, with its card.

    begun: the file it began as.
    """
    from cvbatch.models import registry

    model = registry.load_file(job.model.model, begun)
    model.set_weights(learned.get_weights())
    with tempfile.TemporaryDirectory(prefix="cvbatch-model-") as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        write_card(path, tuple(classes), job.model.task)
        return path.read_bytes()


def phases(training: TrainingConfig) -> tuple[Phase, ...]:
    """Return the phases of a job's recipe."""
    from cvbatch.train.phases import phases_of

    return phases_of(
        training.recipe,
        training.epochs,
        training.learning_rate,
        head_epochs=training.head_epochs,
        base_rate=training.base_learning_rate,
        unfreeze=training.unfreeze,
    )


def optimization(training: TrainingConfig) -> Optimization:
    """Return how a job's weights are moved."""
    from cvbatch.train.optimizers import Optimization

    return Optimization(
        optimizer=training.optimizer,
        schedule=training.schedule,
        warmup=training.warmup,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        clip_norm=training.clip_norm,
        accumulate=training.accumulate,
    )
