"""Keras layers that decode the raw outputs of detection heads to boxes and scores.

They are part of the saved graph, use only operations that LiteRT supports, and work at any image
size. They compute in float32 under every precision policy, because float16 and bfloat16 cannot
represent pixel coordinates exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cvbatch.core.errors import ModelError
from cvbatch.models.frameworks import keras, layers, ops

Tensor = Any  # a keras.KerasTensor; Keras carries no type information

_MAX_LOG_SCALE = float(np.log(1000 / 16))  # of a side, so that exp does not overflow (torchvision)
_BACKGROUNDS = ("first", "last", "none")


@keras.saving.register_keras_serializable("cvbatch")
class GridDecode(layers.Layer):  # type: ignore[misc]  # Keras carries no type information
    """Decode the grid of an anchor-based detector (YOLO).

    Input: (B, gh, gw, A·5 + C). A cell contains (ty, tx, th, tw, to) for each of A anchors, then C
    class logits shared by its anchors. Output: {"boxes": (B, gh·gw·A, 4) xyxy in pixels of the
    network's input, "scores": (B, gh·gw·A, C)}. The centre is sigmoid(ty, tx) cells from the
    cell's top left corner, height and width are exp(th, tw) × the anchor's, and a score is
    sigmoid(to) × softmax(class logits).

    Args:
        anchors: A pairs (height, width), as fractions of the image's height and width.
        stride: pixels of the input per cell.

    Source: Redmon and Farhadi, YOLO9000, 2017.
    """

    def __init__(self, anchors: Sequence[Sequence[float]], stride: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.anchors = [[float(side) for side in anchor] for anchor in anchors]
        self.stride = stride

    def call(self, raw: Tensor) -> dict[str, Tensor]:
        """Return the boxes and scores of a raw grid (B, gh, gw, A·5 + C)."""
        raw = ops.cast(raw, "float32")
        grid_h, grid_w, depth = raw.shape[1:]
        num_anchors = len(self.anchors)
        num_classes = depth - 5 * num_anchors
        values = ops.reshape(raw[..., : 5 * num_anchors], (-1, grid_h * grid_w, num_anchors, 5))
        corners = _cell_corners(grid_h, grid_w)[:, None]  # (gh·gw, 1, 2) y, x
        center = (ops.sigmoid(values[..., 0:2]) + corners) * float(self.stride)
        image_hw = np.array([grid_h, grid_w], np.float32) * self.stride
        half = ops.exp(values[..., 2:4]) * (np.array(self.anchors, np.float32) * image_hw / 2)
        classes = ops.softmax(raw[..., 5 * num_anchors :], axis=-1)
        classes = ops.reshape(classes, (-1, grid_h * grid_w, 1, num_classes))
        scores = ops.sigmoid(values[..., 4:5]) * classes
        num_boxes = grid_h * grid_w * num_anchors
        return {
            "boxes": ops.reshape(_to_xyxy(center, half), (-1, num_boxes, 4)),
            "scores": ops.reshape(scores, (-1, num_boxes, num_classes)),
        }

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments, for saving."""
        config: dict[str, Any] = super().get_config()
        return config | {"anchors": self.anchors, "stride": self.stride}


@keras.saving.register_keras_serializable("cvbatch")
class BoxDecode(layers.Layer):  # type: ignore[misc]  # Keras carries no type information
    """Decode the single box of a localizer.

    Input: [box (B, 4), classes (B, C), image (B, H, W, channels)]. A box is (centre y, centre x,
    √height, √width) as fractions of the image's height and width; of the image only the size is
    used. Output: {"boxes": (B, 1, 4) xyxy in pixels, "scores": (B, 1, C), the classes}.
    """

    def call(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the box and the scores of each image."""
        box, classes, image = inputs
        box = ops.cast(box, "float32")
        image_hw = np.array(image.shape[1:3], np.float32)
        boxes = _to_xyxy(box[:, 0:2] * image_hw, ops.square(box[:, 2:4]) * (image_hw / 2))
        return {"boxes": ops.expand_dims(boxes, 1), "scores": ops.expand_dims(classes, 1)}


@keras.saving.register_keras_serializable("cvbatch")
class WindowDecode(layers.Layer):  # type: ignore[misc]  # Keras carries no type information
    """Decode one box per window of a sliding-window localizer.

    Input: (B, gh, gw, C + 5). A cell contains C class scores, objectness 0..1, and (centre y,
    centre x, √height, √width) as fractions of its window. Output: {"boxes": (B, gh·gw, 4) xyxy in
    pixels of the network's input, "scores": (B, gh·gw, C), objectness × class score}.

    Args:
        window: (height, width) in pixels of the input.
        stride: pixels between neighbouring windows.
    """

    def __init__(self, window: tuple[int, int], stride: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.window = (int(window[0]), int(window[1]))
        self.stride = stride

    def call(self, raw: Tensor) -> dict[str, Tensor]:
        """Return the boxes and scores of a raw grid (B, gh, gw, C + 5)."""
        raw = ops.cast(raw, "float32")
        grid_h, grid_w, depth = raw.shape[1:]
        cells = ops.reshape(raw, (-1, grid_h * grid_w, depth))
        classes, objectness = cells[..., : depth - 5], cells[..., depth - 5 : depth - 4]
        center, root = cells[..., depth - 4 : depth - 2], cells[..., depth - 2 :]
        window_hw = np.array(self.window, np.float32)
        offset = _cell_corners(grid_h, grid_w) * np.float32(self.stride)
        boxes = _to_xyxy(center * window_hw + offset, ops.square(root) * (window_hw / 2))
        return {"boxes": boxes, "scores": objectness * classes}

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments, for saving."""
        config: dict[str, Any] = super().get_config()
        return config | {"window": self.window, "stride": self.stride}


@keras.saving.register_keras_serializable("cvbatch")
class AnchorDecode(layers.Layer):  # type: ignore[misc]  # Keras carries no type information
    """Decode the deltas of an anchor-based detector (SSD).

    Input: [deltas (B, N, 4) x, y, width, height; class logits (B, N, K)]. Output: {"boxes":
    (B, N, 4) xyxy in the unit of the anchors, "scores": (B, N, C)}. C is K, or K − 1 with a
    background class, which is removed after the activation.

    Args:
        anchors: N boxes center_xywh ("priors"), in pixels of the input, or in fractions of it for
            `box_format: rel_xyxy`.
        variances: factors of the four deltas.
        activation: of the class logits: softmax or sigmoid.
        background: position of the background class: first, last or none.

    Raises:
        ModelError: the anchors do not have the shape (N, 4), or background is unknown.

    Source: Liu et al., SSD, 2016; the variances are those of its code.
    """

    def __init__(
        self,
        anchors: Sequence[Sequence[float]] | np.ndarray,
        variances: Sequence[float] = (0.1, 0.1, 0.2, 0.2),
        activation: str = "softmax",
        background: str = "first",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # float32: NumPy's float64 would make Keras compute in float64, which LiteRT lacks.
        self.anchors = np.array(anchors, np.float32)
        if self.anchors.ndim != 2 or self.anchors.shape[1] != 4 or background not in _BACKGROUNDS:
            raise ModelError(
                f"AnchorDecode {self.name}: anchors of shape {self.anchors.shape} and background "
                f"{background!r}; anchors must have the shape (N, 4), and background must be one "
                f"of {', '.join(_BACKGROUNDS)}"
            )
        self.variances = [float(factor) for factor in variances]
        self.activation = keras.activations.get(activation)
        self.background = background

    def call(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the boxes and scores of [deltas (B, N, 4), logits (B, N, K)]."""
        deltas, logits = (ops.cast(tensor, "float32") for tensor in inputs)
        scores = self.activation(logits)
        first, last = self.background == "first", self.background == "last"
        scores = scores[..., int(first) : scores.shape[-1] - int(last)]
        return {"boxes": decode_deltas(deltas, self.anchors, self.variances), "scores": scores}

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments, for saving."""
        config: dict[str, Any] = super().get_config()
        return config | {
            "anchors": self.anchors.tolist(),
            "variances": self.variances,
            "activation": keras.activations.serialize(self.activation),
            "background": self.background,
        }


def decode_deltas(
    deltas: Tensor,  # (B, N, 4) x, y, width, height
    anchors: np.ndarray,  # (N, 4) float32 center_xywh
    variances: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
) -> Tensor:  # (B, N, 4) float32 xyxy in the unit of the anchors
    """Return the boxes whose centres and sides are given relative to those of anchors.

    The centre is the anchor's plus delta × variance × its sides; a side is the anchor's ×
    exp(delta × variance).

    Source: Girshick et al., R-CNN, 2014, appendix C; the limit of exp is torchvision's.
    """
    factors = np.array(variances, np.float32)
    sides = anchors[:, 2:]
    center = deltas[..., 0:2] * (factors[0:2] * sides) + anchors[:, 0:2]
    log_scale = ops.minimum(deltas[..., 2:4] * factors[2:4], np.float32(_MAX_LOG_SCALE))
    half = ops.exp(log_scale) * (sides / 2)
    return ops.concatenate([center - half, center + half], axis=-1)


def _to_xyxy(center: Tensor, half: Tensor) -> Tensor:  # two (..., 2) y, x → (..., 4) xyxy
    low, high = center - half, center + half
    return ops.concatenate([low[..., 1:2], low[..., 0:1], high[..., 1:2], high[..., 0:1]], axis=-1)


def _cell_corners(grid_h: int, grid_w: int) -> np.ndarray:  # → (gh·gw, 2) float32 y, x
    rows, columns = np.mgrid[0:grid_h, 0:grid_w]
    return np.stack([rows, columns], axis=-1).reshape(-1, 2).astype(np.float32)
