"""Object detectors, which decode boxes in the graph.

A detector returns {"boxes", "scores"}. Its `training_view` is the same network without the
decoding layer; both share all weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cvbatch.core.errors import ModelError
from cvbatch.models import blocks
from cvbatch.models.applications import Weights
from cvbatch.models.backbones import build_backbone, total_stride
from cvbatch.models.box_decoding import BoxDecode, GridDecode, WindowDecode
from cvbatch.models.frameworks import keras, layers
from cvbatch.models.fully_convolutional import to_fully_convolutional
from cvbatch.models.graph_surgery import calls_of

Tensor = Any  # a keras.KerasTensor; Keras carries no type information

RAW_LAYER = "raw"  # name of the layer before the decoding layer
YOLO_STRIDE = 16  # pixels per cell of `yolo`
DEFAULT_WINDOW = (224, 224)  # (height, width) in pixels, of `sliding_fcn`
DEFAULT_ANCHORS = ((0.1, 0.1), (0.2, 0.1), (0.1, 0.2), (0.25, 0.25), (0.5, 0.5))
_BACKBONE = (  # filters as multiples of width, kernel, stride
    (1, 3, 2), (2, 3, 2), (2, 3, 1), (4, 3, 2), (2, 1, 1), (4, 3, 1), (8, 3, 2),
    (4, 1, 1), (8, 3, 1), (4, 1, 1), (8, 3, 1),
)  # fmt: skip
_DECODERS = (GridDecode, BoxDecode, WindowDecode)


def yolo(
    num_classes: int,
    image_size: tuple[int, int] = (416, 416),
    anchors: Sequence[Sequence[float]] = DEFAULT_ANCHORS,
    width: int = 32,
) -> keras.Model:  # (B, H, W, 3) → {"boxes": (B, N, 4) xyxy pixels, "scores": (B, N, C)}
    """Return a YOLO detector: per cell A × (4 coordinates + 1 objectness) + C class scores.

    The training view returns (B, H / 16, W / 16, A·5 + C), the input of `GridDecode`.

    Args:
        num_classes: C.
        image_size: (height, width) in pixels, multiples of 16.
        anchors: A pairs (height, width), as fractions of the image's height and width, such as
            those of `cvbatch.geometry.anchors.fit_anchors`.
        width: filters of the first convolution.

    Raises:
        ModelError: an anchor is not a pair of positive numbers.
    """
    if not anchors or any(len(anchor) != 2 or min(anchor) <= 0 for anchor in anchors):
        raise ModelError(
            f"anchors {list(anchors)}: at least one is required, each a pair (height, width) of "
            "positive fractions of the image's height and width, such as [0.2, 0.1]"
        )
    inputs = keras.Input((*image_size, 3), name="image")
    x = layers.Rescaling(1.0 / 255)(inputs)
    for filters, kernel, stride in _BACKBONE:
        x = blocks.conv_norm_relu(x, filters * width, kernel, stride)
    raw = layers.Conv2D(5 * len(anchors) + num_classes, 1, name=RAW_LAYER)(x)
    return keras.Model(inputs, GridDecode(anchors, YOLO_STRIDE, name="decode")(raw), name="yolo")


def localizer(
    num_classes: int,
    image_size: tuple[int, int] = (224, 224),
    backbone: str = "MobileNetV2",
    backbone_weights: Weights = None,
) -> keras.Model:  # (B, H, W, 3) → {"boxes": (B, 1, 4) xyxy pixels, "scores": (B, 1, C)}
    """Return a classifier that also predicts one box, both from globally pooled features.

    The training view returns {"box": (B, 4), "classes": (B, C)}, the inputs of `BoxDecode`; the
    classes are a softmax.

    Args:
        num_classes: C.
        image_size: (height, width) in pixels, any size that the backbone supports.
        backbone: a name for `build_backbone`.
        backbone_weights: "imagenet" or None.

    Raises:
        ModelError: the backbone is unknown, or does not have the weights or the image size.
    """
    features = build_backbone(backbone, image_size, backbone_weights)
    x = layers.GlobalAveragePooling2D(name="pool")(features.output)
    classes = layers.Dense(num_classes, activation="softmax", name="classes")(x)
    box = layers.Dense(4, name="box")(x)
    decoded = BoxDecode(name="decode")([box, classes, features.input])
    return keras.Model(features.input, decoded, name="localizer")


def dense_localizer(
    num_classes: int,
    backbone: str = "MobileNetV2",
    units: int = 256,
    backbone_weights: Weights = None,
    window: tuple[int, int] = DEFAULT_WINDOW,
) -> keras.Model:  # (B, h, w, 3) → {"classes": (B, C), "objectness": (B, 1), "box": (B, 4)}
    """Return `sliding_fcn` for a single window, with Dense heads: for training on crops.

    Classes are a softmax, objectness is a sigmoid, and a box is (centre y, centre x, √height,
    √width) as fractions of the window.

    Args:
        num_classes: C.
        backbone: a name for `build_backbone`.
        units: width of the hidden Dense layer.
        backbone_weights: "imagenet" or None.
        window: (height, width) of the crops in pixels.

    Raises:
        ModelError: the backbone is unknown, or does not have the weights or the image size.
    """
    features = build_backbone(backbone, window, backbone_weights)
    x = layers.Flatten(name="flatten")(features.output)
    x = layers.Dense(units, activation="relu", name="hidden")(x)
    heads = {
        "classes": layers.Dense(num_classes, activation="softmax", name="classes")(x),
        "objectness": layers.Dense(1, activation="sigmoid", name="objectness")(x),
        "box": layers.Dense(4, name="box")(x),
    }
    return keras.Model(features.input, heads, name="dense_localizer")


def sliding_fcn(
    num_classes: int,
    image_size: tuple[int, int] = DEFAULT_WINDOW,
    backbone: str = "MobileNetV2",
    units: int = 256,
    backbone_weights: Weights = None,
) -> keras.Model:  # (B, H, W, 3) → {"boxes": (B, N, 4) xyxy pixels, "scores": (B, N, C)}
    """Return a sliding-window `dense_localizer` as one convolutional network: a box per window.

    The training view returns (B, gh, gw, C + 5), the input of `WindowDecode`. `to_sliding_fcn`
    converts a trained `dense_localizer`.

    Args:
        num_classes: C.
        image_size: (height, width) in pixels, multiples of 32 from 224: 224×224 is 1 window,
            448×448 is 8×8 windows.
        backbone: a name for `build_backbone`.
        units: width of the hidden layer.
        backbone_weights: "imagenet" or None.

    Raises:
        ModelError: the backbone is unknown, or does not have the weights or the image size.
    """
    dense = dense_localizer(num_classes, backbone, units, backbone_weights)
    return to_sliding_fcn(dense, image_size)


def to_sliding_fcn(
    dense: keras.Model, image_size: tuple[int, int]
) -> keras.Model:  # (B, H, W, 3) → {"boxes": (B, N, 4) xyxy pixels, "scores": (B, N, C)}
    """Convert a `dense_localizer` to a `sliding_fcn`, with copies of its weights.

    Args:
        dense: a trained or untrained `dense_localizer`.
        image_size: (height, width) in pixels: the window of `dense` plus multiples of its
            backbone's stride.

    Raises:
        ModelError: the image size does not match, or the stride is not a whole number.
    """
    window = dense.input_shape[1:3]
    features = keras.Model(dense.input, dense.get_layer("flatten").input, name=dense.name)
    stride = total_stride(features)
    if any(
        side < window_side or (side - window_side) % stride
        for side, window_side in zip(image_size, window, strict=True)
    ):
        raise ModelError(
            f"image size {image_size[0]}×{image_size[1]}: a window of {window[0]}×{window[1]} "
            f"slides in steps of {stride}; height and width must be those of the window plus "
            f"multiples of {stride}"
        )
    heads = to_fully_convolutional(dense, image_size)
    maps = [heads.output[name] for name in ("classes", "objectness", "box")]
    raw = layers.Concatenate(name=RAW_LAYER)(maps)
    decoded = WindowDecode(window, stride, name="decode")(raw)
    return keras.Model(heads.input, decoded, name="sliding_fcn")


def training_view(detector: keras.Model) -> keras.Model:
    """Return the network without its decoding layer, sharing all weights.

    Its outputs are the inputs of that layer: one tensor for `yolo` and `sliding_fcn`, {"box",
    "classes"} for `localizer`.

    Raises:
        ModelError: the model has no decoding layer.
    """
    for call in calls_of(detector):
        if isinstance(call.operation, BoxDecode):
            box, classes, _ = call.received
            raw: Any = {"box": box, "classes": classes}  # this order keeps that of the variables
        elif isinstance(call.operation, _DECODERS):
            (raw,) = call.received
        else:
            continue
        return keras.Model(detector.input, raw, name=detector.name)
    raise ModelError(
        f"model {detector.name!r} has no decoding layer; yolo, localizer and sliding_fcn have one"
    )
