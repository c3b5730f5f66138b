"""Parameters, multiply-adds and activation memory of a network, per layer and in total.

Only shapes are inferred, so a network without weights (`skip_weight_allocation`) is enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from cvbatch.core.errors import ModelError
from cvbatch.models.frameworks import keras

Shape = tuple[int | None, ...]
FLOAT32_BYTES = 4
_GLOBAL_STATE = keras.src.backend.common.global_state  # not in Keras' public API
_PENDING = "uninitialized_variables"  # Keras' list of variables to be initialised later


@dataclass(frozen=True)
class LayerCost:
    """Cost of one call of a layer, for one image."""

    path: str  # outer/inner/layer
    kind: str  # class name of the layer
    output_shapes: tuple[Shape, ...]  # batch axis first
    parameters: int  # 0 if an earlier call of the layer has counted them
    multiply_adds: int | None  # None: unknown
    output_bytes: int  # as float32


@dataclass(frozen=True)
class Cost:
    """Cost of a network for one image, as float32.

    Attributes:
        layers: the layers in the order they run.
        is_at_least: the multiply-adds of some layers are unknown, so `multiply_adds` is a lower
            bound.
        inference_bytes: the largest sum of a layer's inputs and outputs.
        training_bytes: the outputs of all layers, which the gradient needs.
        working_bytes: the least memory that any engine needs: inputs and outputs of one
            convolution, matrix product or enlargement, or the output of another layer, which may be
            computed in place or fused with the previous one.
        working_layer: path of the layer that needs `working_bytes`; "" without layers.
    """

    layers: tuple[LayerCost, ...]
    parameters: int
    trainable_parameters: int
    multiply_adds: int
    is_at_least: bool
    inference_bytes: int
    training_bytes: int
    working_bytes: int
    working_layer: str

    @property
    def weight_bytes(self) -> int:
        """Return the size of the weights as float32."""
        return self.parameters * FLOAT32_BYTES

    @property
    def trainable_bytes(self) -> int:
        """Return the size of the trainable weights as float32."""
        return self.trainable_parameters * FLOAT32_BYTES

    def as_json(self) -> dict[str, Any]:
        """Return the cost as JSON-ready values."""
        return {**asdict(self), "weight_bytes": self.weight_bytes}


def compute_cost(model: keras.Model, image_size: tuple[int, int] | None = None) -> Cost:
    """Compute the cost of a functional or sequential model; nested models are flattened.

    A layer that is called several times adds multiply-adds and outputs for each call, parameters
    once. A custom layer can state its multiply-adds for one image in a method
    `multiply_adds(input_shape, output_shape) -> int`.

    Args:
        model: its weights are not needed.
        image_size: (height, width) in pixels, for a model with a variable image size.

    Raises:
        ModelError: the model has no graph of layers, or no or another fixed image size.
    """
    graph = _graph_of(model)
    if graph is None:
        raise ModelError(
            f"model {model.name!r} is not a graph of layers; build it with "
            "keras.Model(inputs, outputs), or as a keras.Sequential that starts with its input"
        )
    recorder = _CostRecorder()
    inputs = _inputs(model, graph, image_size)
    for tensor, spec in zip(graph.inputs, inputs, strict=True):
        recorder.add_input(tensor.name, spec)
    recorder.run(graph, inputs, "")
    known = [row.multiply_adds for row in recorder.rows if row.multiply_adds is not None]
    return Cost(
        layers=tuple(recorder.rows),
        parameters=int(model.count_params()),
        trainable_parameters=sum(math.prod(v.shape) for v in model.trainable_weights),
        multiply_adds=sum(known),
        is_at_least=len(known) < len(recorder.rows),
        inference_bytes=recorder.inference_bytes,
        training_bytes=sum(row.output_bytes for row in recorder.rows),
        working_bytes=recorder.working_bytes,
        working_layer=recorder.working_layer,
    )


@contextmanager
def skip_weight_allocation() -> Iterator[None]:
    """Build networks in this context without allocating their weights.

    Such a network has shapes and parameter counts, but cannot be run.
    """
    pending = list(_GLOBAL_STATE.get_global_attribute(_PENDING) or ())
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        # Otherwise Keras would allocate the weights the next time it infers a shape.
        _GLOBAL_STATE.set_global_attribute(_PENDING, pending)


class _CostRecorder:
    """Infer the shapes of a graph and record the cost of each call."""

    def __init__(self) -> None:
        self.rows: list[LayerCost] = []
        self.inference_bytes = 0
        self.working_bytes = 0
        self.working_layer = ""
        self._counted: set[int] = set()  # ids of variables that a row has counted

    def add_input(self, name: str, tensor: keras.KerasTensor) -> None:
        size = _bytes([tensor.shape])
        self.rows.append(LayerCost(name, "InputLayer", (tensor.shape,), 0, 0, size))
        self.inference_bytes = max(self.inference_bytes, size)

    def run(self, graph: Any, inputs: list[keras.KerasTensor], prefix: str) -> Any:
        """Infer the outputs of a graph whose layers have paths that start with `prefix`."""
        return graph._run_through_graph(
            inputs, operation_fn=lambda operation: self._recording(operation, prefix)
        )

    def _recording(self, operation: Any, prefix: str) -> Callable[..., Any]:
        """Return a function that infers the operation's outputs and records its cost."""
        path = f"{prefix}{operation.name}"
        nested = _graph_of(operation)

        def call(*args: Any, **kwargs: Any) -> Any:
            if nested is not None:
                inputs = args[0] if args else kwargs["inputs"]
                return self.run(nested, keras.tree.flatten(inputs), f"{path}/")
            outputs = operation.compute_output_spec(*args, **kwargs)
            self._record(operation, path, _tensors((args, kwargs)), _tensors(outputs))
            return outputs

        return call

    def _record(
        self,
        operation: Any,
        path: str,
        inputs: list[keras.KerasTensor],
        outputs: list[keras.KerasTensor],
    ) -> None:
        in_shapes, out_shapes = [x.shape for x in inputs], [x.shape for x in outputs]
        multiply_adds = _multiply_adds(operation, in_shapes, out_shapes)
        row = LayerCost(
            path,
            type(operation).__name__,
            tuple(out_shapes),
            self._new_parameters(operation),
            multiply_adds,
            _bytes(out_shapes),
        )
        self.rows.append(row)
        self.inference_bytes = max(self.inference_bytes, _bytes(in_shapes) + row.output_bytes)
        working_bytes = _working_bytes(operation, in_shapes, out_shapes)
        if working_bytes > self.working_bytes:
            self.working_bytes, self.working_layer = working_bytes, path

    def _new_parameters(self, operation: Any) -> int:
        """Count the parameters that no earlier call has counted."""
        variables = [v for v in getattr(operation, "weights", ()) if id(v) not in self._counted]
        self._counted.update(map(id, variables))
        return sum(math.prod(variable.shape) for variable in variables)


def _graph_of(operation: Any) -> Any:
    """Return the graph of a model; None for a layer, or for a model without a graph."""
    if isinstance(operation, keras.Sequential):
        return operation._functional
    return operation if isinstance(operation, keras.Function) else None


def _inputs(
    model: keras.Model, graph: Any, image_size: tuple[int, int] | None
) -> list[keras.KerasTensor]:
    """Return the graph's inputs with known sizes."""
    inputs = [keras.KerasTensor(x.shape, dtype=x.dtype) for x in graph.inputs]
    shape = inputs[0].shape
    if image_size is not None:
        if len(inputs) != 1 or len(shape) != 4:
            raise ModelError(
                f"image size {list(image_size)} of model {model.name!r}: it takes "
                f"{[x.shape for x in inputs]}, not one batch of images; remove the image size"
            )
        if any(old not in (None, new) for old, new in zip(shape[1:3], image_size, strict=True)):
            raise ModelError(
                f"image size {list(image_size)}: model {model.name!r} takes {list(shape[1:3])} only"
            )
        inputs = [keras.KerasTensor((shape[0], *image_size, shape[3]), dtype=inputs[0].dtype)]
    if any(None in x.shape[1:] for x in inputs):
        raise ModelError(
            f"model {model.name!r} has a variable image size ({shape}); specify height and width"
        )
    return inputs


def _tensors(structure: Any) -> list[keras.KerasTensor]:
    """Return the distinct tensors in a nested structure of arguments."""
    tensors = [x for x in keras.tree.flatten(structure) if isinstance(x, keras.KerasTensor)]
    return list({id(x): x for x in tensors}.values())


def _bytes(shapes: list[Shape]) -> int:
    """Return the size of float32 arrays for one image; an unknown axis counts as 1."""
    return FLOAT32_BYTES * sum(math.prod(side or 1 for side in shape[1:]) for shape in shapes)


# ---------------------------------------------------------------- multiply-adds

Rule = Callable[[Any, list[Shape], Shape], int | None]  # layer, input shapes, output shape


def _multiply_adds(operation: Any, inputs: list[Shape], outputs: list[Shape]) -> int | None:
    """Return the multiply-adds of one call for one image; None if they are unknown."""
    method = getattr(operation, "multiply_adds", None)
    rule = _rule_of(operation)
    if method is None and rule is None:
        return None if getattr(operation, "weights", ()) else 0
    if any(None in shape[1:] for shape in [*inputs, *outputs]):
        return None
    if method is not None:
        return int(method(inputs[0] if len(inputs) == 1 else inputs, outputs[0]))
    return rule(operation, inputs, outputs[0]) if rule else None


def _working_bytes(operation: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    """Return the memory that every implementation of the operation needs; 0 if it may need none."""
    rule, kind = _rule_of(operation), type(operation).__name__
    if rule in (_convolution, _depthwise, _transposed, _dense) or kind in _ENLARGEMENTS:
        return _bytes([*inputs, *outputs])
    if rule is _separable:  # two steps, each of which needs the intermediate map
        positions = _bytes(outputs) // int(operation.filters)
        channels = _channels(operation, inputs[0]) * int(operation.depth_multiplier)
        return positions * channels + max(_bytes(inputs), _bytes(outputs))
    return 0 if kind in _VIEWS else _bytes(outputs)


_ENLARGEMENTS = {"Resize", "Resizing", "UpSampling1D", "UpSampling2D", "UpSampling3D"}
# Operations that may return their input, or be computed as part of the next operation.
_VIEWS = {
    "BroadcastTo", "Cast", "ExpandDims", "Flatten", "Full", "Identity", "Ones", "Pad", "Reshape",
    "Squeeze", "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D", "Zeros",
}  # fmt: skip


def _rule_of(operation: Any) -> Rule | None:
    """Return the rule of the operation's Keras class or Keras base class."""
    for base in type(operation).__mro__:
        if base.__module__.startswith("keras.") and base.__name__ in _RULES:
            return _RULES[base.__name__]
    return None


def _channels(layer: Any, shape: Shape) -> int:
    return _count(shape[-1:] if layer.data_format == "channels_last" else shape[1:2])


def _count(sides: Shape) -> int:
    return math.prod(side or 1 for side in sides)


def _kernel_area(layer: Any) -> int:
    return math.prod(int(side) for side in layer.kernel_size)


def _convolution(layer: Any, inputs: list[Shape], output: Shape) -> int:
    """Return kernel area × input channels of the group, for each output value."""
    channels = _channels(layer, inputs[0])
    return _count(output[1:]) * _kernel_area(layer) * channels // int(layer.groups)


def _depthwise(layer: Any, inputs: list[Shape], output: Shape) -> int:
    return _count(output[1:]) * _kernel_area(layer)


def _separable(layer: Any, inputs: list[Shape], output: Shape) -> int:
    """Return the depthwise and the pointwise convolution, for each output position."""
    filters = int(layer.filters)
    depth = _channels(layer, inputs[0]) * int(layer.depth_multiplier)
    return _count(output[1:]) // filters * depth * (_kernel_area(layer) + filters)


def _transposed(layer: Any, inputs: list[Shape], output: Shape) -> int:
    """Return kernel area × filters, for each input value."""
    return _count(inputs[0][1:]) * _kernel_area(layer) * int(layer.filters)


def _dense(layer: Any, inputs: list[Shape], output: Shape) -> int:
    return _count(output[1:]) * _count(inputs[0][-1:])


def _matrix_product(operation: Any, inputs: list[Shape], output: Shape) -> int | None:
    # With one tensor and one constant it is unknown which is the left factor.
    return _dense(operation, inputs, output) if len(inputs) == 2 else None


def _einsum_dense(layer: Any, inputs: list[Shape], output: Shape) -> int:
    """Return the product of the kernel axes that the input does not have, for each input value."""
    left, kernel = layer.equation.split("->")[0].split(",")
    sides = zip(kernel, layer.kernel.shape, strict=True)
    return _count(inputs[0][1:]) * math.prod(int(side) for axis, side in sides if axis not in left)


def _multi_head_attention(layer: Any, inputs: list[Shape], output: Shape) -> int:
    """Return the projections, the products of queries with keys, and the weighted values."""
    query, value = inputs[0], inputs[min(1, len(inputs) - 1)]
    key = inputs[2] if len(inputs) > 2 else value
    heads, key_dim, value_dim = map(int, (layer.num_heads, layer.key_dim, layer.value_dim))
    queries, values = _count(query[1:-1]), _count(value[1:-1])
    attended = _count(tuple(value[axis] for axis in layer.attention_axes))
    return heads * (
        queries * _count(query[-1:]) * key_dim
        + values * _count(key[-1:]) * key_dim
        + values * _count(value[-1:]) * value_dim
        + queries * attended * (key_dim + value_dim)
        + queries * value_dim * _count(output[-1:])
    )


def _zero(layer: Any, inputs: list[Shape], output: Shape) -> int:
    return 0


def _unknown(layer: Any, inputs: list[Shape], output: Shape) -> None:
    return None


# Class name of a Keras layer or operation → rule, because Keras does not export all operations.
# Others without weights are assumed to work element by element, with no multiply-adds.
_RULES: dict[str, Rule] = {
    **{f"Conv{n}D": _convolution for n in (1, 2, 3)},
    **{f"Conv{n}DTranspose": _transposed for n in (1, 2, 3)},
    **{f"DepthwiseConv{n}D": _depthwise for n in (1, 2)},
    **{f"SeparableConv{n}D": _separable for n in (1, 2)},
    "Dense": _dense,
    "EinsumDense": _einsum_dense,
    "Matmul": _matrix_product,
    "MultiHeadAttention": _multi_head_attention,
    **dict.fromkeys(
        ("BatchNormalization", "GroupNormalization", "LayerNormalization", "Normalization",
         "RMSNormalization", "PReLU", "Embedding", "LayerScale"),
        _zero,
    ),
    **dict.fromkeys(
        ("AdditiveAttention", "Attention", "Conv", "ConvTranspose", "DepthwiseConv", "Dot",
         "DotProductAttention", "Einsum", "Inner", "SeparableConv", "Tensordot", "Vdot"),
        _unknown,
    ),
}  # fmt: skip
