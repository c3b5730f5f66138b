"""TensorFlow functions in the graphs of Keras 2 (`x / 255`, `tf.concat`), as layers of Keras 3.

Keras 2 stored each call of such a function as a layer TFOpLambda or SlicingOpLambda, which Keras 3
cannot load. Only the functions of an allowlist are called.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import reduce
from typing import Any

from cvbatch.models.frameworks import keras, tf

Tensor = Any  # a keras.KerasTensor; Keras carries no type information

OPERATION_CLASSES = ("TFOpLambda", "SlicingOpLambda")
_NAMES = (  # below `tf`
    "__operators__.add __operators__.getitem cast clip_by_value compat.v1.transpose concat "
    "expand_dims identity image.flip_left_right image.resize image.rgb_to_grayscale math.abs "
    "math.add math.argmax math.divide math.divide_no_nan math.exp math.l2_normalize math.log "
    "math.maximum math.minimum math.multiply math.negative math.pow math.reduce_max "
    "math.reduce_mean math.reduce_min math.reduce_prod math.reduce_sum math.reciprocal math.rsqrt "
    "math.sigmoid math.softplus math.sqrt math.square math.subtract math.tanh math.truediv "
    "nn.avg_pool nn.avg_pool2d nn.bias_add nn.depth_to_space nn.elu nn.gelu nn.l2_normalize "
    "nn.leaky_relu nn.local_response_normalization nn.max_pool nn.max_pool2d nn.relu nn.relu6 "
    "nn.sigmoid nn.silu nn.softmax nn.space_to_depth nn.swish pad repeat reshape reverse split "
    "squeeze stack tile transpose unstack where"
)
_FUNCTIONS = frozenset(_NAMES.split())
_CONSTANT = "_CONSTANT_VALUE"  # stands for the name of a layer in a node


def is_known(function: str) -> bool:
    """Return whether a function of TensorFlow is on the allowlist."""
    return function in _FUNCTIONS


@keras.saving.register_keras_serializable("cvbatch")
class TensorFlowOperation(keras.layers.Layer):  # type: ignore[misc]
    """Call a function of TensorFlow on its inputs and constants.

    Args:
        function: name below `tf`, such as "math.truediv"; one of the allowlist.
        first: first argument; `{"input": i}` stands for the input i, also in lists.
        keywords: the other arguments by name, likewise.
    """

    def __init__(self, function: str, first: Any, keywords: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**{"autocast": False, **kwargs})
        if not is_known(function):
            raise ValueError(f"tf.{function} is not allowed")
        self.function, self.first, self.keywords = function, first, keywords

    def call(self, inputs: Tensor) -> Tensor:
        """Return the function's result."""
        tensors = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        function: Callable[..., Any] = reduce(getattr, self.function.split("."), tf)
        keywords = {key: _filled(value, tensors) for key, value in self.keywords.items()}
        return function(_filled(self.first, tensors), **keywords)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments, for saving."""
        config: dict[str, Any] = super().get_config()
        own = {"function": self.function, "first": self.first, "keywords": self.keywords}
        return config | own


def _filled(value: Any, tensors: Sequence[Tensor]) -> Any:
    """Return a value with tensors, slices and ellipses for the objects that stand for them."""
    if isinstance(value, dict):
        if "input" in value:
            return tensors[value["input"]]
        return ... if "class_name" in value else slice(value["start"], value["stop"], value["step"])
    if isinstance(value, (list, tuple)):
        return [_filled(item, tensors) for item in value]
    return value


def as_operation(layer: dict[str, Any], layer_names: Collection[str]) -> dict[str, Any]:
    """Return the config of a layer TFOpLambda or SlicingOpLambda as one of this module.

    Args:
        layer: entry of a functional network's `layers`.
        layer_names: of the network; a list (name, node, tensor) is a tensor.

    Raises:
        ValueError: the layer is called several times, with other constants each time.
    """
    calls = [_parsed_call(node, layer_names) for node in layer["inbound_nodes"]]
    if any(call[:2] != calls[0][:2] for call in calls):
        raise ValueError(f"the operation {layer['name']!r} has several calls with other constants")
    first, keywords, _ = calls[0]
    config = {"function": layer["config"]["function"], "first": first, "keywords": keywords}
    return {
        "class_name": "cvbatch>TensorFlowOperation",
        "name": layer["name"],
        "config": {"name": layer["name"], **config},
        "inbound_nodes": [[[*tensor, {}] for tensor in tensors] for *_, tensors in calls],
    }


def _parsed_call(
    node: list[Any], layer_names: Collection[str]
) -> tuple[Any, dict[str, Any], list[Any]]:
    """Return first argument, keywords and tensors of a call.

    Keras 2 wrote (layer, node, tensor, keywords) of the first argument, or a list of them.
    """
    tensors: list[Any] = []

    def parsed(value: Any) -> Any:
        if isinstance(value, list):
            is_tensor = len(value) == 3 and isinstance(value[0], str) and value[0] in layer_names
            if not is_tensor:
                return [parsed(item) for item in value]
            tensors.append(value)
            return {"input": len(tensors) - 1}
        return value

    def first_of(entry: list[Any]) -> Any:
        return entry[2] if entry[0] == _CONSTANT else parsed(entry[:3])

    is_single = isinstance(node[0], str)
    first = first_of(node) if is_single else [first_of(entry) for entry in node]
    arguments = (node if is_single else node[0])[3]
    keywords = {key: parsed(value) for key, value in arguments.items() if key != "name"}
    return first, keywords, tensors
