"""Layout of the inputs and outputs of model files: batches, channels, maps. Imports TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence

from cvbatch.core.errors import ModelError
from cvbatch.inference.programs import BuildRequest
from cvbatch.inference.runtimes import TensorInfo
from cvbatch.models.frameworks import tf

Sides = tuple[int | None, ...]
_IMAGE_CHANNELS = (1, 3)


def image_input(inputs: Sequence[TensorInfo]) -> TensorInfo:
    """Return the only input of a network.

    Raises:
        ModelError: it has several inputs, or its input is not one batch of images.
    """
    if len(inputs) == 1 and len(inputs[0].shape) == 4:
        return inputs[0]
    shapes = ", ".join(f"{info.name} {_text(info.shape)}" for info in inputs)
    raise ModelError(
        f"its inputs are {shapes or 'none'}; it must have one input of shape (batch, channels, "
        "height, width) or (batch, height, width, channels)"
    )


def is_channels_first(layout: str, shape: Sides) -> bool:
    """Return whether an input is (batch, channels, height, width).

    Raises:
        ModelError: the shape fits both layouts, or none.
    """
    fits = [shape[axis] in _IMAGE_CHANNELS for axis in (1, 3)]
    if fits[0] != fits[1]:
        return fits[0]
    if not any(fits):
        raise ModelError(f"its input has the shape {_text(shape)}, without 3 or 1 channels")
    if layout == "auto":
        raise ModelError(
            f"its input has the shape {_text(shape)}; set layout: channels_first or channels_last"
        )
    return layout == "channels_first"


def channels_last(shape: Sides, is_first: bool) -> Sides:
    """Return a shape as (batch, height, width, channels)."""
    return (shape[0], shape[2], shape[3], shape[1]) if is_first else shape


def arrange(
    sections: Sequence[BuildRequest],
    name: str,
    tensor: tf.Tensor,  # (B, ...)
    input_hw: tuple[int, int],
) -> tf.Tensor:
    """Return an output as the functions of the tasks expect it.

    Maps become (B, h, w, C), and vectors (B, C, 1, 1) or (B, 1, 1, C) become (B, C).

    Args:
        sections: of the job, which use the network.
        name: of the output.
        tensor: the output.
        input_hw: height and width of the network's input.

    Raises:
        ModelError: it is not clear which side of a map has the channels.
    """
    if tensor.shape.rank != 4 or any(section.config.task == "detection" for section in sections):
        return tensor
    batch, *sides = tensor.shape
    if sorted(sides)[:2] == [1, 1]:
        return tf.reshape(tensor, (batch, max(sides)))
    is_first = _maps_are_channels_first(sections, tensor.shape, input_hw)
    if is_first is not None:
        return tf.transpose(tensor, (0, 2, 3, 1)) if is_first else tensor
    raise ModelError(
        f"model {sections[0].config.model!r}: its output {name!r} has the shape "
        f"{_text(tuple(tensor.shape))}, in which the classes may be the second or the last side; "
        "set layout: channels_first or channels_last"
    )


def _maps_are_channels_first(
    sections: Sequence[BuildRequest], shape: tf.TensorShape, input_hw: tuple[int, int]
) -> bool | None:
    """Decide from the sizes of the maps, then from the numbers of classes, then from the job."""
    _, a, b, c = shape
    counts = {len(section.identity.classes or ()) for section in sections}
    units = (counts | {1} if 2 in counts else counts) - {0}  # 1: the positive of two classes
    layout = sections[0].config.layout
    tests = (
        (_is_map(b, c, input_hw), _is_map(a, b, input_hw)),
        (a in units, c in units),
        (layout == "channels_first", layout == "channels_last"),
    )
    return next((first for first, last in tests if first != last), None)


def _is_map(height: int, width: int, input_hw: tuple[int, int]) -> bool:
    """Return whether the sides are those of the input divided by one whole number."""
    return any(
        (height, width) == (-(-input_hw[0] // stride), -(-input_hw[1] // stride))
        for stride in range(1, min(input_hw))
    )


def _text(shape: Sides) -> str:
    return "(" + ", ".join("?" if side is None else str(side) for side in shape) + ")"
