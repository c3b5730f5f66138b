"""What a network costs, layer by layer: parameters, multiply-adds, and the memory of its maps.

Shapes are worked out, nothing is computed: a network whose weights were never made
(`weightless`) costs the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import keras
from keras.src.backend.common import global_state

from cvbatch.core.errors import ModelError

Shape = tuple[int | None, ...]
FLOAT32_BYTES = 4
_PENDING = "uninitialized_variables"  # Keras' list of variables that wait for their values


@dataclass(frozen=True)
class LayerCost:
    """One call of a layer, for one image."""

    path: str  # outer/inner/layer
    kind: str
    output_shapes: tuple[Shape, ...]  # the batch first
    parameters: int  # 0 where an earlier call counted them
    multiply_adds: int | None  # None: not known
    output_bytes: int  # float32


@dataclass(frozen=True)
class Cost:
    """What a network costs: its layers in the order they run, and the totals.

    inference_bytes: of one image: the largest sum, over the layers, of what a layer reads and
    what it writes. training_bytes: of one image of the batch: every map, as the gradient needs
    them all. working_bytes: the least that any engine holds for one image: as inference_bytes,
    but over convolutions and matrix products only, which can neither be done in place nor be
    folded into the layer before, as normalisation and activation can.
    """

    layers: tuple[LayerCost, ...]
    parameters: int
    trainable_parameters: int
    multiply_adds: int
    is_at_least: bool  # a layer's multiply-adds are not known, so there are more
    inference_bytes: int
    training_bytes: int
    working_bytes: int

    @property
    def weight_bytes(self) -> int:
        """Return what the weights take as float32."""
        return self.parameters * FLOAT32_BYTES

    @property
    def trainable_bytes(self) -> int:
        """Return what the weights that are trained take as float32."""
        return self.trainable_parameters * FLOAT32_BYTES

    def as_json(self) -> dict[str, Any]:
        """Return the cost as JSON-ready values."""
        return {**asdict(self), "weight_bytes": self.weight_bytes}


def compute_cost(model: keras.Model, image_size: tuple[int, int] | None = None) -> Cost:
    """Return what a functional or sequential model costs; models inside it are flattened.

    image_size: (height, width) in pixels, for a network that leaves it open. A layer that is
    called several times costs its multiply-adds and maps each time, its parameters once. A
    custom layer that multiplies says how often in a method
    `multiply_adds(input_shape, output_shape) -> int`.

    Raises:
        ModelError: the model is no graph of layers, or its image size is open or another.
    """
    graph = _graph_of(model)
    if graph is None:
        raise ModelError(
            f"model {model.name!r} is not a graph of layers that could be listed; build it with "
            "keras.Model(inputs, outputs), or as a keras.Sequential that starts with its input"
        )
    walk = _Walk()
    inputs = _inputs(model, graph, image_size)
    for tensor, given in zip(graph.inputs, inputs, strict=True):
        walk.add_input(tensor.name, given)
    walk.through(graph, inputs, "")
    known = [row.multiply_adds for row in walk.rows if row.multiply_adds is not None]
    return Cost(
        layers=tuple(walk.rows),
        parameters=int(model.count_params()),
        trainable_parameters=sum(math.prod(v.shape) for v in model.trainable_weights),
        multiply_adds=sum(known),
        is_at_least=len(known) < len(walk.rows),
        inference_bytes=walk.inference_bytes,
        training_bytes=sum(row.output_bytes for row in walk.rows),
        working_bytes=walk.working_bytes,
    )


@contextmanager
def skip_weight_allocation() -> Iterator[None]:
    """Let the networks built in the block have no weights: they take neither memory nor time.

    They can be described, counted and drawn, not run.
    """
    before = list(global_state.get_global_attribute(_PENDING) or ())
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        # Keras would make these weights after all, the next time that it works out a shape.
        global_state.set_global_attribute(_PENDING, before)


class _Walk:
    """Goes through a graph shape by shape and notes what each call costs."""

    def __init__(self) -> None:
        self.rows: list[LayerCost] = []
        self.inference_bytes = 0
        self.working_bytes = 0
        self._counted: set[int] = set()  # ids of variables whose parameters are in a row

    def add_input(self, name: str, given: keras.KerasTensor) -> None:
        size = _bytes([given.shape])
        self.rows.append(LayerCost(name, "InputLayer", (given.shape,), 0, 0, size))
        self.inference_bytes = max(self.inference_bytes, size)

    def through(self, graph: Any, inputs: list[keras.KerasTensor], prefix: str) -> Any:
        return graph._run_through_graph(
            inputs, operation_fn=lambda operation: self._noting(operation, prefix)
        )

    def _noting(self, operation: Any, prefix: str) -> Callable[..., Any]:
        path = f"{prefix}{operation.name}"
        inner = _graph_of(operation)

        def call(*args: Any, **kwargs: Any) -> Any:
            if inner is not None:
                given = args[0] if args else kwargs["inputs"]
                return self.through(inner, keras.tree.flatten(given), f"{path}/")
            outputs = operation.compute_output_spec(*args, **kwargs)
            self._note(operation, path, _tensors((args, kwargs)), _tensors(outputs))
            return outputs

        return call

    def _note(
        self,
        operation: Any,
        path: str,
        inputs: list[keras.KerasTensor],
        outputs: list[keras.KerasTensor],
    ) -> None:
        read, written = [x.shape for x in inputs], [x.shape for x in outputs]
        multiply_adds = _multiply_adds(operation, read, written)
        row = LayerCost(
            path,
            type(operation).__name__,
            tuple(written),
            self._new_parameters(operation),
            multiply_adds,
            _bytes(written),
        )
        self.rows.append(row)
        self.inference_bytes = max(self.inference_bytes, _bytes(read) + row.output_bytes)
        self.working_bytes = max(self.working_bytes, _working_bytes(operation, read, written))

    def _new_parameters(self, operation: Any) -> int:
        fresh = [v for v in getattr(operation, "weights", ()) if id(v) not in self._counted]
        self._counted.update(map(id, fresh))
        return sum(math.prod(variable.shape) for variable in fresh)


def _graph_of(operation: Any) -> Any:
    """Return the graph of layers inside a model; None for a layer, or a model without one."""
    if isinstance(operation, keras.Sequential):
        return operation._functional
    return operation if isinstance(operation, keras.Function) else None


def _inputs(
    model: keras.Model, graph: Any, image_size: tuple[int, int] | None
) -> list[keras.KerasTensor]:
    """Return the graph's inputs with every side known."""
    inputs = [keras.KerasTensor(x.shape, dtype=x.dtype) for x in graph.inputs]
    own = inputs[0].shape
    if image_size is not None:
        if len(inputs) != 1 or len(own) != 4:
            raise ModelError(
                f"image size {list(image_size)} of model {model.name!r}: it takes "
                f"{[x.shape for x in inputs]}, not one batch of images; leave the size out"
            )
        if any(mine not in (None, said) for mine, said in zip(own[1:3], image_size, strict=True)):
            raise ModelError(
                f"image size {list(image_size)}: model {model.name!r} takes {list(own[1:3])} only"
            )
        inputs = [keras.KerasTensor((own[0], *image_size, own[3]), dtype=inputs[0].dtype)]
    if any(None in x.shape[1:] for x in inputs):
        raise ModelError(
            f"model {model.name!r} leaves its image size open ({own}); say which height and width "
            "it is to be described at"
        )
    return inputs


def _tensors(structure: Any) -> list[keras.KerasTensor]:
    """Return the tensors in any structure of arguments, each once."""
    found = [x for x in keras.tree.flatten(structure) if isinstance(x, keras.KerasTensor)]
    return list({id(x): x for x in found}.values())


def _bytes(shapes: list[Shape]) -> int:
    """Return what float32 arrays of these shapes take for one image; open sides count as 1."""
    return FLOAT32_BYTES * sum(math.prod(side or 1 for side in shape[1:]) for shape in shapes)


# ---------------------------------------------------------------- multiply-adds

Rule = Callable[[Any, list[Shape], Shape], int | None]  # layer, shapes read, shape written


def _multiply_adds(operation: Any, read: list[Shape], written: list[Shape]) -> int | None:
    """Return the multiply-adds of one call for one image; None where nothing tells."""
    shapes = [*read, *written]
    own = getattr(operation, "multiply_adds", None)
    has_rule = own is not None or _rule_of(operation) is not None
    if has_rule and any(None in shape[1:] for shape in shapes):
        return None
    if own is not None:
        return int(own(read[0] if len(read) == 1 else read, written[0]))
    rule = _rule_of(operation)
    if rule is not None:
        return rule(operation, read, written[0])
    return None if getattr(operation, "weights", ()) else 0


def _working_bytes(operation: Any, read: list[Shape], written: list[Shape]) -> int:
    """Return what is held at once, whoever computes it; 0 where that is not certain."""
    rule = _rule_of(operation)
    if rule in (_convolution, _depthwise, _transposed, _dense):
        return _bytes([*read, *written])
    if rule is _separable:  # two steps; the map between them is held in both
        positions = _bytes(written) // int(operation.filters)
        between = positions * _channels(operation, read[0]) * int(operation.depth_multiplier)
        return between + max(_bytes(read), _bytes(written))
    return 0


def _rule_of(operation: Any) -> Rule | None:
    """Return the rule of Keras' own class that the operation is, or was derived from."""
    for kind in type(operation).__mro__:
        if kind.__module__.startswith("keras.") and kind.__name__ in _RULES:
            return _RULES[kind.__name__]
    return None


def _channels(layer: Any, shape: Shape) -> int:
    return _count(shape[-1:] if layer.data_format == "channels_last" else shape[1:2])


def _count(sides: Shape) -> int:
    return math.prod(side or 1 for side in sides)


def _taps(layer: Any) -> int:
    return math.prod(int(side) for side in layer.kernel_size)


def _convolution(layer: Any, read: list[Shape], written: Shape) -> int:
    """Return kernel × input channels of the group for every number written."""
    return _count(written[1:]) * _taps(layer) * _channels(layer, read[0]) // int(layer.groups)


def _depthwise(layer: Any, read: list[Shape], written: Shape) -> int:
    return _count(written[1:]) * _taps(layer)


def _separable(layer: Any, read: list[Shape], written: Shape) -> int:
    """Return the depthwise taps and the pointwise mixing at every position written."""
    filters = int(layer.filters)
    depth = _channels(layer, read[0]) * int(layer.depth_multiplier)
    return _count(written[1:]) // filters * depth * (_taps(layer) + filters)


def _transposed(layer: Any, read: list[Shape], written: Shape) -> int:
    """Return kernel × filters for every number read: each is spread over a kernel."""
    return _count(read[0][1:]) * _taps(layer) * int(layer.filters)


def _dense(layer: Any, read: list[Shape], written: Shape) -> int:
    return _count(written[1:]) * _count(read[0][-1:])


def _matrix_product(operation: Any, read: list[Shape], written: Shape) -> int | None:
    return _dense(operation, read, written) if len(read) == 2 else None  # else: which side?


def _einsum_dense(layer: Any, read: list[Shape], written: Shape) -> int:
    """Return for every number read the product of the kernel's axes that are not the input's."""
    left, kernel = layer.equation.split("->")[0].split(",")
    sides = zip(kernel, layer.kernel.shape, strict=True)
    return _count(read[0][1:]) * math.prod(int(side) for name, side in sides if name not in left)


def _multi_head_attention(layer: Any, read: list[Shape], written: Shape) -> int:
    """Return the projections, the products of queries with keys, and the weighted values."""
    query, value = read[0], read[min(1, len(read) - 1)]
    key = read[2] if len(read) > 2 else value
    heads, key_dim, value_dim = map(int, (layer.num_heads, layer.key_dim, layer.value_dim))
    queries, values = _count(query[1:-1]), _count(value[1:-1])
    attended = _count(tuple(value[axis] for axis in layer.attention_axes))
    return heads * (
        queries * _count(query[-1:]) * key_dim
        + values * _count(key[-1:]) * key_dim
        + values * _count(value[-1:]) * value_dim
        + queries * attended * (key_dim + value_dim)
        + queries * value_dim * _count(written[-1:])
    )


def _none(layer: Any, read: list[Shape], written: Shape) -> int:
    return 0


def _unknown(layer: Any, read: list[Shape], written: Shape) -> None:
    return None


# By the names of Keras' own classes, layers and operations (some are not exported). What has no
# weights and is not here is taken to work element by element, and to multiply nothing.
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
        _none,
    ),
    **dict.fromkeys(
        ("AdditiveAttention", "Attention", "Conv", "ConvTranspose", "DepthwiseConv", "Dot",
         "DotProductAttention", "Einsum", "Inner", "SeparableConv", "Tensordot", "Vdot"),
        _unknown,
    ),
}  # fmt: skip
