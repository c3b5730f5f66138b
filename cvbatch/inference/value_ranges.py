"""Range of the values of a traced tensor, derived from the operations that compute it.

Interval arithmetic over a TensorFlow graph: a softmax or sigmoid gives values in 0..1, and an
average, reshape, crop, resize or product of such values keeps them there. So a network's outputs
are recognised as probabilities wherever its last activation is, in nested models too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from cvbatch.models.frameworks import tf

_MAX_CONSTANT = 1 << 22  # elements; the range of a larger constant is not computed
_TOLERANCE = 1e-6
_SMALL_CLIP = 1e-3  # a clip that moves the bounds less than this leaves the sums of rows
_NO_ACTIVATIONS: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Values:
    """What is known of the values of a tensor.

    Attributes:
        low: no value is below it.
        high: no value is above it.
        row_sum: sum over the classes, where a softmax fixes it; None if it is not known.
        activations: kinds of activation that the values come from: softmax, sigmoid.
        source: name of the operation that decides what the values are.
        is_known: whether all operations since the last linear one have a rule here.
    """

    low: float = -math.inf
    high: float = math.inf
    row_sum: float | None = None
    activations: frozenset[str] = _NO_ACTIVATIONS
    source: str = ""
    is_known: bool = True

    @property
    def are_probabilities(self) -> bool:
        """Return whether the values come from a softmax or sigmoid and stay within 0..1."""
        is_within = self.low >= -_TOLERANCE and self.high <= 1 + _TOLERANCE
        return bool(self.activations) and is_within

    @property
    def are_logits(self) -> bool:
        """Return whether the values come from a linear operation without an activation."""
        is_unbounded = self.low == -math.inf and self.high == math.inf
        return self.is_known and is_unbounded and not self.activations


def values_of(tensor: tf.Tensor, known_before: Mapping[str, Values] | None = None) -> Values:
    """Return what is known of a tensor of a TensorFlow function that is being traced.

    Args:
        tensor: of the function.
        known_before: what is known of other tensors by name, such as the outputs of a model file.
    """
    graph = tensor.graph
    known: dict[str, Values] = {}
    before = known_before or {}
    captured = {inside.name: outside for outside, inside in graph.captures}
    for op in graph.get_operations():  # in the order of creation: inputs come first
        if op.type in _WITH_CONSTANT_VALUE:
            values = _constant(op, captured)
        else:
            inputs = [known[source.name] for source in op.inputs]
            rule = _RULES.get(op.type)
            values = rule(op, inputs) if rule and inputs else _unknown(op, inputs)
        known.update({output.name: values for output in op.outputs})
        known.update({o.name: before[o.name] for o in op.outputs if o.name in before})
        if op is tensor.op:
            break
    return known[tensor.name]


# ---------------------------------------------------------------- leaves

_WITH_CONSTANT_VALUE = {"Const", "Placeholder", "ReadVariableOp"}


def _constant(op: Any, captured: dict[str, Any]) -> Values:
    """Return the range of a constant, of a captured tensor, or of a variable's present value."""
    unknown = Values(source=op.name, is_known=False)
    if op.type == "Const":
        array = tf.get_static_value(op.outputs[0])
    elif op.type == "Placeholder":
        outside = captured.get(op.outputs[0].name)
        if not isinstance(outside, tf.__internal__.EagerTensor) or outside.dtype == tf.resource:
            return unknown
        array = outside.numpy()
    else:
        handle = captured.get(op.inputs[0].name)
        variables = (v for v in op.graph.variables if v.handle is handle)
        variable = next(variables, None)
        if variable is None or math.prod(variable.shape) > _MAX_CONSTANT:
            return unknown
        array = variable.numpy()
    if array is None or not 0 < array.size <= _MAX_CONSTANT or array.dtype.kind not in "fiu":
        return unknown
    return Values(float(array.min()), float(array.max()), source=op.name)


def _unknown(op: Any, inputs: list[Values]) -> Values:
    return Values(source=op.name, is_known=False)


def _linear(op: Any, inputs: list[Values]) -> Values:
    """A dense layer or convolution gives logits, except of a softmax: it may be an average."""
    is_of_softmax = any(v.are_probabilities and "softmax" in v.activations for v in inputs)
    return Values(source=op.name, is_known=not is_of_softmax)


def _softmax(op: Any, inputs: list[Values]) -> Values:
    return Values(0.0, 1.0, 1.0, frozenset({"softmax"}), op.name)


def _sigmoid(op: Any, inputs: list[Values]) -> Values:
    return Values(0.0, 1.0, None, frozenset({"sigmoid"}), op.name)


def _exp(op: Any, inputs: list[Values]) -> Values:
    if op.inputs[0].op.type == "LogSoftmax":
        return _softmax(op, inputs)
    return _unknown(op, inputs)


# ---------------------------------------------------------------- rearranged values


def _last_side(tensor: tf.Tensor) -> int | None:
    """Return the length of the last axis that is longer than 1."""
    if tensor.shape.rank is None:
        return None
    return next((n for n in reversed(tensor.shape.as_list()) if n != 1), 1)


def _same(op: Any, inputs: list[Values]) -> Values:
    """Values are moved, copied, left out or averaged; rows stay whole if their length stays."""
    keeps_rows = op.type == "Transpose" or _last_side(op.inputs[0]) == _last_side(op.outputs[0])
    return inputs[0] if keeps_rows else replace(inputs[0], row_sum=None)


def _cast(op: Any, inputs: list[Values]) -> Values:
    is_float = op.inputs[0].dtype.is_floating and op.outputs[0].dtype.is_floating
    return inputs[0] if is_float else _unknown(op, inputs)


def _split(op: Any, inputs: list[Values]) -> Values:
    return replace(inputs[1], row_sum=None)


def _pad(op: Any, inputs: list[Values]) -> Values:
    values = inputs[0]
    return replace(values, low=min(values.low, 0.0), high=max(values.high, 0.0), row_sum=None)


def _joined(inputs: list[Values], op: Any) -> Values:
    """Return the range of values that come from any of the inputs."""
    return Values(
        min(v.low for v in inputs),
        max(v.high for v in inputs),
        None,
        _activations(inputs),
        _source(inputs, op),
        all(v.is_known for v in inputs),
    )


def _concatenate(op: Any, inputs: list[Values]) -> Values:
    parts = inputs[:-1] if op.type == "ConcatV2" else inputs
    joined = _joined(parts, op)
    sums = {v.row_sum for v in parts}
    keeps_rows = len(sums) == 1 and _last_side(op.inputs[0]) == _last_side(op.outputs[0])
    return replace(joined, row_sum=sums.pop() if keeps_rows else None)


def _select(op: Any, inputs: list[Values]) -> Values:
    return _joined(inputs[1:], op)


def _activations(inputs: list[Values]) -> frozenset[str]:
    return _NO_ACTIVATIONS.union(*(v.activations for v in inputs))


def _source(inputs: list[Values], op: Any) -> str:
    return next((v.source for v in inputs if v.activations), op.name)


# ---------------------------------------------------------------- arithmetic


def _add(op: Any, inputs: list[Values]) -> Values:
    sums = [v.row_sum for v in inputs]
    total = None if None in sums else sum(s for s in sums if s is not None)
    low, high = sum(v.low for v in inputs), sum(v.high for v in inputs)
    return _combined(op, inputs, (low, high), total)


def _subtract(op: Any, inputs: list[Values]) -> Values:
    first, second = inputs
    return _combined(op, inputs, (first.low - second.high, first.high - second.low), None)


def _multiply(op: Any, inputs: list[Values]) -> Values:
    first, second = inputs
    products = [_product(a, b) for a in (first.low, first.high) for b in (second.low, second.high)]
    total = None
    for values, factor in ((first, second), (second, first)):
        if values.row_sum is not None and factor.low == factor.high:
            total = values.row_sum * factor.low
    return _combined(op, inputs, (min(products), max(products)), total)


def _divide(op: Any, inputs: list[Values]) -> Values:
    divisor = inputs[1]
    if divisor.low <= 0:
        return replace(_unknown(op, inputs), activations=inputs[0].activations)
    inverse = replace(divisor, low=1 / divisor.high, high=1 / divisor.low)
    return _multiply(op, [inputs[0], inverse])


def _product(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _combined(
    op: Any, inputs: list[Values], bounds: tuple[float, float], row_sum: float | None
) -> Values:
    """Return the result of arithmetic; a bounded factor does not make unknown values known."""
    values = Values(
        *bounds,
        row_sum,
        _activations(inputs),
        _source(inputs, op),
        all(v.is_known for v in inputs),
    )
    is_unbounded = bounds == (-math.inf, math.inf)
    # A gate (x * sigmoid(x)) or a bias of logits: the activation does not bound the result.
    return replace(values, activations=_NO_ACTIVATIONS) if is_unbounded else values


def _maximum(op: Any, inputs: list[Values]) -> Values:
    return _clipped(op, inputs, max)


def _minimum(op: Any, inputs: list[Values]) -> Values:
    return _clipped(op, inputs, min)


def _clipped(op: Any, inputs: list[Values], limit: Callable[[float, float], float]) -> Values:
    first, second = inputs
    low, high = limit(first.low, second.low), limit(first.high, second.high)
    sums = [
        v.row_sum
        for v in inputs
        if v.row_sum is not None and max(abs(v.low - low), abs(v.high - high)) <= _SMALL_CLIP
    ]
    return _combined(op, inputs, (low, high), sums[0] if len(sums) == 1 else None)


def _relu(op: Any, inputs: list[Values]) -> Values:
    top = 6.0 if op.type == "Relu6" else math.inf
    (values,) = inputs
    low, high = (min(max(bound, 0.0), top) for bound in (values.low, values.high))
    return replace(values, low=low, high=high)


def _square(op: Any, inputs: list[Values]) -> Values:
    (values,) = inputs
    if values.low < 0:
        return _unknown(op, inputs)
    function = math.sqrt if op.type == "Sqrt" else lambda x: x * x
    return replace(values, low=function(values.low), high=function(values.high), row_sum=None)


def _negate(op: Any, inputs: list[Values]) -> Values:
    return replace(inputs[0], low=-inputs[0].high, high=-inputs[0].low, row_sum=None)


def _sum(op: Any, inputs: list[Values]) -> Values:
    """A sum over an axis, such as the one that averages the networks of an ensemble."""
    before, after = op.inputs[0].shape, op.outputs[0].shape
    if not (before.is_fully_defined() and after.is_fully_defined()) or after.num_elements() == 0:
        return _unknown(op, inputs)
    count = before.num_elements() // after.num_elements()
    return _multiply(op, [_same(op, inputs), Values(count, count)])


class _Rules(NamedTuple):
    rule: Callable[[Any, list[Values]], Values]
    op_types: str


_TABLE = (
    _Rules(
        _same,
        "Identity IdentityN StopGradient PreventGradient CheckNumerics EnsureShape Snapshot "
        "Squeeze ExpandDims Reshape Transpose Tile BroadcastTo GatherV2 GatherNd Slice "
        "StridedSlice ReverseV2 MirrorPad Roll DepthToSpace SpaceToDepth SpaceToBatchND "
        "BatchToSpaceND Unpack SplitV Max Min Mean AvgPool AvgPool3D MaxPool ResizeBilinear "
        "ResizeNearestNeighbor ResizeArea",
    ),
    _Rules(
        _linear,
        "MatMul BatchMatMul BatchMatMulV2 Einsum Conv2D Conv2DBackpropInput "
        "DepthwiseConv2dNative FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 LogSoftmax",
    ),
    _Rules(_softmax, "Softmax"),
    _Rules(_sigmoid, "Sigmoid"),
    _Rules(_exp, "Exp"),
    _Rules(_cast, "Cast"),
    _Rules(_split, "Split"),
    _Rules(_pad, "Pad"),
    _Rules(_concatenate, "ConcatV2 Pack"),
    _Rules(_select, "Select SelectV2"),
    _Rules(_add, "Add AddV2 AddN BiasAdd"),
    _Rules(_subtract, "Sub"),
    _Rules(_multiply, "Mul MulNoNan"),
    _Rules(_divide, "RealDiv Div DivNoNan"),
    _Rules(_maximum, "Maximum"),
    _Rules(_minimum, "Minimum"),
    _Rules(_relu, "Relu Relu6"),
    _Rules(_square, "Square Sqrt"),
    _Rules(_negate, "Neg"),
    _Rules(_sum, "Sum"),
)
_RULES = {name: row.rule for row in _TABLE for name in row.op_types.split()}
