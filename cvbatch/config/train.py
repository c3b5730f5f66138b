"""Schema and fingerprint of a training job."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from cvbatch.config.base import (
    Auto,
    Fraction,
    ModuleNames,
    Name,
    RetryConfig,
    Section,
    Sha256,
    SinkConfig,
    Size,
    Uris,
    check_model,
    check_sha256,
)
from cvbatch.config.decoding import DecodingConfig
from cvbatch.config.loader import load, parse
from cvbatch.config.models import Activation
from cvbatch.core.model_formats import format_of, not_keras_error, own_weights_error
from cvbatch.core.tasks import TASKS, Task
from cvbatch.core.types import MAX_MASK_CLASSES, ResizeMode

TRAINING_VERSION = 1
OptimizerName = Literal["sgd", "adam", "adamw", "rmsprop"]
ScheduleName = Literal["constant", "cosine", "step", "linear", "plateau"]
# Keys of the sections model and training that only some tasks have.
_CLASS_SCORES: tuple[Task, ...] = ("classification", "segmentation")
_TASKS_OF_KEY: dict[str, tuple[Task, ...]] = {
    "model.output": _CLASS_SCORES,
    "model.activation": _CLASS_SCORES,
    "training.class_weights": _CLASS_SCORES,
    "training.loss": _CLASS_SCORES,
    "training.ignored_class": ("segmentation",),
    "training.image_sizes": ("detection",),
}
_Weight = Annotated[float, Field(ge=0)]
# Weight of each class: by name (others: 1), one per class in the order of the data, or balanced.
# The tags keep errors about a value to the form that it has.
ClassWeights = Annotated[
    Annotated[Literal["balanced"], Tag("text")]
    | Annotated[dict[str, _Weight], Tag("by_name")]
    | Annotated[list[_Weight], Tag("by_class")],
    Discriminator(
        lambda value: {dict: "by_name", list: "by_class"}.get(type(value), "text"),
    ),
]


class SplitsConfig(Section):
    """Names of the training, validation and test splits in the labelled data; null: none."""

    train: Name = "train"
    validation: Name | None = "validation"
    test: Name | None = "test"


class LabelledConfig(DecodingConfig):
    """Labelled Parquet, as written by `cvbatch import`."""

    uri: Uris
    splits: SplitsConfig = SplitsConfig()
    unlabelled: Literal["refuse", "skip"] = "refuse"  # images without labels of the task
    max_bytes: int = Field(256 << 20, ge=1)  # of one encoded image
    max_pixels: int = Field(100_000_000, ge=1)  # of one decoded image


class TrainModelConfig(Section):
    """The network to train, and its task."""

    added_keys: ClassVar[tuple[str, ...]] = ("output", "activation", "trust")

    task: Task
    model: Name
    weights: Name | None = None
    sha256: Sha256 | None = None  # of the model file, or else of the weights file
    build: dict[str, Any] | None = None  # build options of a zoo network
    trust: ModuleNames = Field(default_factory=list)  # installed modules whose classes may be built
    image_size: Size | None = None
    resize: ResizeMode = "stretch"
    multi_label: bool = False
    output: Name | None = None  # name of the output to train, if the network has several
    # still to be applied to the scores of the network, as in predictions
    activation: Activation = "auto"
    anchors: Annotated[int, Field(ge=0, le=20)] = (
        5  # fitted to the boxes; 0: use the network's anchors
    )

    @model_validator(mode="after")
    def _check_weights(self) -> TrainModelConfig:
        check_model(self.model, self.weights, self.build)
        if message := not_keras_error(self.model):
            raise ValueError(message)
        if self.image_size is not None and not self.is_built_in:
            raise ValueError(own_weights_error("image_size", self.model))
        check_sha256(self.sha256, self.model, self.weights)
        if not TASKS[self.task].label_column:
            raise ValueError(
                f"task {self.task}: such networks are not trained; train the network with Keras, "
                "and predict with its .keras file"
            )
        if self.multi_label and self.task != "classification":
            raise ValueError(f"multi_label is about classification, not {self.task}; remove it")
        return self

    @property
    def is_built_in(self) -> bool:
        """Return whether the network is one of the zoo."""
        return format_of(self.model).key == "zoo"

    @property
    def fits_anchors(self) -> bool:
        """Return whether anchors are fitted to the boxes of the training data."""
        is_new = self.model == "yolo" and self.weights == "random"
        return is_new and bool(self.anchors) and "anchors" not in (self.build or {})


class AugmentConfig(Section):
    """Random augmentation of training images; the defaults change nothing."""

    flip: Literal["none", "horizontal", "vertical", "both"] = "none"
    rotation: float = Field(0.0, ge=0, le=0.5)  # maximum, as a fraction of a full turn
    zoom: float = Field(0.0, ge=0, le=0.9)  # maximum, as a fraction of the image
    translation: float = Field(0.0, ge=0, le=1)  # maximum, as a fraction of the image
    brightness: Fraction = 0.0  # maximum, as a fraction of 255
    contrast: Fraction = 0.0  # maximum relative change


class LossConfig(Section):
    """Loss of class scores: cross-entropy, or focal loss."""

    name: Literal["cross_entropy", "focal"] = "cross_entropy"
    gamma: Annotated[float | None, Field(ge=0, le=10)] = None  # of focal; None: 2
    label_smoothing: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_gamma(self) -> LossConfig:
        if self.gamma is not None and self.name != "focal":
            raise ValueError(
                f"gamma belongs to the focal loss, not to {self.name}; set name: focal"
            )
        return self


class PlateauConfig(Section):
    """Of schedule plateau: when and how far the learning rate falls, as in ReduceLROnPlateau."""

    factor: float = Field(0.1, gt=0, lt=1)  # of each reduction
    patience: int = Field(10, ge=1)  # epochs without improvement before a reduction
    min_delta: float = Field(1e-4, ge=0)  # smallest change of the metric that is an improvement
    cooldown: int = Field(0, ge=0)  # epochs after a reduction that are not counted
    min_rate: float = Field(0.0, ge=0)  # smallest learning rate


class TrainingConfig(Section):
    """Hyperparameters."""

    added_keys: ClassVar[tuple[str, ...]] = ("loss", "plateau")

    recipe: Literal["scratch", "features", "frozen", "finetune"] = "finetune"
    epochs: int = Field(10, ge=1, le=100_000)
    head_epochs: int = Field(2, ge=0, le=100_000)  # of finetune: epochs with a frozen backbone
    unfreeze: Name = "last_block"  # of finetune: last_block, all, or the first trainable layer
    batch_size: int = Field(16, ge=1, le=4096)  # per worker
    accumulate: int = Field(1, ge=1, le=1024)  # gradient accumulation: batches per step
    learning_rate: float = Field(1e-3, gt=0)
    base_learning_rate: float | None = Field(None, gt=0)  # of finetune, after head_epochs
    optimizer: OptimizerName = "adamw"
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    schedule: ScheduleName = "cosine"
    plateau: PlateauConfig = PlateauConfig()
    warmup: Fraction = 0.05  # fraction of the steps of a phase
    clip_norm: float | None = Field(None, gt=0)
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"
    augment: AugmentConfig = AugmentConfig()
    # of detection: multi-scale training, another input size every ten steps
    image_sizes: Annotated[list[Size], Field(min_length=1)] | None = None
    class_weights: ClassWeights | None = None  # of classification and segmentation
    loss: LossConfig = LossConfig()  # of classification and segmentation
    ignored_class: Annotated[int | None, Field(ge=0, lt=MAX_MASK_CLASSES)] = None  # of segmentation
    metric: Name | None = None  # selects the best checkpoint; None: the task's first metric
    patience: int | None = Field(None, ge=1)  # early stopping, in epochs; None: off
    keep: int = Field(2, ge=1, le=1000)  # number of checkpoints
    checkpoint_steps: int | None = Field(None, ge=1)  # steps between checkpoints; None: per epoch
    shuffle_images: int = Field(4096, ge=1)  # size of the shuffle buffer
    seed: int = Field(0, ge=0, lt=2**31)

    @property
    def has_augmentation(self) -> bool:
        """Return whether training images are augmented."""
        return self.augment != AugmentConfig()

    @property
    def num_epochs(self) -> int:
        """Return the number of epochs of all phases."""
        return self.epochs + (self.head_epochs if self.recipe == "finetune" else 0)

    @model_validator(mode="after")
    def _check_features_recipe(self) -> TrainingConfig:
        for key, is_set in (("augment", self.has_augmentation), ("image_sizes", self.image_sizes)):
            if self.recipe == "features" and is_set:
                raise ValueError(
                    f"{key} does not go with recipe: features, which computes the features of each "
                    "image once; set recipe: frozen"
                )
        return self

    @model_validator(mode="after")
    def _check_plateau(self) -> TrainingConfig:
        if self.schedule != "plateau":
            if self.plateau != PlateauConfig():
                raise ValueError(
                    f"plateau does not go with schedule: {self.schedule}; set schedule: plateau"
                )
        elif self.patience is not None and self.patience <= self.plateau.patience:
            raise ValueError(
                f"patience {self.patience} ends a phase before the learning rate falls after "
                f"plateau.patience {self.plateau.patience} epochs; raise patience or lower "
                "plateau.patience"
            )
        return self


class TrainingRunConfig(RetryConfig):
    """Resources; they change the weights only by the total batch size of all workers."""

    workers: Annotated[int | None, Field(ge=1), Auto] = None
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: Annotated[float | None, Field(ge=0), Auto] = None
    worker_memory_bytes: Annotated[int | None, Field(ge=1), Auto] = None
    max_failures: int = Field(3, ge=0)  # worker failures that a run tolerates


class TrainJob(Section):
    """A training job."""

    source: LabelledConfig
    sink: SinkConfig
    model: TrainModelConfig
    training: TrainingConfig = TrainingConfig()
    run: TrainingRunConfig = TrainingRunConfig()

    @model_validator(mode="after")
    def _check_task_keys(self) -> TrainJob:
        for path, tasks in _TASKS_OF_KEY.items():
            section, _, key = path.partition(".")
            values = getattr(self, section)
            is_set = getattr(values, key) != type(values).model_fields[key].default
            if is_set and self.model.task not in tasks:
                raise ValueError(
                    f"{path} is about {' and '.join(tasks)}, not {self.model.task}; remove it"
                )
        return self

    @model_validator(mode="after")
    def _check_balanced(self) -> TrainJob:
        has_one_label = self.model.task == "classification" and not self.model.multi_label
        if self.training.class_weights == "balanced" and not has_one_label:
            raise ValueError(
                "training.class_weights: balanced counts the images of each class, so it needs one "
                "label per image; set the weights by name, such as {cat: 2.0}"
            )
        return self


# Like `load_job` and `parse_job` of cvbatch.config.loader, with the same errors.
load_training = partial(load, TrainJob)
parse_training = partial(parse, TrainJob)


def fingerprint(job: TrainJob, identities: Sequence[str]) -> str:
    """Return the SHA-256 (hex) of everything that changes the weights but the number of workers.

    Args:
        identities: content hashes of the data and of the model.
    """
    payload = {
        "version": TRAINING_VERSION,
        "source": job.source.model_dump(mode="json", exclude={"uri"}),
        "model": job.model.model_dump(mode="json", exclude={"sha256"}),
        "training": job.training.model_dump(mode="json", exclude={"keep", "checkpoint_steps"}),
        "identities": list(identities),
    }
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()
