"""Select layers of a network by kind (convolutions, poolings) or by name."""

from __future__ import annotations

from collections.abc import Sequence

from cvbatch.core.errors import ModelError
from cvbatch.core.suggestions import closest_names
from cvbatch.inference.gradcam import Calls, leaf_operations, matching_paths, record_calls
from cvbatch.models.custom_layers import PartialConv2D, TrainableSubsampling
from cvbatch.models.frameworks import keras, tf
from cvbatch.models.graph_surgery import calls_of, flatten

KERNELS = (
    keras.layers.Conv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
)
CONVOLUTIONS = (*KERNELS, PartialConv2D)
POOLINGS = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D, TrainableSubsampling)

MapShapes = dict[str, tuple[int, int, int]]  # path of a layer → height, width, channels


def select_layers(
    model: keras.Model,
    names: Sequence[str] | None,
    kinds: tuple[type, ...],
    key: str,
) -> list[str]:
    """Return the paths of the selected layers.

    Args:
        model: network that has the layers.
        names: paths (outer/inner/layer) or ends of paths (layer). None selects by kind.
        kinds: layer classes; all layers of these classes are selected without names.
        key: key of the job file, for messages.

    Raises:
        ModelError: no layer has a name, or the model has no layer of these kinds.
    """
    operations = dict(leaf_operations(model))
    if names is None:
        of_kind = [path for path, operation in operations.items() if isinstance(operation, kinds)]
        if not of_kind:
            raise ModelError(
                f"{key}: model {model.name!r} has no convolution; set {key} to names of its "
                "layers, or remove the section"
            )
        return of_kind
    selected: dict[str, None] = {}
    for name in names:
        paths = matching_paths(list(operations), name)
        if not paths:
            near = closest_names(name, operations, 3, cutoff=0.3)
            hint = f"nearest are {', '.join(near)}" if near else "`cvbatch models` lists them"
            raise ModelError(f"{key}: {name!r} is no layer of model {model.name!r}; {hint}")
        selected |= dict.fromkeys(paths)
    return list(selected)


def feature_map_shapes(model: keras.Model, image_size: tuple[int, int]) -> MapShapes:
    """Return the shape of each layer's output that is a map (batch, height, width, channels)."""
    shapes: MapShapes = {}

    def trace(images: tf.Tensor) -> tf.Tensor:
        with record_calls(model) as calls:
            model(images, training=False)
        for path, output in zip(calls.paths, calls.outputs, strict=True):
            if output.shape.rank == 4 and None not in output.shape[1:]:
                height, width, channels = map(int, output.shape[1:])
                shapes[path] = height, width, channels
        return images

    spec = tf.TensorSpec((1, *image_size, model.input_shape[3]), tf.float32)
    tf.function(trace, input_signature=[spec], autograph=False).get_concrete_function()
    return shapes


def check_feature_maps(
    model: keras.Model, paths: Sequence[str], shapes: MapShapes, key: str
) -> None:
    """Raise ModelError, with the key of the job file, if the output of a layer is not a map."""
    for path in paths:
        if path not in shapes:
            raise _not_a_map(model, path, f"{key}: ")


def _not_a_map(model: keras.Model, path: str, prefix: str = "") -> ModelError:
    return ModelError(
        f"{prefix}layer {path!r} of model {model.name!r} has no output (batch, height, width, "
        "channels); use the name of a convolution or pooling"
    )


def last_convolution_per_size(model: keras.Model, shapes: MapShapes) -> list[str]:
    """Return the last convolution of each feature map size, in the network's order."""
    last: dict[tuple[int, int], str] = {}
    for path in select_layers(model, None, CONVOLUTIONS, "patterns.layers"):
        if path in shapes:
            last[shapes[path][:2]] = path
    return [path for path in shapes if path in last.values()]


def truncate_model(model: keras.Model, paths: Sequence[str]) -> keras.Model:
    """Return a model of the same layers whose outputs are the feature maps of some layers.

    Raises:
        ModelError: the model is not a graph of layers, or the output of a layer is not a map.
    """
    graph = flatten(model)
    operations = dict(leaf_operations(model))
    calls = list(calls_of(graph))
    outputs = []
    for path in paths:
        returned = [call.returned[0] for call in calls if call.operation is operations[path]]
        if not returned or len(returned[-1].shape) != 4:
            raise _not_a_map(model, path)
        outputs.append(returned[-1])
    return keras.Model(graph.inputs[0], outputs)


def layer_output(calls: Calls, path: str) -> tf.Tensor:  # (B, h, w, c)
    """Return the recorded output of a layer; of a shared layer that of its last call."""
    return calls.outputs[max(i for i, name in enumerate(calls.paths) if name == path)]
