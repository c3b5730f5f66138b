"""Learners of classification (classes of an image) and segmentation (classes of pixels)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from cvbatch.config.models import Activation
from cvbatch.core.errors import ModelError
from cvbatch.core.types import VOID_CLASS, TrainingExample
from cvbatch.metrics.classification import Confusion, MultiLabelPrecision, TopK
from cvbatch.models.class_head import ClassScores
from cvbatch.models.frameworks import keras
from cvbatch.models.googlenet import AUXILIARY_LOSS_WEIGHT
from cvbatch.models.graph_surgery import flatten
from cvbatch.models.outputs import by_name, select_output
from cvbatch.train.learners.logits import Logits, logits_of
from cvbatch.train.learners.losses import ClassLoss, as_two_classes, dice_loss
from cvbatch.train.learners.metrics import MetricSet
from cvbatch.train.learners.targets import Targets, masks, multi_hot_labels, single_labels

Tensor = Any  # a tensor of Keras' backend; Keras carries no type information
_AUXILIARY = "auxiliary_"  # prefix of the names of heads that are used in training only
_MAX_CONFUSION_CLASSES = 256  # a confusion matrix of more classes is too large
_SCORES, _DICE = "scores", "dice"


class ClassOptions(NamedTuple):
    """How the class scores of a network are trained.

    Attributes:
        output: name of the output with the scores; None: the only one that fits the task.
        activation: still to be applied to the scores; auto: what the graph says.
        loss: of the scores.
        dice: weight of an additional Dice loss, of segmentation only; 0: none.
    """

    output: str | None = None
    activation: Activation = "auto"
    loss: ClassLoss = ClassLoss()
    dice: float = 0.0


_DEFAULT = ClassOptions()


class Classification:
    """Classification with one label per image, or with several (multi-label).

    The loss is the cross-entropy of the classes; with `multi_label`, the binary cross-entropy
    averaged over the classes; or as the options say. One sigmoid unit is treated as two classes.
    Auxiliary heads ("auxiliary_…") have the same loss with the weight `AUXILIARY_LOSS_WEIGHT`.
    Metrics: accuracy, top_5 and, for up to 256 classes, macro_f1; with `multi_label`,
    mean_average_precision.

    Args:
        model: classifier with an output (B, classes).
        num_classes: number of classes of the data.
        multi_label: whether an image may have several labels, or none.
        options: output, activation and loss.

    Raises:
        ModelError: the model has no class scores, another number of classes, or an activation that
            does not fit `multi_label`.
        ConfigError: there is not one weight per class.
    """

    def __init__(
        self,
        model: keras.Model,
        num_classes: int,
        *,
        multi_label: bool = False,
        options: ClassOptions = _DEFAULT,
    ) -> None:
        self.model, self.num_classes, self.multi_label = model, num_classes, multi_label
        options.loss.check(num_classes)
        self._loss = options.loss
        self.graph = graph = flatten(model)
        self._output, outputs = _score_outputs(graph, options.output)
        heads = {}
        for name, tensor in outputs.items():
            still = options.activation if name == _SCORES else "auto"
            heads[name] = logits_of(graph, tensor, still, is_independent=multi_label)
            _check_units(model, heads[name], still, num_classes, multi_label)
        self._threshold = 0.5 if heads[_SCORES].activation else 0.0
        logits = {name: head.tensor for name, head in heads.items()}
        self.training_model = keras.Model(graph.input, logits, name=model.name)
        self.loss_weights = {
            name: 1.0 if name == _SCORES else AUXILIARY_LOSS_WEIGHT for name in heads
        }
        self.metric = "mean_average_precision" if multi_label else "accuracy"

    def targets(self, examples: Sequence[TrainingExample]) -> Targets:
        """Return {"labels": (B,) int32}; with `multi_label`, (B, C) float32 of 0 and 1."""
        labels_of = multi_hot_labels if self.multi_label else single_labels
        return {"labels": labels_of(examples, self.num_classes)}

    def losses(
        self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the loss of each head, (B,) float32."""
        labels = targets["labels"]
        if self.multi_label:
            return {name: self._loss.of_labels(outputs[name], labels) for name in self.loss_weights}
        return {
            name: self._loss.of_class(as_two_classes(outputs[name]), labels)
            for name in self.loss_weights
        }

    def empty_metrics(self) -> MetricSet:
        """Return the metrics of no image."""
        if self.multi_label:
            return MetricSet.of(MultiLabelPrecision.empty(self.num_classes))
        top = TopK.empty((1, 5))
        if self.num_classes > _MAX_CONFUSION_CLASSES:
            return MetricSet.of(top)
        return MetricSet.of(top, Confusion.empty(self.num_classes))

    def evaluate(self, outputs: Any, examples: Sequence[TrainingExample]) -> MetricSet:
        """Return the metrics of the model's outputs, class scores (B, units)."""
        scores = by_name(outputs)[self._output].astype(np.float32)
        if self.multi_label:
            is_true = multi_hot_labels(examples, self.num_classes) > 0
            return MetricSet.of(MultiLabelPrecision.empty(self.num_classes).add(is_true, scores))
        labels = single_labels(examples, self.num_classes)
        scores = _scores_of_all_classes(scores, self._threshold)
        top = TopK.empty((1, 5)).add(labels, scores)
        if self.num_classes > _MAX_CONFUSION_CLASSES:
            return MetricSet.of(top)
        confusion = Confusion.empty(self.num_classes)
        return MetricSet.of(top, confusion.add(labels, scores.argmax(axis=-1)))

    def summarize(self, metrics: MetricSet) -> dict[str, float]:
        """Return the values of merged metrics by name."""
        if self.multi_label:
            return metrics.values("multi_label_precision")
        top = metrics.values("top_k")
        values = {"accuracy": top["top_1"]}
        if self.num_classes > 5:
            values["top_5"] = top["top_5"]
        if self.num_classes <= _MAX_CONFUSION_CLASSES:
            values["macro_f1"] = metrics.values("confusion")["macro_f1"]
        return values

    def per_class(self, metrics: MetricSet) -> dict[str, np.ndarray]:
        """Return the recall of each class; with `multi_label`, its average precision."""
        precision = metrics.metrics.get("multi_label_precision")
        if isinstance(precision, MultiLabelPrecision):
            return {"average_precision": precision.average_precision}
        if self.num_classes > _MAX_CONFUSION_CLASSES:
            return {}
        return metrics.per_class("confusion", "recall")


class Segmentation:
    """Semantic segmentation: one class per pixel. Metrics: mean_iou, accuracy.

    The loss is the cross-entropy, or that of the options, averaged over an image's labelled pixels
    (`losses.ClassLoss.of_pixels`), plus the weighted `losses.dice_loss`. A network with a coarser
    output grid is trained on masks of that size, and evaluated at the size of its input, to which
    predictions are enlarged too.

    Args:
        model: segmenter with an output (B, h, w, classes).
        num_classes: number of classes of the data.
        options: output, activation and loss.
        ignored: a class id of the masks that is treated as `VOID_CLASS`; None: none.

    Raises:
        ModelError: the model has no maps of class scores, or another number of classes.
        ConfigError: there is not one weight per class.
    """

    def __init__(
        self,
        model: keras.Model,
        num_classes: int,
        *,
        options: ClassOptions = _DEFAULT,
        ignored: int | None = None,
    ) -> None:
        self.model, self.num_classes, self.ignored = model, num_classes, ignored
        options.loss.check(num_classes)
        self._loss = options.loss
        self.graph = graph = flatten(model)
        self._output, maps = _maps(graph, options.output)
        head = logits_of(graph, maps, options.activation)
        _check_units(model, head, options.activation, num_classes, False)
        self._threshold = 0.5 if head.activation else 0.0
        self._input_size, self._output_size = graph.input.shape[1:3], maps.shape[1:3]
        self.training_model = keras.Model(graph.input, {_SCORES: head.tensor}, name=model.name)
        self.loss_weights = {_SCORES: 1.0} | ({_DICE: options.dice} if options.dice else {})
        self.metric = "mean_iou"

    def targets(self, examples: Sequence[TrainingExample]) -> Targets:
        """Return {"mask": (B, h, w) uint8} at the size of the network's output."""
        image_size = examples[0].pixels.shape[:2] if examples else self._input_size
        height, width = (
            side * output // model_side
            for side, model_side, output in zip(
                image_size, self._input_size, self._output_size, strict=True
            )
        )
        mask = masks(examples, (height, width), self.num_classes, self.ignored)
        return {"mask": mask}

    def losses(
        self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return {"scores": (B,)}, and "dice" if the options have a weight for it."""
        logits, mask = as_two_classes(outputs[_SCORES]), targets["mask"]
        losses = {_SCORES: self._loss.of_pixels(logits, mask)}
        return losses | ({_DICE: dice_loss(logits, mask)} if _DICE in self.loss_weights else {})

    def empty_metrics(self) -> MetricSet:
        """Return the metrics of no image."""
        return MetricSet.of(Confusion.empty(self.num_classes, VOID_CLASS))

    def evaluate(self, outputs: Any, examples: Sequence[TrainingExample]) -> MetricSet:
        """Return the metrics of the model's outputs, maps (B, h, w, units)."""
        maps = by_name(outputs)[self._output].astype(np.float32)
        confusion = Confusion.empty(self.num_classes, VOID_CLASS)
        labels = masks(examples, self._input_size, self.num_classes, self.ignored)
        if maps.shape[1:3] != labels.shape[1:]:
            maps = _enlarge(maps, self._input_size)
        predicted = _scores_of_all_classes(maps, self._threshold).argmax(axis=-1)
        return MetricSet.of(confusion.add(labels, predicted))

    def summarize(self, metrics: MetricSet) -> dict[str, float]:
        """Return the values of merged metrics by name."""
        values = metrics.values("confusion")
        return {name: values[name] for name in ("mean_iou", "accuracy")}

    def per_class(self, metrics: MetricSet) -> dict[str, np.ndarray]:
        """Return IoU and recall of each class."""
        return metrics.per_class("confusion", "iou", "recall")


def class_scores(graph: keras.Model, output: str | None) -> list[ClassScores]:
    """Return the class scores of a flat classifier, those of auxiliary heads too.

    Raises:
        ModelError: no output fits, or several do and `output` is None.
    """
    return [ClassScores(tensor) for tensor in _score_outputs(graph, output)[1].values()]


def pixel_scores(graph: keras.Model, output: str | None) -> list[ClassScores]:
    """Return the class scores of a flat segmenter; with the errors of `class_scores`."""
    return [ClassScores(_maps(graph, output)[1])]


def _score_outputs(graph: keras.Model, output: str | None) -> tuple[str, dict[str, Tensor]]:
    """Return the name of the output, and the scores of all heads: "scores", "auxiliary_…"."""
    outputs = by_name(graph.output)
    auxiliary = {k: tensor for k, tensor in outputs.items() if k.startswith(_AUXILIARY)}
    main = {k: tensor for k, tensor in outputs.items() if k not in auxiliary}
    scores = select_output("classification", "class scores (B, classes)", main, output, 2)
    return _name_of(scores, main), {_SCORES: scores, **auxiliary}


def _maps(graph: keras.Model, output: str | None) -> tuple[str, Tensor]:
    """Return the name of the output with one class score per pixel, and its tensor."""
    outputs = by_name(graph.output)
    expected = "class scores per pixel (B, height, width, classes)"
    maps = select_output("segmentation", expected, outputs, output, 4)
    return _name_of(maps, outputs), maps


def _name_of(tensor: Tensor, outputs: Mapping[str, Tensor]) -> str:
    return next(name for name, other in outputs.items() if other is tensor)


def _enlarge(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:  # → (B, *size, units)
    """Return the maps with linear interpolation."""
    enlarged = np.zeros((len(maps), *size, maps.shape[3]), np.float32)
    for row, channel in np.ndindex(len(maps), maps.shape[3]):  # OpenCV takes at most 128 channels
        plane = np.ascontiguousarray(maps[row, ..., channel])
        enlarged[row, ..., channel] = cv2.resize(plane, (size[1], size[0]))
    return enlarged


def _check_units(
    model: keras.Model, head: Logits, still: Activation, num_classes: int, multi_label: bool
) -> None:
    units = head.tensor.shape[-1]
    if units != num_classes and not (units == 1 and num_classes == 2 and not multi_label):
        raise ModelError(
            f"model {model.name!r} has {units} outputs for {num_classes} classes; build it with "
            "one output per class"
        )
    activation = head.activation or still
    required = "sigmoid" if multi_label else "softmax"
    if units > 1 and activation in ("softmax", "sigmoid") and activation != required:
        raise ModelError(
            f"model {model.name!r} has a final {activation}, but {num_classes} classes that "
            f"{'may occur together' if multi_label else 'exclude each other'} require a "
            f"{required}; build it with multi_label: {str(multi_label).lower()}"
        )


def _scores_of_all_classes(
    scores: np.ndarray,  # (..., units)
    threshold: float,
) -> np.ndarray:  # (..., C)
    """Return the scores; of a single unit those of both classes, equal at the threshold."""
    if scores.shape[-1] != 1:
        return scores
    return np.concatenate([2 * threshold - scores, scores], axis=-1)
