"""Gradients of activations, pooling and slices, built of operations that LiteRT supports.

TensorFlow computes these gradients with the operations `ReluGrad`, `MaxPoolGrad`, `AvgPoolGrad` and
`StridedSliceGrad`, which LiteRT lacks. The functions below compute the same values: a select for
activations; for pooling the one-hot of each window's first maximum, or equal shares; zeros around a
slice. LiteRT has the error function only inside GELU, so GELU's gradient uses a rational function.
Tracing with `OVERRIDES` as `gradient_override_map` uses them in Grad-CAM.
"""

from __future__ import annotations

import math
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


@tf.RegisterGradient("CvbatchStridedSlice")
def _strided_slice(op: Any, gradient: tf.Tensor) -> list[tf.Tensor | None]:
    """Pad the gradient with zeros; steps, new axes and unknown bounds: TensorFlow's op."""
    shape, slices = op.inputs[0].shape, _slices(op)
    if slices is None:
        from tensorflow.python.ops.array_grad import (  # noqa: TID251 - tf is imported
            _StridedSliceGrad,
        )

        return list(_StridedSliceGrad(op, gradient))
    sides = [range(side)[part] for side, part in zip(shape, slices, strict=True)]
    padding = [(part.start, side - part.stop) for side, part in zip(shape, sides, strict=True)]
    whole = tf.pad(tf.reshape(gradient, [len(part) for part in sides]), padding)
    return [whole, None, None, None]


_MASKS = ("begin", "end", "ellipsis", "shrink_axis")


def _slices(op: Any) -> list[slice] | None:
    """Return one slice of step 1 for each axis of a StridedSlice; None if it has another form."""
    bounds = [tf.get_static_value(tensor) for tensor in op.inputs[1:]]
    shape = op.inputs[0].shape
    has_other = op.get_attr("new_axis_mask") or any(part is None for part in bounds)
    if has_other or not shape.is_fully_defined() or (bounds[2] != 1).any():
        return None
    slices = []
    for i, (begin, end) in enumerate(zip(*bounds[:2], strict=True)):
        is_in = {name: op.get_attr(f"{name}_mask") >> i & 1 for name in _MASKS}
        if is_in["ellipsis"]:
            slices += [slice(None)] * (shape.rank - len(bounds[0]) + 1)
        elif is_in["shrink_axis"]:
            slices.append(slice(begin, begin + 1 or None))
        else:
            slices.append(slice(None if is_in["begin"] else begin, None if is_in["end"] else end))
    return slices + [slice(None)] * (shape.rank - len(slices))


@tf.RegisterGradient("CvbatchMul")
def _mul(op: Any, gradient: tf.Tensor) -> list[tf.Tensor | None]:
    """Differentiate a product; of GELU, x / 2 · erfc(-x / √2), as a function of x alone.

    LiteRT has no Erfc. It replaces these operations by its GELU if no other operation, such as a
    gradient, uses their intermediate values.
    """
    from tensorflow.python.ops.math_grad import _MulGrad  # noqa: TID251 - tf is imported

    half, other = op.inputs
    if other.op.type != "Erfc" or half.op.type != "Mul":
        return list(_MulGrad(op, gradient))
    x = next(tensor for tensor in half.op.inputs if tensor.op.type != "Const")
    density = tf.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return [gradient * (1 + _erf(x * math.sqrt(0.5)) + 2 * x * density), None]


# Source: the rational approximation of the error function for float32 in Eigen and XLA.
_ERF_NUMERATOR = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_DENOMINATOR = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
    -1.42647390514189e-02,
)  # fmt: skip


def _erf(x: tf.Tensor) -> tf.Tensor:
    """Return the error function, with an error below 1e-6."""
    near = tf.clip_by_value(tf.cast(x, tf.float32), -4.0, 4.0)
    square = near * near
    numerator, denominator = (
        tf.math.polyval(list(factors), square) for factors in (_ERF_NUMERATOR, _ERF_DENOMINATOR)
    )
    return tf.cast(near * numerator / denominator, x.dtype)


OVERRIDES = {  # TensorFlow op type → registered gradient
    "Relu": "CvbatchRelu",
    "Relu6": "CvbatchRelu6",
    "LeakyRelu": "CvbatchLeakyRelu",
    "Elu": "CvbatchElu",
    "MaxPool": "CvbatchMaxPool",
    "AvgPool": "CvbatchAvgPool",
    "StridedSlice": "CvbatchStridedSlice",
    "Mul": "CvbatchMul",
}
