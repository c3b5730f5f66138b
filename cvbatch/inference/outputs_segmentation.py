"""Outputs of the serving graph for segmentation: masks and probabilities; imports TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvbatch.config.models import Activation, SegmentationConfig
from cvbatch.core.errors import ModelError
from cvbatch.core.types import MAX_MASK_CLASSES
from cvbatch.inference.activation import with_activation
from cvbatch.inference.forward_pass import ForwardPass, Tensors
from cvbatch.models.frameworks import tf
from cvbatch.models.outputs import select_output


def maps_output(config: SegmentationConfig, outputs: Mapping[str, Any]) -> Any:
    """Return the output (B, h, w, units) of class maps. Raises ModelError if it is not unique."""
    expected = "one output of class scores per pixel (B, height, width, classes)"
    return select_output("segmentation", expected, outputs, config.output, 4)


def count_classes(config: SegmentationConfig, outputs: Mapping[str, Any]) -> int:
    """Return the number of classes. Raises ModelError if a mask cannot hold them."""
    units = int(maps_output(config, outputs).shape[-1])
    if units > MAX_MASK_CLASSES:
        raise ModelError(
            f"model {config.model!r} has {units} classes; an 8-bit mask allows {MAX_MASK_CLASSES}"
        )
    return 2 if units == 1 else units


def compute(forward: ForwardPass) -> Tensors:
    """Return mask (B, H, W) uint8, and with tiles: probabilities (B, H, W, C)."""
    maps = maps_output(forward.config, forward.outputs)
    if tuple(maps.shape[1:3]) != forward.input_hw:  # the network has an output stride
        maps = tf.image.resize(maps, forward.input_hw)
    results = {"mask": _mask(maps, forward.activation)}
    if forward.config.tiles is not None:
        results["probabilities"] = _map_probabilities(maps, forward.activation)
    return results


def _mask(
    maps: tf.Tensor,  # (B, H, W, units)
    activation: Activation,
) -> tf.Tensor:  # (B, H, W) uint8
    if maps.shape[3] > 1:
        return tf.cast(tf.argmax(maps, axis=-1, output_type=tf.int32), tf.uint8)
    return tf.cast(maps[..., 0] > (0.5 if activation == "none" else 0), tf.uint8)


def _map_probabilities(
    maps: tf.Tensor,  # (B, H, W, units)
    activation: Activation,
) -> tf.Tensor:  # (B, H, W, C)
    """Return the probability of every class at each pixel, so that tiles can be averaged."""
    positive = with_activation(maps, activation)
    if maps.shape[3] > 1:
        return positive
    return tf.concat([1 - positive, positive], axis=3)
