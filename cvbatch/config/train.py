"""The training job's file: what may stand in it, with every fault told before anything starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cvbatch.config.base import (
    Auto,
    Fraction,
    Name,
    RetryConfig,
    Section,
    Sha256,
    SinkConfig,
    Size,
    Uris,
    check_sha256,
)
from cvbatch.config.loader import load, parse
from cvbatch.core.tasks import Task
from cvbatch.core.types import MAX_MASK_CLASSES, ResizeMode

TRAINING_VERSION = 1
OptimizerName = Literal["sgd", "adam", "adamw", "rmsprop"]
ScheduleName = Literal["constant", "cosine", "step", "linear"]
# Keys of the training section that only one task knows.
_KEYS_OF_ONE_TASK: dict[str, Task] = {
    "class_weights": "segmentation",
    "ignored_class": "segmentation",
    "image_sizes": "detection",
}


class SplitsConfig(Section):
    """What the labelled data call the images to learn, to choose and to judge by; null: none."""

    train: Name = "train"
    validation: Name | None = "validation"
    test: Name | None = "test"


class LabelledConfig(Section):
    """Labelled Parquet, as `cvbatch import` writes it."""

    uri: Uris
    splits: SplitsConfig = SplitsConfig()
    unlabelled: Literal["refuse", "skip"] = "refuse"  # images that lack the task's labels
    max_bytes: int = Field(256 << 20, ge=1)
    max_pixels: int = Field(100_000_000, ge=1)


class TrainModelConfig(Section):
    """The network that learns, and what."""

    task: Task
    model: Name
    weights: Name | None = None
    sha256: Sha256 | None = None  # what the .keras file, or else the weights file, must have
    build: dict[str, Any] | None = None
    image_size: Size | None = None
    resize: ResizeMode = "stretch"
    multi_label: bool = False
    anchors: Annotated[int, Field(ge=0, le=20)] = 5  # fitted to the boxes; 0: those of the network

    @model_validator(mode="after")
    def _weights_said(self) -> TrainModelConfig:
        is_file = self.model.endswith(".keras")
        if self.weights is None and not is_file:
            raise ValueError(
                f"weights are missing for model {self.model!r}: say imagenet, demo, a path or URI, "
                "or random to begin with none"
            )
        for key in ("weights", "build", "image_size"):
            if is_file and getattr(self, key) is not None:
                raise ValueError(
                    f"{key} for {self.model!r}: a .keras file is a whole network with its weights; "
                    f"leave {key} out"
                )
        check_sha256(self.sha256, self.model, self.weights)
        if self.multi_label and self.task != "classification":
            raise ValueError("multi_label is about classification; leave it out")
        return self

    @property
    def fits_anchors(self) -> bool:
        """Say whether the boxes' shapes are found from the data."""
        is_new = not self.model.endswith(".keras") and self.weights == "random"
        return self.model == "yolo" and is_new and bool(self.anchors) and not self._said_anchors

    @property
    def _said_anchors(self) -> bool:
        return bool(self.build and "anchors" in self.build)


class AugmentConfig(Section):
    """How much the images of a step are varied; all 0 is not at all."""

    flip: Literal["none", "horizontal", "vertical", "both"] = "none"
    rotation: float = Field(0.0, ge=0, le=0.5)
    zoom: float = Field(0.0, ge=0, le=0.9)
    translation: float = Field(0.0, ge=0, le=1)
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0


class TrainingConfig(Section):
    """How the network learns."""

    recipe: Literal["scratch", "features", "frozen", "finetune"] = "finetune"
    epochs: int = Field(10, ge=1, le=100_000)
    head_epochs: int = Field(2, ge=0, le=100_000)  # of finetune, with the base frozen
    unfreeze: Name = "last_block"  # of finetune: or all, or the layer from which on all learn
    batch_size: int = Field(16, ge=1, le=4096)  # of each worker
    accumulate: int = Field(1, ge=1, le=1024)  # batches of a worker that make one step
    learning_rate: float = Field(1e-3, gt=0)
    base_learning_rate: float | None = Field(None, gt=0)  # of finetune, once the base learns
    optimizer: OptimizerName = "adamw"
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    schedule: ScheduleName = "cosine"
    warmup: Fraction = 0.05  # part of a phase's steps
    clip_norm: float | None = Field(None, gt=0)
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"
    augment: AugmentConfig = AugmentConfig()
    # of detection: the sizes that the input takes in turn, another every ten steps
    image_sizes: Annotated[list[Size], Field(min_length=1)] | None = None
    class_weights: list[Annotated[float, Field(ge=0)]] | None = None  # of segmentation
    ignored_class: Annotated[int | None, Field(ge=0, lt=MAX_MASK_CLASSES)] = None  # likewise
    metric: Name | None = None  # by which the best is chosen; None: the task's first
    patience: int | None = Field(None, ge=1)  # epochs without a better one; None: go to the end
    keep: int = Field(2, ge=1, le=1000)  # checkpoints
    checkpoint_steps: int | None = Field(None, ge=1)  # None: after every epoch only
    shuffle_images: int = Field(4096, ge=1)  # among how many an image may change place
    seed: int = Field(0, ge=0, lt=2**31)

    @property
    def has_augmentation(self) -> bool:
        """Say whether the images are varied."""
        return self.augment != AugmentConfig()

    @model_validator(mode="after")
    def _features_do_not_vary(self) -> TrainingConfig:
        for key, is_said in (("augment", self.has_augmentation), ("image_sizes", self.image_sizes)):
            if self.recipe == "features" and is_said:
                raise ValueError(
                    f"{key} does not go with recipe: features, which looks at every image once; "
                    "say recipe: frozen"
                )
        return self


class TrainingRunConfig(RetryConfig):
    """Where the work is done; it changes no weight but by the batch of all workers together."""

    workers: Annotated[int | None, Field(ge=1), Auto] = None
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: Annotated[float | None, Field(ge=0), Auto] = None
    worker_memory_bytes: Annotated[int | None, Field(ge=1), Auto] = None
    max_failures: int = Field(3, ge=0)  # lost workers that a run survives


class TrainJob(Section):
    """A training job."""

    source: LabelledConfig
    sink: SinkConfig
    model: TrainModelConfig
    training: TrainingConfig = TrainingConfig()
    run: TrainingRunConfig = TrainingRunConfig()

    @model_validator(mode="after")
    def _keys_of_the_task(self) -> TrainJob:
        for key, task in _KEYS_OF_ONE_TASK.items():
            if getattr(self.training, key) is not None and self.model.task != task:
                raise ValueError(
                    f"training.{key} is about {task}, not {self.model.task}; leave it out"
                )
        return self


# As `load_job` and `parse_job` of cvbatch.config.loader, which say what is refused.
load_training = partial(load, TrainJob)
parse_training = partial(parse, TrainJob)


def fingerprint(job: TrainJob, identities: Sequence[str]) -> str:
    """Return the SHA-256 (hex) of all that changes what is learnt but the number of workers.

    identities: of the data and of the model, beyond their names.
    """
    said = {
        "version": TRAINING_VERSION,
        "source": job.source.model_dump(mode="json", exclude={"uri"}),
        "model": job.model.model_dump(mode="json", exclude={"sha256"}),
        "training": job.training.model_dump(mode="json", exclude={"keep", "checkpoint_steps"}),
        "identities": list(identities),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
