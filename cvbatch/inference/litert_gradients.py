"""Gradients of activations and pooling, built of operations that LiteRT supports.

TensorFlow computes these gradients with the operations `ReluGrad`, `MaxPoolGrad` and `AvgPoolGrad`,
which LiteRT lacks. The functions below compute the same values: a select for activations; for
pooling the one-hot of each window's first maximum, or equal shares. Tracing with `OVERRIDES` as
`gradient_override_map` uses them in Grad-CAM.
"""

from __future__ import annotations

from typing import Any

from cvbatch.models.frameworks import tf


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
    """Assign each window's gradient to its first maximum; overlapping windows: TensorFlow's op."""
    _, size_h, size_w, _ = (int(n) for n in op.get_attr("ksize"))
    batch, height, width, channels = op.inputs[0].shape
    out_h, out_w = op.outputs[0].shape[1:3]
    is_plain = op.get_attr("strides") == op.get_attr("ksize") and (
        out_h * size_h >= height - size_h + 1 and out_h * size_h <= height
    )
    if not is_plain or out_w * size_w > width:
        from tensorflow.python.ops.nn_grad import _MaxPoolGrad  # noqa: TID251 - tf is imported

        return _MaxPoolGrad(op, gradient)
    covered = op.inputs[0][:, : out_h * size_h, : out_w * size_w]
    windows = tf.reshape(covered, (batch * out_h, size_h, out_w, size_w, channels))
    # (window, position in the window, channel), with positions in the order of TensorFlow's scan
    windows = tf.transpose(windows, (0, 2, 1, 3, 4))
    windows = tf.reshape(windows, (batch * out_h * out_w, size_h * size_w, channels))
    first = tf.argmax(windows, axis=1, output_type=tf.int32)
    is_first = tf.one_hot(first, size_h * size_w, axis=1, dtype=gradient.dtype)
    spread = is_first * tf.reshape(gradient, (batch * out_h * out_w, 1, channels))
    spread = tf.reshape(spread, (batch * out_h, out_w, size_h, size_w, channels))
    spread = tf.transpose(spread, (0, 2, 1, 3, 4))
    spread = tf.reshape(spread, (batch, out_h * size_h, out_w * size_w, channels))
    missing_h, missing_w = height - out_h * size_h, width - out_w * size_w
    return tf.pad(spread, ((0, 0), (0, missing_h), (0, missing_w), (0, 0)))


@tf.RegisterGradient("CvbatchAvgPool")
def _avg_pool(op: Any, gradient: tf.Tensor) -> tf.Tensor:  # (B, h', w', c) → (B, h, w, c)
    """Divide each window's gradient equally; overlapping or padded windows: TensorFlow's op."""
    _, size_h, size_w, _ = (int(n) for n in op.get_attr("ksize"))
    batch, height, width, channels = op.inputs[0].shape
    out_h, out_w = op.outputs[0].shape[1:3]
    is_plain = op.get_attr("strides") == op.get_attr("ksize") and out_h * size_h <= height
    if not is_plain or out_w * size_w > width:
        from tensorflow.python.ops.nn_grad import _AvgPoolGrad  # noqa: TID251 - tf is imported

        return _AvgPoolGrad(op, gradient)
    shares = tf.reshape(gradient / (size_h * size_w), (batch * out_h, 1, out_w, 1, channels))
    spread = shares + tf.zeros((1, size_h, 1, size_w, 1), gradient.dtype)
    spread = tf.reshape(spread, (batch, out_h * size_h, out_w * size_w, channels))
    missing_h, missing_w = height - out_h * size_h, width - out_w * size_w
    return tf.pad(spread, ((0, 0), (0, missing_h), (0, missing_w), (0, 0)))


OVERRIDES = {  # TensorFlow op type → registered gradient
    "Relu": "CvbatchRelu",
    "Relu6": "CvbatchRelu6",
    "LeakyRelu": "CvbatchLeakyRelu",
    "Elu": "CvbatchElu",
    "MaxPool": "CvbatchMaxPool",
    "AvgPool": "CvbatchAvgPool",
}
