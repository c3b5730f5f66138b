"""Keeps networks away from a fault of oneDNN, by which TensorFlow computes convolutions on CPUs.

The gradients of a 1×1 convolution with a stride and fewer than 16 input channels are written past
the end of a buffer (oneDNN issue 6035, open; shown with TensorFlow 2.21 and 4 to 15 channels):
another array is overwritten, or the process dies some networks later. Taking every stride-th pixel
first and convolving these without a stride is the same sum, and has no such gradient.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

_CHANNELS = 16  # in a block of oneDNN's; layers with as many are computed rightly


def avoid_onednn_bug(model: keras.Model) -> keras.Model:
    """Return the model, its narrow strided 1×1 convolutions computed the other way.

    In place, and nothing that is saved changes: a model that is loaded or cloned needs it again.
    """
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            avoid_onednn_bug(layer)
        elif _is_at_fault(layer):
            layer.convolution_op = _strided_first(layer)
    return model


def _is_at_fault(layer: keras.Layer) -> bool:
    return (
        isinstance(layer, layers.Conv2D)
        and layer.kernel_size == (1, 1)
        and layer.strides != (1, 1)
        and layer.kernel.shape[2] < _CHANNELS
        and layer.data_format == "channels_last"
    )


def _strided_first(layer: keras.layers.Conv2D) -> Any:
    down, across = layer.strides

    def convolve(x: Any, kernel: Any) -> Any:  # (B, H, W, C), (1, 1, C, F) → (B, ⌈H/s⌉, ⌈W/s⌉, F)
        return ops.conv(x[:, ::down, ::across], kernel, strides=1, padding="valid")

    return convolve
