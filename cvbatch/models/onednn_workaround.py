"""Avoid a memory corruption bug of oneDNN, the convolution library of TensorFlow on CPUs.

The gradients of a 1×1 convolution with strides and fewer than 16 input channels are written past
the end of a buffer (oneDNN issue 6035, open; reproduced with TensorFlow 2.21 and 4 to 15 channels):
another array is overwritten, or the process crashes later. Slicing every stride-th pixel first and
then convolving without strides gives the same result, and its gradient has no such bug.
"""

from __future__ import annotations

from typing import Any

from cvbatch.models.frameworks import keras, layers, ops

_BLOCK_CHANNELS = 16  # of oneDNN; layers with at least as many input channels are not affected


def avoid_onednn_bug(model: keras.Model) -> keras.Model:
    """Replace the affected convolutions of a model in place, and return the model.

    Saved files do not change: a model that is loaded or cloned needs the call again.
    """
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            avoid_onednn_bug(layer)
        elif _is_affected(layer):
            layer.convolution_op = _slice_then_convolve(layer)
    return model


def _is_affected(layer: keras.Layer) -> bool:
    return (
        isinstance(layer, layers.Conv2D)
        and layer.kernel_size == (1, 1)
        and layer.strides != (1, 1)
        and layer.kernel.shape[2] < _BLOCK_CHANNELS
        and layer.data_format == "channels_last"
    )


def _slice_then_convolve(layer: keras.layers.Conv2D) -> Any:
    rows, columns = layer.strides

    def convolve(x: Any, kernel: Any) -> Any:  # (B, H, W, C), (1, 1, C, F) → (B, ⌈H/s⌉, ⌈W/s⌉, F)
        return ops.conv(x[:, ::rows, ::columns], kernel, strides=1, padding="valid")

    return convolve
