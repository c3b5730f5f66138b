"""Table of the serving graph's outputs by task: number of classes, and tensors by name.

Imports TensorFlow: only processes that compile or inspect a network use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cvbatch.core.tasks import Task
from cvbatch.inference import (
    outputs_classification,
    outputs_detection,
    outputs_embedding,
    outputs_localization,
    outputs_regression,
    outputs_segmentation,
)
from cvbatch.inference.forward_pass import ForwardPass, Tensors


class GraphOutputs(NamedTuple):
    """Functions that turn the outputs of a network into those of a task.

    Attributes:
        num_classes: function of (config, outputs by name), None if the outputs do not tell; raises
            ModelError if the outputs do not fit the task.
        scores: function of (config, outputs by name) that returns the scores, to which an
            activation may still have to be applied; None for numbers that are not scores.
        compute: function of a ForwardPass that returns the tensors by name that
            `cvbatch.inference.postprocess` expects.
    """

    num_classes: Callable[[Any, Mapping[str, Any]], int | None]
    scores: Callable[[Any, Mapping[str, Any]], Any] | None
    compute: Callable[[ForwardPass], Tensors]


GRAPH_OUTPUTS: dict[Task, GraphOutputs] = {
    "classification": GraphOutputs(
        outputs_classification.count_classes,
        outputs_classification.scores_output,
        outputs_classification.compute,
    ),
    "segmentation": GraphOutputs(
        outputs_segmentation.count_classes,
        outputs_segmentation.maps_output,
        outputs_segmentation.compute,
    ),
    "detection": GraphOutputs(
        outputs_detection.count_classes,
        outputs_detection.raw_scores,
        outputs_detection.compute,
    ),
    "localization": GraphOutputs(
        outputs_localization.count_classes,
        outputs_localization.raw_scores,
        outputs_localization.compute,
    ),
    "embedding": GraphOutputs(outputs_embedding.check_output, None, outputs_embedding.compute),
    "regression": GraphOutputs(outputs_regression.count_values, None, outputs_regression.compute),
}
