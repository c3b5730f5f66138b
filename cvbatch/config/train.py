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
    ClassRef,
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
from cvbatch.config.loader import parse
from cvbatch.config.models import Activation
from cvbatch.core.model_formats import format_of, not_keras_error, own_weights_error
from cvbatch.core.tasks import TASKS, Task
from cvbatch.core.types import ResizeMode

TRAINING_VERSION = 1
OptimizerName = Literal["sgd", "adam", "adamw", "rmsprop"]
ScheduleName = Literal["constant", "cosine", "step", "linear", "plateau"]
# Keys of the sections model and training that only some tasks have.
_CLASS_SCORES: tuple[Task, ...] = ("classification", "segmentation")
_TASKS_OF_KEY: dict[str, tuple[Task, ...]] = {
    "model.output": _CLASS_SCORES,
    "model.activation": _CLASS_SCORES,
    "training.loss": _CLASS_SCORES,
    "training.loss.dice": ("segmentation",),
    "training.ignored_class": ("segmentation",),
    "training.image_sizes": ("detection",),
}
# Defaults of the other recipes, where they differ from those of finetune.
_RECIPE_DEFAULTS: dict[str, dict[str, Any]] = {
    "scratch": {"epochs": 10, "head_epochs": 2, "learning_rate": 1e-3},
}
_Weight = Annotated[float, Field(ge=0)]
# Weight of each class: by name (others: 1), one per class in the order of the data, or from the
# number of examples n of each class: 1 / n, or 1 / √n.
# The tags keep errors about a value to the form that it has.
ClassWeights = Annotated[
    Annotated[Literal["balanced", "sqrt_balanced"], Tag("text")]
    | Annotated[dict[str, _Weight], Tag("by_name")]
    | Annotated[list[_Weight], Tag("by_class")],
    Discriminator(
        lambda value: {dict: "by_name", list: "by_class"}.get(type(value), "text"),
    ),
]


class SplitsConfig(Section):
    """Names of the training, validation and test splits in the labelled data; null: none."""

    train: Name = "train"
    """Name of the split for training."""
    validation: Name | None = "validation"
    """Of the split that selects the best epoch; null: none."""
    test: Name | None = "test"
    """Of the split for the final metrics; null: none."""


class LabelledConfig(DecodingConfig):
    """Labelled Parquet, as written by `cvbatch import`."""

    uri: Uris
    """Labelled Parquet: a folder, a file, or a list of them."""
    splits: SplitsConfig = SplitsConfig()
    """Names of the splits in the data."""
    unlabelled: Literal["refuse", "skip"] = "refuse"
    """What happens to images without labels of the task: the job is refused, or they are left
    out."""
    max_bytes: int = Field(256 << 20, ge=1)
    """Maximum size of one encoded image; a larger one is left out."""
    max_pixels: int = Field(100_000_000, ge=1)
    """Maximum pixels of one image; a larger one is left out."""


class TrainModelConfig(Section):
    """The network to train, and its task."""

    added_keys: ClassVar[tuple[str, ...]] = ("output", "activation", "trust")

    task: Task
    """classification, segmentation, localization or detection."""
    model: Name
    """Name of the zoo or of keras.applications, or path or URI of a .keras file."""
    weights: Name | None = None
    """imagenet, demo, random, or a weights file; absent for a .keras file."""
    sha256: Sha256 | None = None
    """Expected hash of the model file, or else of the weights file: 64 hex digits."""
    build: dict[str, Any] | None = None
    """Options of a zoo network, such as backbone or width."""
    trust: ModuleNames = Field(default_factory=list)
    """Installed modules whose registered layers may be built from the file."""
    image_size: Size | None = None
    """[height, width] of the input of a zoo network, or one number; null: its default."""
    resize: ResizeMode = "stretch"
    """How images are brought to the input size."""
    multi_label: bool = False
    """Of classification: an image may have several classes."""
    output: Name | None = None
    """Name of the output to train, if the network has several."""
    activation: Activation = "auto"
    """What is still to be applied to the scores, as in predictions."""
    anchors: Annotated[int, Field(ge=0, le=20)] = 5
    """Of a new yolo: number of anchors fitted to the boxes; 0: the network's own."""

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
    """Mirror images at random."""
    rotation: float = Field(0.0, ge=0, le=0.5)
    """Maximum, as a fraction of a full turn."""
    zoom: float = Field(0.0, ge=0, le=0.9)
    """Maximum, as a fraction of the image."""
    translation: float = Field(0.0, ge=0, le=1)
    """Maximum, as a fraction of the image."""
    brightness: Fraction = 0.0
    """Maximum, as a fraction of 255."""
    contrast: Fraction = 0.0
    """Maximum relative change."""


class LossConfig(Section):
    """Loss of class scores: cross-entropy or focal loss, and a Dice loss."""

    added_keys: ClassVar[tuple[str, ...]] = ("dice",)

    name: Literal["cross_entropy", "focal"] = "cross_entropy"
    """Cross-entropy, or focal loss."""
    gamma: Annotated[float | None, Field(ge=0, le=10)] = None
    """Of focal; null: 2."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Part of the target that is spread over all classes."""
    dice: float = Field(0.0, ge=0)
    """Of segmentation: weight of a Dice loss that is added; 0: none."""

    @model_validator(mode="after")
    def _check_gamma(self) -> LossConfig:
        if self.gamma is not None and self.name != "focal":
            raise ValueError(
                f"gamma belongs to the focal loss, not to {self.name}; set name: focal"
            )
        return self


class PlateauConfig(Section):
    """Of schedule plateau: when and how far the learning rate falls, as in ReduceLROnPlateau."""

    factor: float = Field(0.1, gt=0, lt=1)
    """Factor of each reduction."""
    patience: int = Field(10, ge=1)
    """Epochs without improvement before a reduction."""
    min_delta: float = Field(1e-4, ge=0)
    """Smallest change of the metric that is an improvement."""
    cooldown: int = Field(0, ge=0)
    """Epochs after a reduction that are not counted."""
    min_rate: float = Field(0.0, ge=0)
    """Smallest learning rate."""


class TrainingConfig(Section):
    """Hyperparameters."""

    added_keys: ClassVar[tuple[str, ...]] = ("loss", "plateau")

    recipe: Literal["scratch", "features", "frozen", "finetune"] = "finetune"
    """scratch: all layers; finetune: the head, then the base; frozen: only the head; features:
    likewise, the base computed once per image."""
    epochs: int = Field(20, ge=1, le=100_000)
    """Number of epochs; of finetune: after those of the head. The default of scratch is 10."""
    head_epochs: int = Field(20, ge=0, le=100_000)
    """Of finetune: epochs with a frozen base."""
    unfreeze: Name = "last_block"
    """Of finetune: last_block, all, or the name of the first layer to train."""
    batch_size: int = Field(16, ge=1, le=4096)
    """Images per batch and worker."""
    accumulate: int = Field(1, ge=1, le=1024)
    """Batches per worker and step (gradient accumulation)."""
    learning_rate: Annotated[float | None, Field(gt=0), Auto] = None
    """Learning rate after the warm-up, the highest of a phase; auto: 0.01 where only a head of
    one layer is trained (with rmsprop 0.001), otherwise 0.001."""
    base_learning_rate: Annotated[float | None, Field(gt=0), Auto] = None
    """Of finetune, once the base is trained too; auto: a tenth of `learning_rate`."""
    optimizer: OptimizerName = "adamw"
    """Optimizer, as in Keras."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of sgd and rmsprop."""
    weight_decay: float = Field(1e-4, ge=0)
    """Decoupled weight decay of adamw and sgd."""
    schedule: ScheduleName = "cosine"
    """Learning rate over the steps of a phase."""
    plateau: PlateauConfig = PlateauConfig()
    """Of schedule plateau."""
    warmup: Fraction = 0.05
    """Fraction of the steps of a phase in which the learning rate rises."""
    clip_norm: float | None = Field(None, gt=0)
    """Maximum global norm of the gradients; null: off."""
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"
    """Precision of the computation; weights and model.keras are float32."""
    augment: AugmentConfig = AugmentConfig()
    """Random augmentation of the training images."""
    image_sizes: Annotated[list[Size], Field(min_length=1)] | None = None
    """Of detection: input sizes that change every ten steps."""
    class_weights: ClassWeights | None = None
    """From the number of examples of each class: balanced, sqrt_balanced; or {NAME: weight}, or one
    per class; null: all are 1."""
    loss: LossConfig = LossConfig()
    """Loss of classification and segmentation."""
    ignored_class: ClassRef | None = None
    """Of segmentation: class whose pixels are ignored, by name or by id in the masks."""
    metric: Name | None = None
    """Metric that selects the best epoch; null: the task's default."""
    patience: int | None = Field(None, ge=1)
    """Epochs without improvement before a phase ends (early stopping); null: off."""
    keep: int = Field(2, ge=1, le=1000)
    """Number of checkpoints to keep."""
    checkpoint_steps: int | None = Field(None, ge=1)
    """Extra checkpoint every N steps; null: one per epoch."""
    shuffle_images: int = Field(4096, ge=1)
    """Minimum size of the shuffle buffer, in images."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of order, augmentation and new weights."""

    @model_validator(mode="before")
    @classmethod
    def _with_recipe_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return _RECIPE_DEFAULTS.get(str(values.get("recipe")), {}) | values

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
    """Number of workers; auto: one per GPU, or per `cpus_per_worker` CPUs."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """CPUs of one worker."""
    gpus_per_worker: Annotated[float | None, Field(ge=0), Auto] = None
    """GPUs of one worker; auto: 1 if the cluster has GPUs."""
    worker_memory_bytes: Annotated[int | None, Field(ge=1), Auto] = None
    """Memory of one worker; auto: its share of the node or GPU."""
    max_failures: int = Field(3, ge=0)
    """Worker failures that a run tolerates."""


class TrainJob(Section):
    """A training job."""

    source: LabelledConfig
    """Labelled images."""
    sink: SinkConfig
    """Where the model and its metrics are written."""
    model: TrainModelConfig
    """Network and task."""
    training: TrainingConfig = TrainingConfig()
    """Hyperparameters."""
    run: TrainingRunConfig = TrainingRunConfig()
    """Resources and limits."""

    @model_validator(mode="after")
    def _check_task_keys(self) -> TrainJob:
        for path, tasks in _TASKS_OF_KEY.items():
            *sections, key = path.split(".")
            values: Any = self
            for section in sections:
                values = getattr(values, section)
            is_set = getattr(values, key) != type(values).model_fields[key].default
            if is_set and self.model.task not in tasks:
                raise ValueError(
                    f"{path} is about {' and '.join(tasks)}, not {self.model.task}; remove it"
                )
        return self

    @model_validator(mode="after")
    def _check_balanced(self) -> TrainJob:
        weights = self.training.class_weights
        if isinstance(weights, str) and self.model.multi_label:
            raise ValueError(
                f"training.class_weights: {weights} needs classes that exclude each other, not "
                "multi_label: true; set the weights by name, such as {cat: 2.0}"
            )
        return self


parse_training = partial(parse, TrainJob)


def fingerprint(job: TrainJob, identities: Sequence[str]) -> str:
    """Return the SHA-256 (hex) of everything that changes the weights but the number of workers.

    Args:
        identities: content hashes of the data and of the model.
    """
    training = job.training.model_dump(mode="json", exclude={"keep", "checkpoint_steps"})
    if job.training.recipe == "finetune" and job.training.base_learning_rate is None:
        # Before, null was a hundredth of it, and jobs had the same fingerprint.
        training["base_learning_rate"] = "learning_rate / 10"
    payload = {
        "version": TRAINING_VERSION,
        "source": job.source.model_dump(mode="json", exclude={"uri"}),
        "model": job.model.model_dump(mode="json", exclude={"sha256"}),
        "training": training,
        "identities": list(identities),
    }
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()
