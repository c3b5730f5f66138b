"""Class weights of a job, as one number per class of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cvbatch.config.train import TrainJob
from cvbatch.core.errors import ConfigError
from cvbatch.core.suggestions import hint
from cvbatch.datasets.reader import LabelledDataset, count_labels
from cvbatch.storage.store import Storage


def with_class_weights(storage: Storage, job: TrainJob, data: LabelledDataset) -> TrainJob:
    """Return the job with class weights as a list, in the order of the data's classes.

    Args:
        storage: reads the label column of the training images, for balanced weights.
        job: the training job.
        data: its classes and splits.

    Raises:
        ConfigError: a weight is for a class that the data does not have.
    """
    weights = job.training.class_weights
    if weights is None or isinstance(weights, list):
        return job
    if isinstance(weights, dict):
        values = weights_by_class(weights, data.classes)
    else:
        values = balanced_weights(count_labels(storage, data.splits["train"], len(data.classes)))
    training = job.training.model_copy(update={"class_weights": values})
    return job.model_copy(update={"training": training})


def weights_by_class(weights: Mapping[str, float], classes: Sequence[str]) -> list[float]:
    """Return the weight of each class; 1 for those that are not named.

    Raises:
        ConfigError: a name is not among the classes.
    """
    for name in weights:
        if name not in classes:
            raise ConfigError(
                f"training.class_weights: the data has no class {name!r}; {hint(name, classes)}"
            )
    return [weights.get(name, 1.0) for name in classes]


def balanced_weights(counts: np.ndarray) -> list[float]:  # (C,) int
    """Return n / (k · n_c) for each class; 1 for classes without images.

    n is the number of images, n_c that of images of class c, and k the number of classes with
    images. The mean weight of an image is 1.

    Source:
        "balanced" of scikit-learn's `compute_class_weight`.
    """
    has_images = counts > 0
    weights = counts.sum() / (has_images.sum() * np.maximum(counts, 1))
    return [float(weight) for weight in np.where(has_images, weights, 1.0)]
