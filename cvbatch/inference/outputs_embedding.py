"""Outputs of the serving graph for embedding: one feature vector per image; imports TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvbatch.config.models import EmbeddingConfig
from cvbatch.core.errors import ModelError
from cvbatch.core.suggestions import closest_names
from cvbatch.inference import gradcam
from cvbatch.inference.forward_pass import ForwardPass, Tensors
from cvbatch.inference.value_ranges import values_of
from cvbatch.models.frameworks import keras, tf
from cvbatch.models.outputs import output_mismatch, shape_text

_POOLINGS = {"average": tf.reduce_mean, "max": tf.reduce_max}


def check_output(config: EmbeddingConfig, outputs: Mapping[str, Any]) -> int:
    """Return 0, the number of classes. Raises ModelError if the output is not a vector or a map."""
    if config.layer is None:
        name, features = _single_output(config, outputs)
        _check_shape(config, features, f"the output {name!r}")
    return 0


def compute(forward: ForwardPass) -> Tensors:
    """Return embedding (B, D)."""
    config: EmbeddingConfig = forward.config
    if config.layer is None:
        name, features = _single_output(config, forward.outputs)
        source = f"the output {name!r}"
        if config.output is None and values_of(features).are_probabilities:
            raise ModelError(
                f"embedding of {config.model!r}: {source} is probabilities of classes; set layer: "
                f"auto for the vector that the head receives, or output: {name} to store them"
            )
    elif config.layer == "auto":
        features, source = _head_input(forward)
    else:
        features, source = _layer_output(forward.calls, config.layer)
    _check_shape(config, features, source)
    vector = tf.cast(features, tf.float32)
    if len(vector.shape) == 4:
        vector = _POOLINGS[config.pooling or "average"](vector, axis=(1, 2))
    forward.dimension, forward.vector_source = int(vector.shape[1]), source
    return {"embedding": tf.math.l2_normalize(vector, axis=1) if config.normalize else vector}


def _single_output(config: EmbeddingConfig, outputs: Mapping[str, Any]) -> tuple[str, Any]:
    """Return name and tensor of the output called `output`, or of the only one."""
    name = config.output or next(iter(outputs))
    if name not in outputs or (config.output is None and len(outputs) > 1):
        expected = f"the output {config.output!r}" if config.output else "one output"
        raise output_mismatch("embedding", f"{expected} (choose with output or layer)", outputs)
    return name, outputs[name]


def _check_shape(config: EmbeddingConfig, features: Any, source: str) -> None:
    """Raise ModelError unless it is clear how the tensor becomes one vector."""
    shape = tuple(features.shape)
    found = f"embedding of {config.model!r}: {source} has the shape {shape_text(features)}"
    if len(shape) not in (2, 4) or None in shape[1:]:
        raise ModelError(
            f"{found}, but must be (B, numbers), or (B, height, width, channels) with pooling; "
            "set layer to another layer, or to auto"
        )
    if len(shape) == 2 and config.pooling:
        raise ModelError(f"{found}, a vector without height and width; remove pooling")
    if len(shape) == 4 and shape[1:3] != (1, 1) and config.pooling is None:
        raise ModelError(f"{found}, a feature map; set pooling: average or pooling: max")


def _layer_output(calls: gradcam.Calls, layer: str) -> tuple[tf.Tensor, str]:
    """Return what the layer of this name or path returns."""
    paths = set(gradcam.matching_paths(calls.paths, layer))
    found = [i for i, path in enumerate(calls.paths) if path in paths]
    if len(found) == 1:
        return calls.outputs[found[0]], f"the output of the layer {calls.paths[found[0]]!r}"
    if found:
        raise ModelError(
            f"embedding layer {layer!r} is called {len(found)} times "
            f"({', '.join(sorted(paths))}); set layer to the path of a layer that is called once"
        )
    near = closest_names(layer, calls.paths, cutoff=0.3)
    hint = f"the nearest is {near[0]!r}; " if near else ""
    raise ModelError(
        f"embedding layer {layer!r} is not in the network; {hint}set layer: auto for the input of "
        "its head"
    )


def _head_input(forward: ForwardPass) -> tuple[tf.Tensor, str]:
    """Return the vector that the last Dense layer or convolution before the outputs receives.

    Heads of several outputs must receive the same vector.
    """
    config, outputs = forward.config, forward.outputs
    names = [_single_output(config, outputs)[0]] if config.output else list(outputs)
    heads = {name: _head(forward.calls, outputs[name], config.model) for name in names}
    inputs = [forward.calls.inputs[call][0] for call in heads.values()]
    paths = {name: forward.calls.paths[call] for name, call in heads.items()}
    if any(tensor is not inputs[0] for tensor in inputs):
        raise ModelError(
            f"layer auto: the heads of {config.model!r} have different inputs ("
            + ", ".join(f"{path} of the output {name}" for name, path in paths.items())
            + "); choose the head with output: NAME, or set layer"
        )
    shape = inputs[0].shape
    if len(shape) != 2 and not (len(shape) == 4 and tuple(shape[1:3]) == (1, 1)):
        raise ModelError(
            f"layer auto: the last layer with weights of {config.model!r}, {paths[names[0]]!r}, "
            f"receives {shape_text(inputs[0])}, which is no feature vector; set layer to the layer "
            "whose output is wanted, or remove it to use the network's output"
        )
    return inputs[0], f"the input of the layer {' and '.join(map(repr, paths.values()))}"


def _head(calls: gradcam.Calls, output: tf.Tensor, model: str) -> int:
    """Return the index of the last call of a layer with a kernel that the output depends on.

    Only batch normalisation and layers without weights may follow it: the weights of a layer of
    another kind could be those of a head that is not recognised.
    """
    for i in reversed(range(len(calls.paths))):
        operation = calls.operations[i]
        is_skipped = isinstance(operation, keras.layers.BatchNormalization)
        if is_skipped or not getattr(operation, "weights", ()):
            continue
        if not gradcam.depends(output, calls.outputs[i]):
            continue
        if getattr(operation, "kernel", None) is None:
            raise ModelError(
                f"layer auto: the last layer with weights of {model!r}, {calls.paths[i]!r}, is a "
                f"{type(operation).__name__}, neither a Dense layer nor a convolution; set layer "
                "to the layer whose output is wanted"
            )
        return i
    raise ModelError(
        f"layer auto: no layer with weights of {model!r} is the head of an output; set layer to "
        "the layer whose output is wanted"
    )
