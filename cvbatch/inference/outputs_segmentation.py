"""Outputs of the serving graph for segmentation: probabilities or class ids; imports TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvbatch.config.models import ADD_BACKGROUND, Activation, SegmentationConfig
from cvbatch.core.errors import ModelError
from cvbatch.core.types import MAX_MASK_CLASSES, VOID_CLASS
from cvbatch.inference.activation import with_activation
from cvbatch.inference.forward_pass import ForwardPass, Tensors
from cvbatch.models.frameworks import keras, ops, tf
from cvbatch.models.outputs import select_output

_EXPECTED = (
    "one output of class scores or class ids per pixel (B, height, width, classes), "
    "(B, height · width, classes) or (B, height, width)"
)


def as_maps(
    config: SegmentationConfig, outputs: Mapping[str, Any], input_hw: tuple[int, int]
) -> dict[str, Any]:
    """Return the outputs with maps (B, h, w, units), where the only ones are of three dimensions.

    The grid of (B, h · w, units) and of (B, h, w) is the input's, divided by a whole stride.

    Raises:
        ModelError: the shape of an output is not clear.
    """
    named = {k: v for k, v in outputs.items() if config.output in (None, k)}
    if any(len(tensor.shape) == 4 for tensor in named.values()):
        return dict(outputs)
    shapes = {k: _map_shape(config, v.shape, input_hw) for k, v in named.items()}
    maps = {k: ops.reshape(named[k], shape) for k, shape in shapes.items() if shape}
    return maps or dict(outputs)


def _map_shape(
    config: SegmentationConfig, shape: Any, input_hw: tuple[int, int]
) -> tuple[int, ...] | None:
    """Return the shape with four dimensions; None if it is no map of the input."""
    if len(shape) != 3 or None in shape[1:]:
        return None
    first, second = int(shape[1]), int(shape[2])
    height, width = input_hw
    strides = [s for s in range(1, min(input_hw) + 1) if height % s == width % s == 0]
    grids = [(height // s, width // s) for s in strides]
    shapes = [(-1, h, w, second) for h, w in grids if h * w == first]
    shapes += [(-1, h, w, 1) for h, w in grids if (h, w) == (first, second)]
    if len(shapes) > 1:
        raise ModelError(
            f"model {config.model!r}: its output (B, {first}, {second}) may be one map or a row of "
            "pixels with scores; give the network an output (B, height, width, classes)"
        )
    return shapes[0] if shapes else None


def maps_output(config: SegmentationConfig, outputs: Mapping[str, Any]) -> Any:
    """Return the output (B, h, w, units) of class maps. Raises ModelError if it is not unique."""
    return select_output("segmentation", _EXPECTED, outputs, config.output, 4)


def num_ids(config: SegmentationConfig, maps: Any) -> int:
    """Return the number of classes of a map of class ids; 0 for scores.

    One channel of whole numbers is a map of ids, and so is one channel with more than two names.

    Raises:
        ModelError: the job gives no class names, or keys that need scores.
    """
    names = config.classes if isinstance(config.classes, list) else None
    is_whole = keras.backend.standardize_dtype(maps.dtype).startswith(("int", "uint", "bool"))
    if int(maps.shape[-1]) != 1 or not (is_whole or (names and len(names) > 2)):
        return 0
    if names is None:
        raise ModelError(
            f"model {config.model!r} returns class ids, which do not tell how many classes there "
            "are; set classes: to their names, in the order of the ids"
        )
    for key in ("tiles", "score_threshold", "background"):
        if getattr(config, key) is not None:
            raise ModelError(
                f"model {config.model!r} returns class ids, and {key} needs scores; remove {key}, "
                "or save the network without its arg-max"
            )
    return len(names)


def count_classes(config: SegmentationConfig, outputs: Mapping[str, Any]) -> int:
    """Return the number of classes, without one that `background: add` adds.

    Raises:
        ModelError: a mask cannot hold the classes, or the job's keys do not fit the channels.
    """
    maps = maps_output(config, outputs)
    units = int(maps.shape[-1])
    count = num_ids(config, maps) or (2 if units == 1 else units)
    limit = MAX_MASK_CLASSES - (config.background == ADD_BACKGROUND)
    if count > limit:
        raise ModelError(
            f"model {config.model!r} has {count} classes; an 8-bit mask allows {limit}"
        )
    if units == 1:
        if config.background is not None:
            raise ModelError(
                f"model {config.model!r} has one channel, whose background is class 0; remove "
                "background"
            )
    elif config.score_threshold is not None and config.background is None:
        raise ModelError(
            f"model {config.model!r}: score_threshold needs the class of the pixels below it; set "
            f"background: to the name of a class, or to {ADD_BACKGROUND} for one more class"
        )
    names = config.classes if isinstance(config.classes, list) else [str(i) for i in range(count)]
    if config.background not in (None, ADD_BACKGROUND, *names):
        raise ModelError(
            f"background: the model has no class {config.background!r}; its classes are "
            f"{', '.join(names[:20])}; set {ADD_BACKGROUND} for one more class"
        )
    return count


def compute(forward: ForwardPass) -> Tensors:
    """Return mask (B, h, w) uint8, or probabilities (B, h, w, units) on the network's grid.

    Probabilities are for masks that are interpolated or have a threshold. Class ids that no class
    has are `VOID_CLASS`.
    """
    config: SegmentationConfig = forward.config
    maps = maps_output(config, forward.outputs)
    if count := num_ids(config, maps):
        ids = tf.cast(maps[..., 0], tf.int32)
        is_class = tf.logical_and(ids >= 0, ids < count)
        return {"mask": tf.cast(tf.where(is_class, ids, VOID_CLASS), tf.uint8)}
    if config.needs_probabilities:
        return {"probabilities": with_activation(maps, forward.activation)}
    if tuple(maps.shape[1:3]) != forward.input_hw:  # the network has an output stride
        maps = tf.image.resize(maps, forward.input_hw)
    return {"mask": _mask(maps, forward.activation)}


def _mask(
    maps: tf.Tensor,  # (B, H, W, units)
    activation: Activation,
) -> tf.Tensor:  # (B, H, W) uint8
    if maps.shape[3] > 1:
        return tf.cast(tf.argmax(maps, axis=-1, output_type=tf.int32), tf.uint8)
    return tf.cast(maps[..., 0] > (0.5 if activation == "none" else 0), tf.uint8)
