"""Class weights of a job, as one number per class of the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cvbatch.config.base import index_of_class
from cvbatch.config.train import TrainJob


def with_class_weights(job: TrainJob, classes: Sequence[str], counts: np.ndarray) -> TrainJob:
    """Return the job with class weights as a list, in the order of the data's classes.

    Args:
        job: the training job.
        classes: class names of the data.
        counts: (C,) training examples of each class, for balanced weights.

    Raises:
        ConfigError: a weight is for a class that the data does not have.
    """
    weights = job.training.class_weights
    if weights is None or isinstance(weights, list):
        return job
    if isinstance(weights, dict):
        for name in weights:
            index_of_class(name, classes, "training.class_weights")
        values = [weights.get(name, 1.0) for name in classes]
    else:
        is_ignored = np.arange(len(classes)) == job.training.ignored_class
        power = {"balanced": 1.0, "sqrt_balanced": 0.5}[weights]
        values = balanced_weights(np.where(is_ignored, 0, counts), power)
    training = job.training.model_copy(update={"class_weights": values})
    return job.model_copy(update={"training": training})


def with_ignored_class(job: TrainJob, classes: Sequence[str]) -> TrainJob:
    """Return the job with the index of `ignored_class` in place of its name.

    An index stays, also of no class: masks may have a value that means unknown.

    Raises:
        ConfigError: no class has that name.
    """
    ignored = job.training.ignored_class
    if not isinstance(ignored, str):
        return job
    index = index_of_class(ignored, classes, "training.ignored_class")
    training = job.training.model_copy(update={"ignored_class": index})
    return job.model_copy(update={"training": training})


def balanced_weights(
    counts: np.ndarray,  # (C,) int, not all 0
    power: float = 1.0,
) -> list[float]:
    """Return weights proportional to counts^−power; 1 for classes without examples.

    The mean weight of an example, which is an image, a box or a pixel, is 1.

    Source:
        "balanced" of scikit-learn's `compute_class_weight`, for a power of 1.
    """
    occurs = counts > 0
    weights = np.where(occurs, np.maximum(counts, 1.0) ** -power, 0.0)
    weights *= counts.sum() / np.dot(weights, counts)
    return [float(weight) for weight in np.where(occurs, weights, 1.0)]
