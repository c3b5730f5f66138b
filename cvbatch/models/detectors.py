"""Networks that find boxes; the saved ones decode in the graph, so any job can run them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from cvbatch.models import blocks

Tensor = Any  # a keras.KerasTensor; Keras carries no type information

RAW = "raw"  # the layer whose output training sees
STRIDE = 16
DEFAULT_ANCHORS = ((0.1, 0.1), (0.2, 0.1), (0.1, 0.2), (0.25, 0.25), (0.5, 0.5))
_BACKBONE = (  # filters in widths, kernel, stride
    (1, 3, 2), (2, 3, 2), (2, 3, 1), (4, 3, 2), (2, 1, 1), (4, 3, 1), (8, 3, 2),
    (4, 1, 1), (8, 3, 1), (4, 1, 1), (8, 3, 1),
)  # fmt: skip


@keras.saving.register_keras_serializable("cvbatch")
class GridDecode(layers.Layer):  # type: ignore[misc]  # Keras carries no type information
    """Turns a grid of raw numbers into boxes and scores, in operations that LiteRT has.

    Input: (B, gh, gw, A·5 + C). A cell holds for each of A anchors (ty, tx, th, tw, to), then C
    class logits that its anchors share. Output: {"boxes": (B, gh·gw·A, 4) xyxy in pixels of the
    network's input, "scores": (B, gh·gw·A, C)}. A centre lies sigmoid(t) of a cell from the
    cell's corner; a side is exp(t) × the anchor's (Redmon and Farhadi, YOLO9000, 2017); a
    score is sigmoid(to) × softmax(class logits).

    anchors_px: A pairs (height, width) in pixels. stride: pixels of the input a cell spans.
    """

    def __init__(
        self, anchors_px: Sequence[Sequence[float]], stride: int = STRIDE, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.anchors_px = [[float(side) for side in anchor] for anchor in anchors_px]
        self.stride = stride

    def call(self, raw: Tensor) -> dict[str, Tensor]:
        """Return the boxes and scores of a raw grid (B, gh, gw, A·5 + C)."""
        grid_h, grid_w, depth = raw.shape[1:]
        num_anchors = len(self.anchors_px)
        num_classes = depth - 5 * num_anchors
        numbers = ops.reshape(raw[..., : 5 * num_anchors], (-1, grid_h * grid_w, num_anchors, 5))
        corners = _cell_corners(grid_h, grid_w)  # (gh·gw, 1, 2) y, x
        center = (ops.sigmoid(numbers[..., 0:2]) + corners) * float(self.stride)
        half = ops.exp(numbers[..., 2:4]) * (np.array(self.anchors_px, np.float32) / 2)
        low, high = center - half, center + half
        boxes = ops.concatenate(
            [low[..., 1:2], low[..., 0:1], high[..., 1:2], high[..., 0:1]], axis=-1
        )
        classes = ops.softmax(raw[..., 5 * num_anchors :], axis=-1)
        classes = ops.reshape(classes, (-1, grid_h * grid_w, 1, num_classes))
        scores = ops.sigmoid(numbers[..., 4:5]) * classes
        num_boxes = grid_h * grid_w * num_anchors
        return {
            "boxes": ops.reshape(boxes, (-1, num_boxes, 4)),
            "scores": ops.reshape(scores, (-1, num_boxes, num_classes)),
        }

    def get_config(self) -> dict[str, Any]:
        """Return what the layer is made again from."""
        config: dict[str, Any] = super().get_config()
        return config | {"anchors_px": self.anchors_px, "stride": self.stride}


def yolo(
    num_classes: int,
    image_size: tuple[int, int] = (416, 416),
    anchors: Sequence[tuple[float, float]] = DEFAULT_ANCHORS,
    width: int = 32,
) -> keras.Model:  # (B, H, W, 3) → {"boxes": (B, N, 4) xyxy pixels, "scores": (B, N, C)}
    """Return a one-shot grid detector: per cell A × (4 coordinates + 1 objectness) + C scores.

    image_size: (height, width) in pixels, multiples of 16. anchors: (height, width) as parts of
    the image's. For training take `training_view` of it; `GridDecode` says what the numbers mean.
    """
    inputs = keras.Input((*image_size, 3), name="image")
    x = layers.Rescaling(1.0 / 255)(inputs)
    for filters, kernel, stride in _BACKBONE:
        x = blocks.conv_norm_relu(x, filters * width, kernel, stride)
    raw = layers.Conv2D(5 * len(anchors) + num_classes, 1, name=RAW)(x)
    anchors_px = [(h * image_size[0], w * image_size[1]) for h, w in anchors]
    return keras.Model(inputs, GridDecode(anchors_px, name="decode")(raw), name="yolo")


def training_view(detector: keras.Model) -> keras.Model:  # (B, H, W, 3) → (B, gh, gw, A·5 + C)
    """Return the same network, the same weights, ending before `GridDecode`."""
    return keras.Model(detector.input, detector.get_layer(RAW).output, name=detector.name)


def _cell_corners(grid_h: int, grid_w: int) -> np.ndarray:  # → (gh·gw, 1, 2) float32 y, x
    rows, columns = np.mgrid[0:grid_h, 0:grid_w]
    return np.stack([rows, columns], axis=-1).reshape(-1, 1, 2).astype(np.float32)
