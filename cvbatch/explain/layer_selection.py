"""Finds the layers of a network that a job means: its convolutions, its poolings, or by name."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from cvbatch.core.errors import ModelError
from cvbatch.core.suggestions import nearest
from cvbatch.inference.gradcam import Calls, leaf_operations, matching_paths, record_calls
from cvbatch.models.custom_layers import PartialConv2D, TrainableSubsampling
from cvbatch.models.graph_surgery import calls_of, flatten

KERNELS = (
    keras.layers.Conv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
)
CONVOLUTIONS = (*KERNELS, PartialConv2D)
POOLINGS = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D, TrainableSubsampling)


def select_layers(
    model: keras.Model,
    said: Sequence[str] | None,
    kinds: tuple[type, ...],
    what: str,
) -> list[str]:
    """Return the paths of the layers that are meant: those named, or all of some kinds.

    what: the job file's key, for messages. A name is a path (outer/inner/layer) or its end.

    Raises:
        ModelError: a name is no layer's, or there is none of these kinds.
    """
    steps = dict(leaf_operations(model))
    if said is None:
        found = [path for path, step in steps.items() if isinstance(step, kinds)]
        if not found:
            raise ModelError(
                f"{what}: model {model.name!r} has no convolution; name layers that it has, or "
                "leave the section out"
            )
        return found
    chosen: dict[str, None] = {}
    for name in said:
        paths = matching_paths(list(steps), name)
        if not paths:
            near = nearest(name, steps, 3, likeness=0.3)
            hint = f"nearest are {', '.join(near)}" if near else "`cvbatch models` lists them"
            raise ModelError(f"{what}: {name!r} is no layer of model {model.name!r}; {hint}")
        chosen |= dict.fromkeys(paths)
    return list(chosen)


def map_shapes(
    model: keras.Model, image_size: tuple[int, int]
) -> dict[str, tuple[int, int, int]]:  # height, width, channels
    """Return the shape of every layer's output that is a map (batch, height, width, channels)."""
    shapes: dict[str, tuple[int, int, int]] = {}

    def trace(images: tf.Tensor) -> tf.Tensor:
        with record_calls(model) as calls:
            model(images, training=False)
        for path, returned in zip(calls.paths, calls.outputs, strict=True):
            if returned.shape.rank == 4 and None not in returned.shape[1:]:
                height, width, channels = map(int, returned.shape[1:])
                shapes[path] = height, width, channels
        return images

    spec = tf.TensorSpec((1, *image_size, model.input_shape[3]), tf.float32)
    tf.function(trace, input_signature=[spec], autograph=False).get_concrete_function()
    return shapes


def check_maps(
    model: keras.Model,
    paths: Sequence[str],
    shapes: dict[str, tuple[int, int, int]],
    what: str,
) -> None:
    """Raise ModelError where a layer gives no map."""
    for path in paths:
        if path not in shapes:
            raise ModelError(
                f"{what}: layer {path!r} of model {model.name!r} gives no map (batch, height, "
                "width, channels); name a convolution or a pooling"
            )


def last_of_each_size(
    model: keras.Model,
    shapes: dict[str, tuple[int, int, int]],
) -> list[str]:
    """Return of each size of map the last convolution, in the network's order."""
    last: dict[tuple[int, int], str] = {}
    for path in select_layers(model, None, CONVOLUTIONS, "patterns"):
        if path in shapes:
            last[shapes[path][:2]] = path
    return [path for path in shapes if path in last.values()]


def truncate_model(model: keras.Model, paths: Sequence[str]) -> keras.Model:
    """Return the network up to some layers: the same layers, in one graph, their maps its outputs.

    Raises:
        ModelError: it is no graph, or a layer gives no map in it.
    """
    graph = flatten(model)
    steps = dict(leaf_operations(model))
    calls = list(calls_of(graph))
    outputs = []
    for path in paths:
        returned = [call.returned[0] for call in calls if call.operation is steps[path]]
        if not returned or len(returned[-1].shape) != 4:
            raise ModelError(
                f"layer {path!r} of model {model.name!r} gives no map (batch, height, width, "
                "channels); name a convolution or a pooling"
            )
        outputs.append(returned[-1])
    return keras.Model(graph.inputs[0], outputs)


def output_of(calls: Calls, path: str) -> tf.Tensor:  # (B, h, w, c)
    """Return what a layer returned while it was traced, last if it was called more than once."""
    at = max(i for i, name in enumerate(calls.paths) if name == path)
    return calls.outputs[at]
