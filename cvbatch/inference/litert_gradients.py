"""Gradients written with operations that LiteRT has, for layers between a map and its score.

TensorFlow's own gradients of relu and pooling are operations of their own (`ReluGrad`,
`MaxPoolGrad`, `AvgPoolGrad`) which LiteRT lacks. These compute the same values: a select, and
for pooling a one-hot of each window's first maximum, or equal shares. A graph traced under
`OVERRIDES` uses them.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf


@tf.RegisterGradient("CvbatchRelu")
def _relu(op: Any, gradient: tf.Tensor) -> tf.Tensor:
    return tf.where(op.inputs[0] > 0, gradient, tf.zeros_like(gradient))


@tf.RegisterGradient("CvbatchRelu6")
def _relu6(op: Any, gradient: tf.Tensor) -> tf.Tensor:
    inside = tf.logical_and(op.inputs[0] > 0, op.inputs[0] < 6)
    return tf.where(inside, gradient, tf.zeros_like(gradient))


@tf.RegisterGradient("CvbatchLeakyRelu")
def _leaky_relu(op: Any, gradient: tf.Tensor) -> tf.Tensor:
    return tf.where(op.inputs[0] > 0, gradient, gradient * op.get_attr("alpha"))


@tf.RegisterGradient("CvbatchElu")
def _elu(op: Any, gradient: tf.Tensor) -> tf.Tensor:
    return tf.where(op.outputs[0] < 0, gradient * (op.outputs[0] + 1), gradient)


@tf.RegisterGradient("CvbatchMaxPool")
def _max_pool(op: Any, gradient: tf.Tensor) -> tf.Tensor:  # (B, h', w', c) → (B, h, w, c)
    """Send each window's gradient to its first maximum; windows that overlap keep TensorFlow's."""
    _, size_h, size_w, _ = (int(n) for n in op.get_attr("ksize"))
    batch, height, width, channels = op.inputs[0].shape
    out_h, out_w = op.outputs[0].shape[1:3]
    is_plain = op.get_attr("strides") == op.get_attr("ksize") and (
        out_h * size_h >= height - size_h + 1 and out_h * size_h <= height
    )
    if not is_plain or out_w * size_w > width:
        from tensorflow.python.ops.nn_grad import _MaxPoolGrad

        return _MaxPoolGrad(op, gradient)
    covered = op.inputs[0][:, : out_h * size_h, : out_w * size_w]
    windows = tf.reshape(covered, (batch * out_h, size_h, out_w, size_w, channels))
    # (window, position in it, channel): positions in the order TensorFlow scans them
    windows = tf.transpose(windows, (0, 2, 1, 3, 4))
    windows = tf.reshape(windows, (batch * out_h * out_w, size_h * size_w, channels))
    first = tf.argmax(windows, axis=1, output_type=tf.int32)
    taken = tf.one_hot(first, size_h * size_w, axis=1, dtype=gradient.dtype)
    spread = taken * tf.reshape(gradient, (batch * out_h * out_w, 1, channels))
    spread = tf.reshape(spread, (batch * out_h, out_w, size_h, size_w, channels))
    spread = tf.transpose(spread, (0, 2, 1, 3, 4))
    spread = tf.reshape(spread, (batch, out_h * size_h, out_w * size_w, channels))
    missing_h, missing_w = height - out_h * size_h, width - out_w * size_w
    return tf.pad(spread, ((0, 0), (0, missing_h), (0, missing_w), (0, 0)))


@tf.RegisterGradient("CvbatchAvgPool")
def _avg_pool(op: Any, gradient: tf.Tensor) -> tf.Tensor:  # (B, h', w', c) → (B, h, w, c)
    """Share each window's gradient among its positions; overlapping or padded: TensorFlow's."""
    _, size_h, size_w, _ = (int(n) for n in op.get_attr("ksize"))
    batch, height, width, channels = op.inputs[0].shape
    out_h, out_w = op.outputs[0].shape[1:3]
    is_plain = op.get_attr("strides") == op.get_attr("ksize") and out_h * size_h <= height
    if not is_plain or out_w * size_w > width:
        from tensorflow.python.ops.nn_grad import _AvgPoolGrad

        return _AvgPoolGrad(op, gradient)
    shares = tf.reshape(gradient / (size_h * size_w), (batch * out_h, 1, out_w, 1, channels))
    spread = shares + tf.zeros((1, size_h, 1, size_w, 1), gradient.dtype)
    spread = tf.reshape(spread, (batch, out_h * size_h, out_w * size_w, channels))
    missing_h, missing_w = height - out_h * size_h, width - out_w * size_w
    return tf.pad(spread, ((0, 0), (0, missing_h), (0, missing_w), (0, 0)))


OVERRIDES = {
    "Relu": "CvbatchRelu",
    "Relu6": "CvbatchRelu6",
    "LeakyRelu": "CvbatchLeakyRelu",
    "Elu": "CvbatchElu",
    "MaxPool": "CvbatchMaxPool",
    "AvgPool": "CvbatchAvgPool",
}
