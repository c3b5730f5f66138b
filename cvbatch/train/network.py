"""Build, check, load and save the network of a training job."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvbatch.config.models import Activation
from cvbatch.config.train import TrainingConfig, TrainJob
from cvbatch.core.child_process import ChildProcess
from cvbatch.core.errors import ConfigError, ModelError
from cvbatch.core.model_formats import format_of
from cvbatch.datasets.reader import LabelledDataset
from cvbatch.models import model_files
from cvbatch.models.metadata import DEMO_FILES, read_card, write_card
from cvbatch.storage.store import Storage

if TYPE_CHECKING:
    from cvbatch.models.frameworks import keras
    from cvbatch.train.learners.base import Learner
    from cvbatch.train.optimizers import Optimization

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class BuiltNetwork:
    """Properties of the initial network that the driver needs."""

    image_size: tuple[int, int]  # height, width
    channels: int  # of the input: 3, or 1 for greyscale
    metric: str  # selects the best checkpoint
    weight_bytes: int
    trainable_bytes: int  # in the phase with the most trainable weights
    map_bytes: int  # minimum memory of one image's feature maps
    optimizer_slots: int  # numbers of optimizer state per trained weight
    activation: Activation = "auto"  # still to be applied to the scores; auto: as the graph says
    notes: tuple[str, ...] = ()  # what was changed or guessed, for the log


def build_network(
    storage: Storage,
    job: TrainJob,
    data: LabelledDataset,
    anchors: Sequence[Sequence[float]] | None,
    file: Path,
) -> BuiltNetwork:
    """Build the job's network and save it, in a child process that frees its memory at the end.

    Args:
        storage: reads the model and weights files, and a few images.
        data: class names and training images.
        anchors: (height, width) of anchors fitted to the data's boxes, as fractions of the image;
            None: the network's own.
        file: the .keras file to write.

    Raises:
        RefusedError: the network cannot be loaded, or does not fit the task, the classes, the
            recipe or the metric.
    """
    process = ChildProcess(_build_network, storage, job, data, anchors, file)
    return process.result(
        f"builds model {job.model.model!r}", "use a smaller model or a machine with more memory"
    )


def _build_network(
    storage: Storage,
    job: TrainJob,
    data: LabelledDataset,
    anchors: Sequence[Sequence[float]] | None,
    file: Path,
) -> BuiltNetwork:
    from cvbatch.models import cost
    from cvbatch.models.frameworks import keras
    from cvbatch.train.initial_network import decide_activation
    from cvbatch.train.optimizers import OPTIMIZERS
    from cvbatch.train.phases import freeze, phases_of

    keras.utils.set_random_seed(job.training.seed)
    model, notes = _initial_model(storage, job, data.classes, anchors)
    size = _image_size(job, model)
    activation = job.model.activation
    if _is_trained(job) or activation != "auto":  # auto is right for a new network of the zoo
        decision = decide_activation(model, job, storage, data.splits.get("train"), size)
        if decision is not None:
            activation = decision.activation
            notes.append(decision.reason)
    model.save(file)
    learner = make_learner(with_activation(job, activation), model, len(data.classes))
    costs = cost.compute_cost(_at_largest_size(job, model, learner.training_model))
    num_trainable = []
    planned = phases_of(job.training, learner.training_model)
    for phase in planned:
        freeze(learner.training_model, phase)
        weights = learner.training_model.trainable_weights
        num_trainable.append(sum(math.prod(weight.shape) for weight in weights))
    trains_all = "all" in (phase.part for phase in planned)
    return BuiltNetwork(
        image_size=size,
        channels=int(model.inputs[0].shape[3]),
        metric=learner.metric,
        weight_bytes=costs.weight_bytes,
        trainable_bytes=max(num_trainable) * _FLOAT_BYTES,
        map_bytes=costs.training_bytes if trains_all else costs.inference_bytes,
        optimizer_slots=OPTIMIZERS[job.training.optimizer].num_slots,
        activation=activation,
        notes=tuple(notes),
    )


def with_activation(job: TrainJob, activation: Activation) -> TrainJob:
    """Return the job with the activation that is still to be applied to the network's scores."""
    return job.model_copy(update={"model": job.model.model_copy(update={"activation": activation})})


def _is_trained(job: TrainJob) -> bool:
    """Return whether the job's network is a trained file, with classes of its own."""
    return not job.model.is_built_in or job.model.weights == "demo"


def _initial_model(
    storage: Storage,
    job: TrainJob,
    classes: tuple[str, ...],
    anchors: Sequence[Sequence[float]] | None,
) -> tuple[keras.Model, list[str]]:
    """Return the initial network for the data's classes, and notes for the log."""
    from cvbatch.models.saved_model import check_has_layers
    from cvbatch.train.initial_network import check_trainable, fit_classes, scaling_note

    options = dict(job.model.build or {})
    if job.model.multi_label:
        options = {"multi_label": True} | options
    if anchors is not None:
        options = {"anchors": anchors} | options
    known = _known_classes(storage, job)
    model = check_has_layers(_load_initial(storage, job, len(classes), options))
    model = _without_lists(model)
    check_trainable(model, job.model.model)
    if not _is_trained(job):
        return model, []
    model, note = fit_classes(model, job, known, classes)
    return model, [*filter(None, (note, scaling_note(model, job.model.model)))]


def _load_initial(
    storage: Storage, job: TrainJob, num_classes: int, options: dict[str, Any]
) -> keras.Model:
    """Return the job's network with its initial weights.

    A weights file of a keras.applications network with ImageNet's classes can be used for other
    classes: the head is new, as with `weights: imagenet`.
    """
    from cvbatch.models import registry
    from cvbatch.models.applications import APPLICATIONS, IMAGENET_CLASSES
    from cvbatch.models.weights import WEIGHTS_SUFFIXES

    config = job.model
    has_classes = _is_trained(job)
    with tempfile.TemporaryDirectory(prefix="cvbatch-model-") as folder:
        load = partial(
            registry.load_model,
            config.model,
            config.weights,
            local_file=lambda uri: model_files.download(storage, uri, Path(folder), config.sha256),
            image_size=config.image_size,
            trust=config.trust,
        )
        try:
            own = {} if has_classes else {"num_classes": num_classes}
            return load(options=own | options)
        except ModelError as refusal:
            is_imagenet = config.model in APPLICATIONS
            if not is_imagenet or not str(config.weights).endswith(WEIGHTS_SUFFIXES):
                raise _with_hint(refusal, job) from None
            try:
                pretrained = load(options={"num_classes": IMAGENET_CLASSES} | options)
            except ModelError:
                raise _with_hint(refusal, job) from None
    model = registry.build(config.model, num_classes, config.image_size, options)
    for weight, source in zip(model.weights, pretrained.weights, strict=True):
        if weight.shape == source.shape:  # all except the head
            weight.assign(source)
    return model


def _with_hint(refusal: ModelError, job: TrainJob) -> ModelError:
    """Return the error, with what to do if the weights are a whole network of other classes."""
    if not str(job.model.weights).endswith(".keras"):
        return refusal
    return ModelError(
        f"{refusal}; to train that network on other classes, set model to {job.model.weights!r} "
        "and remove weights and build: its head is rebuilt"
    )


def _at_largest_size(job: TrainJob, model: keras.Model, training_model: keras.Model) -> keras.Model:
    """Return the training model for the largest images of multi-scale training.

    Raises:
        RefusedError: one of the sizes does not fit the network.
    """
    from cvbatch.models import graph_surgery
    from cvbatch.train.learners.detection import check_size

    sizes = sorted(job.training.image_sizes or [], key=math.prod)
    for size in sizes:
        check_size(model, size)
    resized = [graph_surgery.with_image_size(training_model, size) for size in sizes]
    return resized[-1] if resized else training_model


def _known_classes(storage: Storage, job: TrainJob) -> tuple[str, ...] | None:
    """Return the class names of a trained file; None if it has none."""
    model = job.model.model
    file = DEMO_FILES.get(model) if job.model.weights == "demo" else None
    if format_of(model).key == "keras":
        file = model_files.fetch(storage, model)
    card = read_card(file) if file else None
    return None if card is None else card.classes


def _image_size(job: TrainJob, model: keras.Model) -> tuple[int, int]:
    shape = model.inputs[0].shape if len(model.inputs) == 1 else model.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[3] not in (1, 3):
        raise ModelError(
            f"model {job.model.model!r} has the input shape {shape}, but training requires one "
            "input of shape (batch, height, width, 3 or 1)"
        )
    if None in shape[1:3]:
        raise ModelError(
            f"model {job.model.model!r} has no fixed image size; save it with one, or use a "
            "network of the zoo and set model.image_size"
        )
    return int(shape[1]), int(shape[2])


def _without_lists(model: keras.Model) -> keras.Model:
    """Return the model with a single input, and a single output, as tensors instead of lists."""
    from cvbatch.models.frameworks import keras

    output = model.output
    if isinstance(output, (list, tuple)) and len(output) == 1:
        output = output[0]
    if output is model.output and model.input is model.inputs[0]:
        return model
    return keras.Model(model.inputs[0], output, name=model.name)


def make_learner(job: TrainJob, model: keras.Model, num_classes: int) -> Learner:
    """Return the learner of the job's task, with the metric that the job sets.

    Raises:
        ModelError: the model does not fit the task or the number of classes.
        ConfigError: the task has no such metric, or there is not one weight per class.
    """
    from cvbatch.train.learners.base import LEARNERS

    entry = LEARNERS[job.model.task]
    learner = entry.build(model, num_classes, **entry.options(job))
    if job.training.metric is not None:
        metrics = list(learner.summarize(learner.empty_metrics()))
        if job.training.metric not in metrics:
            raise ConfigError(
                f"training.metric: {job.training.metric!r} is not a metric of {job.model.task}; "
                f"use one of {', '.join(metrics)}"
            )
        learner.metric = job.training.metric
    return learner


def load(job: TrainJob, file: Path) -> keras.Model:
    """Load the network of a .keras file; call it in the scope of the workers' strategy.

    It has the precision that the job sets.
    """
    from cvbatch.models import registry
    from cvbatch.models.precision import with_precision

    precision = job.training.precision
    model = registry.load_file(job.model.model, file, job.model.trust)
    return model if precision == "float32" else with_precision(model, precision)


def save(job: TrainJob, trained: keras.Model, classes: Sequence[str], initial_model: Path) -> bytes:
    """Return the .keras file of a trained network, in float32 and with a card.

    Args:
        trained: has the weights to save.
        classes: class names, by class id.
        initial_model: the .keras file with the architecture.
    """
    from cvbatch.models import registry

    model = registry.load_file(job.model.model, initial_model, job.model.trust)
    model.set_weights(trained.get_weights())
    with tempfile.TemporaryDirectory(prefix="cvbatch-model-") as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        write_card(path, tuple(classes), job.model.task)
        return path.read_bytes()


def optimization(training: TrainingConfig) -> Optimization:
    """Return a job's optimizer settings."""
    from cvbatch.train.optimizers import Optimization

    return Optimization(
        optimizer=training.optimizer,
        schedule=training.schedule,
        plateau=training.plateau if training.schedule == "plateau" else None,
        warmup=training.warmup,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        clip_norm=training.clip_norm,
        accumulate=training.accumulate,
    )
