"""Networks that find boxes; the saved ones decode in the graph, so any job can run them.

Each is one network with two views: what a file holds answers {"boxes", "scores"}; its
`training_view` stops before the decoding and shares every weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from cvbatch.core.errors import ModelError
from cvbatch.models import blocks
from cvbatch.models.applications import Weights
from cvbatch.models.backbones import build_backbone, total_stride
from cvbatch.models.box_decoding import BoxDecode, GridDecode, WindowDecode
from cvbatch.models.fully_convolutional import to_fully_convolutional
from cvbatch.models.graph_surgery import calls_of

Tensor = Any  # a keras.KerasTensor; Keras carries no type information

RAW_LAYER = "raw"  # the layer whose output training sees
YOLO_STRIDE = 16  # of `yolo`
DEFAULT_WINDOW = (224, 224)  # what `sliding_fcn` slides: height, width in pixels
DEFAULT_ANCHORS = ((0.1, 0.1), (0.2, 0.1), (0.1, 0.2), (0.25, 0.25), (0.5, 0.5))
_BACKBONE = (  # filters in widths, kernel, stride
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
    """Return a one-shot grid detector: per cell A × (4 coordinates + 1 objectness) + C scores.

    image_size: (height, width) in pixels, multiples of 16. anchors: (height, width) as parts of
    the image's, as `cvbatch.geometry.anchors.fit_anchors` finds them. width: filters of the first
    convolution. The training view answers (B, H / 16, W / 16, A·5 + C): `GridDecode` says what
    the numbers mean.

    Raises:
        ModelError: an anchor is no pair of positive numbers.
    """
    if not anchors or any(len(anchor) != 2 or min(anchor) <= 0 for anchor in anchors):
        raise ModelError(
            f"anchors {list(anchors)}: there must be at least one, each a pair (height, width) of "
            "positive parts of the image's, such as [0.2, 0.1]"
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
    """Return a classifier that also says where: pooled features, a softmax, and one box.

    image_size: (height, width) in pixels, any the backbone takes. backbone_weights: "imagenet"
    or None. The training view answers {"box": (B, 4), the numbers that `BoxDecode` reads,
    "classes": (B, C), a softmax}.

    Raises:
        ModelError: the backbone is unknown, or has no such weights or size.
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
    """Return what `sliding_fcn` slides, with its heads still dense: for training on crops.

    window: (height, width) in pixels of the crops. Classes are a softmax, objectness a
    sigmoid, the box (centre y, centre x, √height, √width) as parts of the window.

    Raises:
        ModelError: the backbone is unknown, or has no such weights or size.
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
    """Return `dense_localizer` slid over a larger image in one pass: N windows, N boxes.

    image_size: (height, width) in pixels, multiples of 32 from 224: at 224 there is 1 window, at
    448 there are 8 × 8. The training view answers (B, gh, gw, C + 5), which `WindowDecode`
    reads. To slide one that is trained already, take `slide`.

    Raises:
        ModelError: the backbone is unknown, or has no such weights or size.
    """
    dense = dense_localizer(num_classes, backbone, units, backbone_weights)
    return to_sliding_fcn(dense, image_size)


def to_sliding_fcn(
    dense: keras.Model, image_size: tuple[int, int]
) -> keras.Model:  # (B, H, W, 3) → {"boxes": (B, N, 4) xyxy pixels, "scores": (B, N, C)}
    """Return a `dense_localizer` made convolutional, with its weights, over larger images.

    image_size: (height, width) in pixels, at least the dense network's own window, and larger
    by multiples of its backbone's stride.

    Raises:
        ModelError: the image size is another, or the backbone has no whole stride.
    """
    window = dense.input_shape[1:3]
    features = keras.Model(dense.input, dense.get_layer("flatten").input, name=dense.name)
    stride = total_stride(features)
    if any(
        side < least or (side - least) % stride
        for side, least in zip(image_size, window, strict=True)
    ):
        raise ModelError(
            f"image size {image_size[0]}×{image_size[1]}: a window of {window[0]}×{window[1]} "
            f"slides in steps of {stride}, so the sides must be those of the window or larger by "
            f"multiples of {stride}"
        )
    heads = to_fully_convolutional(dense, image_size)
    maps = [heads.output[name] for name in ("classes", "objectness", "box")]
    raw = layers.Concatenate(name=RAW_LAYER)(maps)
    decoded = WindowDecode(window, stride, name="decode")(raw)
    return keras.Model(heads.input, decoded, name="sliding_fcn")


def training_view(detector: keras.Model) -> keras.Model:  # (B, H, W, 3) → raw numbers
    """Return the same network, the same weights, ending before its decoding layer.

    Its answer is what that layer reads: one tensor for `yolo` and `sliding_fcn`, {"box",
    "classes"} for `localizer`.

    Raises:
        ModelError: the model ends in none of the decoding layers.
    """
    for call in calls_of(detector):
        if isinstance(call.operation, BoxDecode):
            box, classes, _ = call.received
            raw: Any = {"box": box, "classes": classes}  # in this order: so are the weights
        elif isinstance(call.operation, _DECODERS):
            (raw,) = call.received
        else:
            continue
        return keras.Model(detector.input, raw, name=detector.name)
    raise ModelError(
        f"model {detector.name!r} has no decoding layer to leave out; there is one in yolo, "
        "localizer and sliding_fcn"
    )
