"""How networks learn that find boxes: their targets are their own decoding turned round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from cvbatch.core.errors import ConfigError, ModelError
from cvbatch.core.types import TrainingExample, join_boxes
from cvbatch.geometry.boxes import NmsSettings, non_max_suppression
from cvbatch.metrics.average_precision import AveragePrecision
from cvbatch.metrics.box_matching import GroundTruthBoxes
from cvbatch.metrics.classification import BoxIoU, TopK
from cvbatch.models.box_decoding import BoxDecode, GridDecode, WindowDecode
from cvbatch.models.detectors import training_view
from cvbatch.models.graph_surgery import calls_of, flatten
from cvbatch.train.learners.logits import call_of, logits_of
from cvbatch.train.learners.losses import box_error, class_cross_entropy, grid_losses, window_losses
from cvbatch.train.learners.metrics import MetricSet
from cvbatch.train.learners.targets import Targets, grid_targets, single_boxes, window_targets

Tensor = Any  # a tensor of Keras' backend; Keras carries no type information
_RAW = "raw"
# As detections are judged: nearly all boxes, COCO's hundred an image.
_RULE = NmsSettings(score_threshold=0.01, iou_threshold=0.6, max_detections=100)


class Localization:
    """A localizer learns the class and the box of the one object in each image.

    The loss is `class_weight` × the cross-entropy of the class and `box_weight` × the mean
    squared error of (centre y, centre x, √height, √width) as parts of the image. Figures:
    mean_iou, hits_50, accuracy.

    Raises:
        ModelError: the model is no localizer, or its number of classes is another.
    """

    metric = "mean_iou"

    def __init__(
        self,
        model: keras.Model,
        num_classes: int,
        *,
        class_weight: float = 0.8,
        box_weight: float = 0.2,
    ) -> None:
        self.model, self.num_classes = model, num_classes
        _decoder(model, BoxDecode, "localization")
        _check_classes(model, num_classes)
        view = training_view(flatten(model))
        heads = {"classes": logits_of(view, view.output["classes"]).tensor}
        self.training_model = keras.Model(
            view.input, heads | {"box": view.output["box"]}, name=model.name
        )
        self.loss_weights = {"classes": class_weight, "box": box_weight}

    def targets(self, examples: Sequence[TrainingExample]) -> Targets:
        """Return {"class_id": (B,), "box": (B, 4)}.

        Raises:
            SourceError: an image has no box, or several.
        """
        return single_boxes(examples, _size(examples, self.model), self.num_classes)

    def losses(
        self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return {"classes": (B,), "box": (B,)}."""
        return {
            "classes": class_cross_entropy(outputs["classes"], targets["class_id"]),
            "box": box_error(outputs["box"], targets["box"]),
        }

    def empty_metrics(self) -> MetricSet:
        """Return the scores of no image."""
        return MetricSet.of(BoxIoU.empty(), TopK.empty((1,)))

    def evaluate(
        self, outputs: Mapping[str, np.ndarray], examples: Sequence[TrainingExample]
    ) -> MetricSet:
        """Return the scores of boxes (B, 1, 4) and class scores (B, 1, C)."""
        wanted = single_boxes(examples, _size(examples, self.model), self.num_classes)
        truth = np.array([example.boxes_xyxy[0] for example in examples]).reshape(-1, 4)
        said, scores = (outputs[name][:, 0].astype(np.float32) for name in ("boxes", "scores"))
        return MetricSet.of(
            BoxIoU.empty().add(truth, said), TopK.empty((1,)).add(wanted["class_id"], scores)
        )

    def summarize(self, measures: MetricSet) -> dict[str, float]:
        """Return the figures of merged scores."""
        return measures.figures("box_iou") | {"accuracy": measures.figures("top_k")["top_1"]}


class _Detection:
    """What detectors of any kind share: how the boxes they find are measured.

    Figures: ap50, ap, ap75, by COCO's rule, of what is left after suppression.
    """

    metric = "ap50"

    def __init__(self, model: keras.Model, num_classes: int) -> None:
        _check_classes(model, num_classes)
        self.model, self.num_classes = model, num_classes

    def empty_metrics(self) -> MetricSet:
        """Return the scores of no image."""
        return MetricSet.of(AveragePrecision.empty(self.num_classes))

    def evaluate(
        self, outputs: Mapping[str, np.ndarray], examples: Sequence[TrainingExample]
    ) -> MetricSet:
        """Return the scores of boxes (B, N, 4) and class scores (B, N, C).

        Raises:
            ValueError: two images have the same `image_id`, or an answer is not finite.
        """
        found = []
        for boxes, scores in zip(outputs["boxes"], outputs["scores"], strict=True):
            row, class_id = non_max_suppression(boxes, scores, **_RULE._asdict())
            found.append((boxes[row], scores[row, class_id], class_id))
        image_index = np.arange(len(examples))
        truth = GroundTruthBoxes(
            np.concatenate([np.zeros((0, 4), np.float32), *(one.boxes_xyxy for one in examples)]),
            np.concatenate([np.zeros(0, np.int32), *(one.box_class for one in examples)]),
            np.repeat(image_index, [len(one.box_class) for one in examples]),
        )
        said = join_boxes(found, image_index)
        keys = [example.image_id for example in examples]
        return MetricSet.of(AveragePrecision.empty(self.num_classes).add(keys, said, truth))

    def summarize(self, measures: MetricSet) -> dict[str, float]:
        """Return the figures of merged scores."""
        figures = measures.figures("average_precision")
        return {name: figures[name] for name in ("ap50", "ap", "ap75")}


class WindowDetection(_Detection):
    """`sliding_fcn` learns in every window whether an object is in its middle, and which one.

    `targets.window_targets` and `losses.window_losses` say what counts. Options: the weights of
    the three parts of the loss.

    Raises:
        ModelError: the model slides no window, or its number of classes is another.
    """

    def __init__(
        self,
        model: keras.Model,
        num_classes: int,
        *,
        objectness_weight: float = 1.0,
        class_weight: float = 1.0,
        box_weight: float = 5.0,
    ) -> None:
        self._decode = _decoder(model, WindowDecode, "detection by windows")
        super().__init__(model, num_classes)
        view = training_view(flatten(model))
        joined = call_of(view, view.output)
        if not isinstance(joined.operation, layers.Concatenate) or len(joined.received) != 3:
            raise ModelError(
                f"model {model.name!r}: what WindowDecode reads must be three maps side by side, "
                "class scores, objectness and box; build it by detectors.slide"
            )
        classes, objectness, box = joined.received
        heads = {
            "classes": logits_of(view, classes).tensor,
            "objectness": logits_of(view, objectness).tensor,
            "box": box,
        }
        self.training_model = keras.Model(view.input, heads, name=model.name)
        self.loss_weights = {
            "objectness": objectness_weight,
            "classes": class_weight,
            "box": box_weight,
        }

    def targets(self, examples: Sequence[TrainingExample]) -> Targets:
        """Return {"objectness", "class_id": (B, gh, gw), "box": (B, gh, gw, 4)}."""
        window, stride = self._decode.window, self._decode.stride
        height, width = (
            (side - least) // stride + 1
            for side, least in zip(_size(examples, self.model), window, strict=True)
        )
        return window_targets(examples, (height, width), window, stride, self.num_classes)

    def losses(
        self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return {"objectness", "classes", "box"}, each (B,)."""
        return window_losses(outputs, targets)


class GridDetection(_Detection):
    """`yolo` learns in every cell which of its anchors is a box's, where it lies and what it is.

    `targets.grid_targets` and `losses.grid_losses` say what counts. The weights' defaults are
    those of Redmon et al., You Only Look Once, 2016, equation 3.

    ignore_iou: an anchor without a box whose prediction overlaps a true box by more than this is
    not told that it is wrong. max_boxes: true boxes of an image that it is compared with.

    Raises:
        ModelError: the model has no grid, or its number of classes is another.
    """

    def __init__(
        self,
        model: keras.Model,
        num_classes: int,
        *,
        coordinate_weight: float = 5.0,
        objectness_weight: float = 1.0,
        no_object_weight: float = 0.5,
        class_weight: float = 1.0,
        ignore_iou: float = 0.6,
        max_boxes: int = 100,
    ) -> None:
        self._decode = _decoder(model, GridDecode, "detection on a grid")
        super().__init__(model, num_classes)
        self._anchors = np.array(self._decode.anchors, np.float64)
        self._ignore_iou, self._max_boxes = ignore_iou, max_boxes
        view = training_view(flatten(model))
        self.training_model = keras.Model(view.input, {_RAW: view.output}, name=model.name)
        self.loss_weights = {
            "coordinates": coordinate_weight,
            "objectness": objectness_weight,
            "no_object": no_object_weight,
            "classes": class_weight,
        }

    def targets(self, examples: Sequence[TrainingExample]) -> Targets:
        """Return {"numbers": (B, gh, gw, A, 5), "classes": (B, gh, gw, C), "boxes": (B, M, 4)}."""
        stride = self._decode.stride
        height, width = (side // stride for side in _size(examples, self.model))
        return grid_targets(
            examples, (height, width), stride, self._anchors, self.num_classes, self._max_boxes
        )

    def losses(
        self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return {"coordinates", "objectness", "no_object", "classes"}, each (B,)."""
        return grid_losses(outputs[_RAW], targets, self._decode, self._ignore_iou)


_DETECTORS: dict[Any, type[WindowDetection | GridDetection]] = {
    WindowDecode: WindowDetection,
    GridDecode: GridDetection,
}


def detection(
    model: keras.Model, num_classes: int, **options: Any
) -> WindowDetection | GridDetection:
    """Return the learner for the layer that the detector decodes by.

    Raises:
        ModelError: it decodes by none of those that can be learnt through.
    """
    for call in calls_of(flatten(model)):
        for decoder, learner in _DETECTORS.items():
            if isinstance(call.operation, decoder):
                return learner(model, num_classes, **options)
    raise ModelError(
        f"model {model.name!r} decodes neither a grid nor windows, so how its numbers are learnt "
        "is not known; take yolo or sliding_fcn, and for a localizer the task localization"
    )


def _decoder(model: keras.Model, kind: type, task: str) -> Any:
    for call in calls_of(flatten(model)):
        if isinstance(call.operation, kind):
            return call.operation
    raise ModelError(
        f"model {model.name!r} has no layer {kind.__name__}, which {task} is learnt through; take "
        "localizer for localization, yolo or sliding_fcn for detection"
    )


def check_size(model: keras.Model, image_size: tuple[int, int]) -> None:
    """Refuse a (height, width) whose cells a grid detector's targets would not match.

    Raises:
        ConfigError: with the nearest that fits.
    """
    for call in calls_of(flatten(model)):
        if isinstance(call.operation, GridDecode):
            stride = call.operation.stride
            fits = [max(1, round(side / stride)) * stride for side in image_size]
            if fits != list(image_size):
                raise ConfigError(
                    f"training.image_sizes: {list(image_size)} is no multiple of {stride}, the "
                    f"stride of model {model.name!r}; the nearest is {fits}"
                )


def _check_classes(model: keras.Model, num_classes: int) -> None:
    own = model.output["scores"].shape[-1]
    if own != num_classes:
        raise ModelError(
            f"model {model.name!r} tells {own} classes apart, but the data has {num_classes}; "
            "build it with as many"
        )


def _size(examples: Sequence[TrainingExample], model: keras.Model) -> tuple[int, int]:
    """Return (height, width) of the examples; of the model where there are none."""
    height, width = examples[0].pixels.shape[:2] if examples else model.input_shape[1:3]
    return int(height), int(width)
