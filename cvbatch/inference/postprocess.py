"""Table of post-processing functions by task: outputs of a program to predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from cvbatch.core.tasks import Task
from cvbatch.core.types import ModelPredictions
from cvbatch.inference import (
    postprocess_classification,
    postprocess_detection,
    postprocess_localization,
    postprocess_segmentation,
    postprocess_vectors,
)


def tiles_unsupported(*_: object) -> ModelPredictions:
    """Raise: `merge` of a task whose section in the job file has no `tiles`."""
    raise NotImplementedError("this task does not support tiles")


class Postprocessor(NamedTuple):
    """Functions that turn outputs of a task into ModelPredictions.

    Attributes:
        read: function of (config, spec, outputs, image_index, placements) for K images that are
            not tiled.
        merge: function of (config, spec, tiles, placements, position) for one image that is tiled.
    """

    read: Callable[..., ModelPredictions]
    merge: Callable[..., ModelPredictions] = tiles_unsupported


POSTPROCESSORS: dict[Task, Postprocessor] = {
    "classification": Postprocessor(
        postprocess_classification.read_outputs, postprocess_classification.merge_tiles
    ),
    "segmentation": Postprocessor(
        postprocess_segmentation.read_outputs, postprocess_segmentation.merge_tiles
    ),
    "detection": Postprocessor(
        postprocess_detection.read_outputs, postprocess_detection.merge_tiles
    ),
    "localization": Postprocessor(postprocess_localization.read_outputs),
    "embedding": Postprocessor(postprocess_vectors.read_outputs),
    "regression": Postprocessor(postprocess_vectors.read_outputs),
}
