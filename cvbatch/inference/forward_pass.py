"""One model traced on a batch, as the functions of every task see it; imports TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from cvbatch.config.models import Activation
from cvbatch.inference import gradcam
from cvbatch.models.frameworks import tf

Tensors = dict[str, tf.Tensor]
MaskValues = Literal["logits", "probabilities"]


@dataclass
class ForwardPass:
    """One model traced on a batch of B images.

    Attributes:
        config: the model's section of the job file.
        input_hw: height and width of the network's input in pixels.
        outputs: the network's outputs by name.
        calls: recorded calls of its layers.
        activation: still to be applied to the scores; never auto.
        mask_values: what the masks of boxes are, if the job stores them.
        heatmap_layer: path of the layer whose feature map is explained; set by the computation of
            heatmaps.
        dimension: numbers of the vector of an image; set by the computation of vectors.
        vector_source: where they are in the network, for the log; set with `dimension`.
    """

    config: Any
    input_hw: tuple[int, int]
    outputs: Tensors
    calls: gradcam.Calls
    activation: Activation
    mask_values: MaskValues = "logits"
    heatmap_layer: str = ""
    dimension: int = 0
    vector_source: str = ""
