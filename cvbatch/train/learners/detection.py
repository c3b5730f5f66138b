"""Learners of localization (one box per image) and detection (any number of boxes).

Targets are the inverse of the network's box decoding: raw outputs that equal the targets decode to
the true boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cvbatch.core.errors import ConfigError, ModelError
from cvbatch.core.types import TrainingExample, join_boxes
from cvbatch.geometry.boxes import NmsSettings, clip_boxes, non_max_suppression
from cvbatch.metrics.average_precision import AveragePrecision
from cvbatch.metrics.box_matching import GroundTruthBoxes
from cvbatch.metrics.classification import BoxIoU, TopK
from cvbatch.models.box_decoding import BoxDecode, GridDecode, WindowDecode
from cvbatch.models.class_head import ClassScores
from cvbatch.models.detectors import training_view
from cvbatch.models.frameworks import keras, layers
from cvbatch.models.graph_surgery import call_of, calls_of, flatten
from cvbatch.train.learners.logits import logits_of
from cvbatch.train.learners.losses import ClassLoss, box_error, grid_losses, window_losses
from cvbatch.train.learners.metrics import MetricSet
from cvbatch.train.learners.targets import Targets, grid_targets, single_boxes, window_targets

Tensor = Any  # a tensor of Keras' backend; Keras carries no type information
_RAW = "raw"
_CROSS_ENTROPY = ClassLoss()
# For validation: nearly all boxes, at most COCO's 100 per image.
_NMS = NmsSettings(score_threshold=0.01, iou_threshold=0.6, max_detections=100)
_IGNORE_IOU = 0.6  # of grid detectors, see `losses.grid_losses`


def box_scores(graph: keras.Model, output: str | None) -> list[ClassScores]:
    """Return the class scores of a flat localizer or detector of the zoo.

    Raises:
        ModelError: the model has no decoding layer.
    """
    view = training_view(graph)
    if isinstance(view.output, Mapping):
        return [ClassScores(view.output["classes"])]
    grid = next((c.operation for c in calls_of(graph) if isinstance(c.operation, GridDecode)), None)
    if grid is not None:
        return [ClassScores(view.output, first=5 * len(grid.anchors))]
    return [ClassScores(_window_maps(view)[0])]


class Localization:
    """Localization: class and box of the one object in each image.

    The loss terms are the cross-entropy of the class and the mean squared error of (centre y,
    centre x, √height, √width) as fractions of the image. Metrics: mean_iou, hits_50, accuracy.

    Args:
        model: a localizer, with a `BoxDecode` layer.
        num_classes: number of classes of the data.
        class_loss: of the class scores; of a grid, the weights only.

    Raises:
        ModelError: the model is not a localizer, or has another number of classes.
    """

    metric = "mean_iou"

    def __init__(
        self, model: keras.Model, num_classes: int, *, class_loss: ClassLoss = _CROSS_ENTROPY
    ) -> None:
        self.model, self.num_classes, self._class_loss = model, num_classes, class_loss
        class_loss.check(num_classes)
        _decoder(model, BoxDecode, "localization")
        _check_classes(model, num_classes)
        self.graph = flatten(model)
        view = training_view(self.graph)
        logits = logits_of(view, view.output["classes"]).tensor
        outputs = {"classes": logits, "box": view.output["box"]}
        self.training_model = keras.Model(view.input, outputs, name=model.name)
        self.loss_weights = {"classes": 0.8, "box": 0.2}

    def targets(self, examples: Sequence[TrainingExample]) -> Targets:
        """Return {"class_id": (B,), "box": (B, 4)}.

        Raises:
            SourceError: an image has no box, or several.
        """
        return single_boxes(examples, _image_size(examples, self.model), self.num_classes)

    def losses(
        self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return {"classes": (B,), "box": (B,)}."""
        return {
            "classes": self._class_loss.of_class(outputs["classes"], targets["class_id"]),
            "box": box_error(outputs["box"], targets["box"]),
        }

    def empty_metrics(self) -> MetricSet:
        """Return the metrics of no image."""
        return MetricSet.of(BoxIoU.empty(), TopK.empty((1,)))

    def evaluate(
        self, outputs: Mapping[str, np.ndarray], examples: Sequence[TrainingExample]
    ) -> MetricSet:
        """Return the metrics of boxes (B, 1, 4) and class scores (B, 1, C)."""
        targets = self.targets(examples)
        true_boxes = np.array([example.boxes_xyxy[0] for example in examples]).reshape(-1, 4)
        boxes, scores = (outputs[name][:, 0].astype(np.float32) for name in ("boxes", "scores"))
        return MetricSet.of(
            BoxIoU.empty().add(true_boxes, boxes),
            TopK.empty((1,)).add(targets["class_id"], scores),
        )

    def summarize(self, metrics: MetricSet) -> dict[str, float]:
        """Return the values of merged metrics by name."""
        return metrics.values("box_iou") | {"accuracy": metrics.values("top_k")["top_1"]}

    def per_class(self, metrics: MetricSet) -> dict[str, np.ndarray]:
        """Return nothing: the metrics are over all classes."""
        return {}


class _Detection:
    """Metrics of all detectors: ap50, ap, ap75 by COCO's rules, after non-maximum suppression."""

    metric = "ap50"

    def __init__(self, model: keras.Model, num_classes: int, class_loss: ClassLoss) -> None:
        _check_classes(model, num_classes)
        class_loss.check(num_classes)
        self.model, self.num_classes, self._class_loss = model, num_classes, class_loss
        self.graph = flatten(model)

    def empty_metrics(self) -> MetricSet:
        """Return the metrics of no image."""
        return MetricSet.of(AveragePrecision.empty(self.num_classes))

    def evaluate(
        self, outputs: Mapping[str, np.ndarray], examples: Sequence[TrainingExample]
    ) -> MetricSet:
        """Return the metrics of boxes (B, N, 4) and class scores (B, N, C).

        Raises:
            ValueError: two images have the same `image_id`, or an output is NaN or infinite.
        """
        detections = []
        for boxes, scores in zip(outputs["boxes"], outputs["scores"], strict=True):
            row, class_id = non_max_suppression(boxes, scores, **_NMS._asdict())
            clipped = clip_boxes(boxes[row], *_image_size(examples, self.model))  # as the true ones
            detections.append((clipped, scores[row, class_id], class_id))
        image_index = np.arange(len(examples))
        ground_truth = GroundTruthBoxes(
            np.concatenate([np.zeros((0, 4), np.float32), *(e.boxes_xyxy for e in examples)]),
            np.concatenate([np.zeros(0, np.int32), *(e.box_class for e in examples)]),
            np.repeat(image_index, [len(example.box_class) for example in examples]),
        )
        predictions = join_boxes(detections, image_index)
        keys = [example.image_id for example in examples]
        empty = AveragePrecision.empty(self.num_classes)
        return MetricSet.of(empty.add(keys, predictions, ground_truth))

    def summarize(self, metrics: MetricSet) -> dict[str, float]:
        """Return the values of merged metrics by name."""
        values = metrics.values("average_precision")
        return {name: values[name] for name in ("ap50", "ap", "ap75")}

    def per_class(self, metrics: MetricSet) -> dict[str, np.ndarray]:
        """Return AP50 and recall of each class, the latter at IoU ½ of the best 100 boxes."""
        return metrics.per_class("average_precision", "ap50", "recall")


class WindowDetection(_Detection):
    """Detection by a sliding window (`sliding_fcn`).

    Each window has an objectness, a class and a box; see `targets.window_targets` and
    `losses.window_losses`.

    Args:
        model: a detector with a `WindowDecode` layer.
        num_classes: number of classes of the data.
        class_loss: of the class scores; of a grid, the weights only.

    Raises:
        ModelError: the model has no sliding window, or another number of classes.
    """

    def __init__(
        self, model: keras.Model, num_classes: int, *, class_loss: ClassLoss = _CROSS_ENTROPY
    ) -> None:
        self._decode = _decoder(model, WindowDecode, "detection by windows")
        super().__init__(model, num_classes, class_loss)
        view = training_view(self.graph)
        classes, objectness, box = _window_maps(view)
        outputs = {
            "classes": logits_of(view, classes).tensor,
            "objectness": logits_of(view, objectness).tensor,
            "box": box,
        }
        self.training_model = keras.Model(view.input, outputs, name=model.name)
        self.loss_weights = {"objectness": 1.0, "classes": 1.0, "box": 5.0}

    def targets(self, examples: Sequence[TrainingExample]) -> Targets:
        """Return {"objectness", "class_id": (B, gh, gw), "box": (B, gh, gw, 4)}."""
        window, stride = self._decode.window, self._decode.stride
        height, width = (
            (side - window_side) // stride + 1
            for side, window_side in zip(_image_size(examples, self.model), window, strict=True)
        )
        return window_targets(examples, (height, width), window, stride, self.num_classes)

    def losses(
        self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return {"objectness", "classes", "box"}, each (B,)."""
        return window_losses(outputs, targets, self._class_loss)


def _window_maps(view: keras.Model) -> list[Tensor]:
    """Return the maps of class scores, objectness and box that a WindowDecode receives."""
    joined = call_of(view, view.output)
    is_joined = joined is not None and isinstance(joined.operation, layers.Concatenate)
    if joined is None or not is_joined or len(joined.received) != 3:
        raise ModelError(
            f"model {view.name!r}: the input of WindowDecode must be three concatenated maps, "
            "class scores, objectness and box; build it with detectors.to_sliding_fcn"
        )
    return joined.received


class GridDetection(_Detection):
    """Detection on a grid of cells with anchors (`yolo`).

    See `targets.grid_targets` and `losses.grid_losses`.

    Args:
        model: a detector with a `GridDecode` layer.
        num_classes: number of classes of the data.
        class_loss: of the class scores; of a grid, the weights only.

    Raises:
        ModelError: the model has no grid, or another number of classes.

    Source:
        Redmon et al., You Only Look Once, 2016, equation 3 (weights of the loss terms).
    """

    def __init__(
        self, model: keras.Model, num_classes: int, *, class_loss: ClassLoss = _CROSS_ENTROPY
    ) -> None:
        self._decode = _decoder(model, GridDecode, "detection on a grid")
        super().__init__(model, num_classes, class_loss)
        self._anchors = np.array(self._decode.anchors, np.float64)
        view = training_view(self.graph)
        self.training_model = keras.Model(view.input, {_RAW: view.output}, name=model.name)
        self.loss_weights = {
            "coordinates": 5.0, "objectness": 1.0, "no_object": 0.5, "classes": 1.0,
        }  # fmt: skip

    def targets(self, examples: Sequence[TrainingExample]) -> Targets:
        """Return {"numbers": (B, gh, gw, A, 5), "classes": (B, gh, gw, C), "boxes": (B, M, 4)}."""
        stride = self._decode.stride
        height, width = (side // stride for side in _image_size(examples, self.model))
        return grid_targets(examples, (height, width), stride, self._anchors, self.num_classes)

    def losses(
        self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return {"coordinates", "objectness", "no_object", "classes"}, each (B,)."""
        return grid_losses(outputs[_RAW], targets, self._decode, _IGNORE_IOU, self._class_loss)


_DETECTORS: dict[Any, type[WindowDetection | GridDetection]] = {
    WindowDecode: WindowDetection,
    GridDecode: GridDetection,
}


def detection(
    model: keras.Model, num_classes: int, *, class_loss: ClassLoss = _CROSS_ENTROPY
) -> WindowDetection | GridDetection:
    """Return the learner for the detector's decoding layer.

    Raises:
        ModelError: the detector has no decoding layer that can be trained.
    """
    for call in calls_of(flatten(model)):
        for decoder, learner in _DETECTORS.items():
            if isinstance(call.operation, decoder):
                return learner(model, num_classes, class_loss=class_loss)
    raise ModelError(
        f"model {model.name!r} has neither a GridDecode nor a WindowDecode layer, so it cannot be "
        "trained for detection; use yolo or sliding_fcn, or task: localization for a localizer"
    )


def _decoder(model: keras.Model, kind: type, task: str) -> Any:
    for call in calls_of(flatten(model)):
        if isinstance(call.operation, kind):
            return call.operation
    raise ModelError(
        f"model {model.name!r} has no layer {kind.__name__}, which {task} requires; use localizer "
        "for localization, yolo or sliding_fcn for detection"
    )


def check_size(model: keras.Model, image_size: tuple[int, int]) -> None:
    """Check that (height, width) are multiples of a grid detector's stride.

    Raises:
        ConfigError: they are not; the message contains the nearest multiples.
    """
    for call in calls_of(flatten(model)):
        if isinstance(call.operation, GridDecode):
            stride = call.operation.stride
            nearest = [max(1, round(side / stride)) * stride for side in image_size]
            if nearest != list(image_size):
                raise ConfigError(
                    f"training.image_sizes: {list(image_size)} is not a multiple of {stride}, the "
                    f"stride of model {model.name!r}; the nearest is {nearest}"
                )


def _check_classes(model: keras.Model, num_classes: int) -> None:
    model_classes = model.output["scores"].shape[-1]
    if model_classes != num_classes:
        raise ModelError(
            f"model {model.name!r} has {model_classes} classes, but the data has {num_classes}; "
            "build it with as many"
        )


def _image_size(examples: Sequence[TrainingExample], model: keras.Model) -> tuple[int, int]:
    """Return (height, width) of the examples; without any, that of the model."""
    height, width = examples[0].pixels.shape[:2] if examples else model.input_shape[1:3]
    return int(height), int(width)
