"""How networks learn that give a class to an image, or to each of its pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import keras
import numpy as np

from cvbatch.core.errors import ConfigError, ModelError
from cvbatch.core.types import VOID_CLASS, TrainingExample
from cvbatch.metrics.classification import Confusion, MultiLabelPrecision, TopK
from cvbatch.models.googlenet import AUXILIARY_LOSS_WEIGHT
from cvbatch.models.graph_surgery import flatten
from cvbatch.models.outputs import by_name, select_output
from cvbatch.train.learners.logits import Logits, logits_of
from cvbatch.train.learners.losses import (
    as_two_classes,
    class_cross_entropy,
    label_cross_entropy,
    pixel_cross_entropy,
)
from cvbatch.train.learners.metrics import MetricSet
from cvbatch.train.learners.targets import Targets, many_labels, masks, single_labels

Tensor = Any  # a tensor of Keras' backend; Keras carries no type information
_AUXILIARY = "auxiliary_"  # begins the names of heads that only help to train
_MAX_CONFUSED = 256  # classes of which every pair is counted
_SCORES = "scores"


class Classification:
    """A classifier learns one label an image, or with multi_label which classes hold.

    The loss is the cross-entropy of the classes, or the binary cross-entropies averaged over
    them; one sigmoid unit is two classes. Heads called auxiliary_… learn the same, their loss
    weighted by `AUXILIARY_LOSS_WEIGHT`. Figures: accuracy, top_5 and, up to 256 classes,
    macro_f1; or mean_average_precision.

    output: the name of the class scores, where a model has several outputs that could be.

    Raises:
        ModelError: the outputs are no class scores, their number is another, or their activation
            does not fit.
    """

    def __init__(
        self,
        model: keras.Model,
        num_classes: int,
        *,
        multi_label: bool = False,
        output: str | None = None,
    ) -> None:
        self.model, self.num_classes, self.multi_label = model, num_classes, multi_label
        graph = flatten(model)
        found = by_name(graph.output)
        helpers = [name for name in found if name.startswith(_AUXILIARY)]
        mains = {name: tensor for name, tensor in found.items() if name not in helpers}
        scores = select_output("classification", "class scores (B, classes)", mains, output, 2)
        (self._output,) = (name for name, tensor in mains.items() if tensor is scores)
        heads = {_SCORES: logits_of(graph, scores)}
        heads |= {name: logits_of(graph, found[name]) for name in helpers}
        for head in heads.values():
            _check_units(model, head, num_classes, multi_label)
        self._threshold = 0.5 if heads[_SCORES].activation else 0.0
        view = {name: head.tensor for name, head in heads.items()}
        self.training_model = keras.Model(graph.input, view, name=model.name)
        self.loss_weights = {
            name: AUXILIARY_LOSS_WEIGHT if name in helpers else 1.0 for name in heads
        }
        self.metric = "mean_average_precision" if multi_label else "accuracy"

    def targets(self, examples: Sequence[TrainingExample]) -> Targets:
        """Return {"labels": (B,) int32}, or with multi_label (B, C) of 0 and 1."""
        of = many_labels if self.multi_label else single_labels
        return {"labels": of(examples, self.num_classes)}

    def losses(
        self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the loss of each head, (B,)."""
        labels = targets["labels"]
        if self.multi_label:
            return {name: label_cross_entropy(outputs[name], labels) for name in self.loss_weights}
        return {
            name: class_cross_entropy(as_two_classes(outputs[name]), labels)
            for name in self.loss_weights
        }

    def empty_metrics(self) -> MetricSet:
        """Return the scores of no image."""
        if self.multi_label:
            return MetricSet.of(MultiLabelPrecision.empty(self.num_classes))
        top = TopK.empty((1, 5))
        if self.num_classes > _MAX_CONFUSED:
            return MetricSet.of(top)
        return MetricSet.of(top, Confusion.empty(self.num_classes))

    def evaluate(self, outputs: Any, examples: Sequence[TrainingExample]) -> MetricSet:
        """Return the scores of class scores (B, units)."""
        scores = by_name(outputs)[self._output].astype(np.float32)
        if self.multi_label:
            holds = many_labels(examples, self.num_classes) > 0
            return MetricSet.of(MultiLabelPrecision.empty(self.num_classes).add(holds, scores))
        truth = single_labels(examples, self.num_classes)
        scores = _of_all_classes(scores, self._threshold)
        top = TopK.empty((1, 5)).add(truth, scores)
        if self.num_classes > _MAX_CONFUSED:
            return MetricSet.of(top)
        confusion = Confusion.empty(self.num_classes)
        return MetricSet.of(top, confusion.add(truth, scores.argmax(axis=-1)))

    def summarize(self, measures: MetricSet) -> dict[str, float]:
        """Return the figures of merged scores."""
        if self.multi_label:
            return measures.figures("multi_label_precision")
        top = measures.figures("top_k")
        figures = {"accuracy": top["top_1"]}
        if self.num_classes > 5:
            figures["top_5"] = top["top_5"]
        if self.num_classes <= _MAX_CONFUSED:
            figures["macro_f1"] = measures.figures("confusion")["macro_f1"]
        return figures


class Segmentation:
    """A segmenter learns a class for every pixel; figures: mean_iou, accuracy.

    The loss is the cross-entropy of the pixels, averaged over those of each image that count
    (`losses.pixel_cross_entropy`). A network that answers on a coarser grid learns the mask at
    that size and is measured at the mask's own, as the job enlarges it.

    class_weights: one for each class, what an error on its pixels weighs; 1 by default.
    ignored: a class id of the masks that is not learnt or measured, beside `VOID_CLASS`.

    Raises:
        ModelError: the outputs are no maps of class scores, or their number is another.
        ConfigError: the weights are not one for each class, or one is negative.
    """

    def __init__(
        self,
        model: keras.Model,
        num_classes: int,
        *,
        class_weights: Sequence[float] | None = None,
        ignored: int | None = None,
        output: str | None = None,
    ) -> None:
        self.model, self.num_classes, self.ignored = model, num_classes, ignored
        weights = [1.0] * num_classes if class_weights is None else list(class_weights)
        if len(weights) != num_classes or min(weights) < 0:
            raise ConfigError(
                f"class_weights {weights}: there must be one for each of {num_classes} classes, "
                "none negative"
            )
        self._class_weights = np.array(weights, np.float32)
        graph = flatten(model)
        found = by_name(graph.output)
        wants = "class scores per pixel (B, height, width, classes)"
        maps = select_output("segmentation", wants, found, output, 4)
        (self._output,) = (name for name, tensor in found.items() if tensor is maps)
        head = logits_of(graph, maps)
        _check_units(model, head, num_classes, False)
        self._threshold = 0.5 if head.activation else 0.0
        self._sizes = tuple(graph.input.shape[1:3]), tuple(maps.shape[1:3])
        self.training_model = keras.Model(graph.input, {_SCORES: head.tensor}, name=model.name)
        self.loss_weights = {_SCORES: 1.0}
        self.metric = "mean_iou"

    def targets(self, examples: Sequence[TrainingExample]) -> Targets:
        """Return {"mask": (B, h, w) uint8} at the size of the answer."""
        own, answered = self._sizes
        sizes = examples[0].pixels.shape[:2] if examples else own
        height, width = (n * b // a for n, a, b in zip(sizes, own, answered, strict=True))
        mask = masks(examples, (height, width), self.num_classes, self.ignored)
        return {"mask": mask}

    def losses(
        self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return {"scores": (B,)}."""
        logits = as_two_classes(outputs[_SCORES])
        return {_SCORES: pixel_cross_entropy(logits, targets["mask"], self._class_weights)}

    def empty_metrics(self) -> MetricSet:
        """Return the scores of no image."""
        return MetricSet.of(Confusion.empty(self.num_classes, VOID_CLASS))

    def evaluate(self, outputs: Any, examples: Sequence[TrainingExample]) -> MetricSet:
        """Return the scores of maps (B, h, w, units)."""
        maps = by_name(outputs)[self._output].astype(np.float32)
        confusion = Confusion.empty(self.num_classes, VOID_CLASS)
        truth = masks(examples, self._sizes[0], self.num_classes, self.ignored)
        if maps.shape[1:3] != truth.shape[1:]:
            maps = _enlarged(maps, self._sizes[0])
        said = _of_all_classes(maps, self._threshold).argmax(axis=-1)
        return MetricSet.of(confusion.add(truth, said))

    def summarize(self, measures: MetricSet) -> dict[str, float]:
        """Return the figures of merged scores."""
        figures = measures.figures("confusion")
        return {name: figures[name] for name in ("mean_iou", "accuracy")}


def _enlarged(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:  # → (B, *size, units)
    """Return maps interpolated linearly."""
    enlarged = np.zeros((len(maps), *size, maps.shape[3]), np.float32)
    for row, one in enumerate(maps):
        enlarged[row] = cv2.resize(one, (size[1], size[0])).reshape(enlarged.shape[1:])
    return enlarged


def _check_units(model: keras.Model, head: Logits, num_classes: int, multi_label: bool) -> None:
    units = head.tensor.shape[-1]
    if units != num_classes and not (units == 1 and num_classes == 2 and not multi_label):
        raise ModelError(
            f"model {model.name!r} has {units} outputs for {num_classes} classes; build it with "
            "as many as the data has"
        )
    if not head.activation or units == 1:
        return
    wanted = "sigmoid" if multi_label else "softmax"
    if head.activation != wanted:
        raise ModelError(
            f"model {model.name!r} ends in a {head.activation}, but {num_classes} classes that "
            f"{'may hold together' if multi_label else 'exclude each other'} want a {wanted}; "
            f"build it with multi_label: {str(multi_label).lower()}"
        )


def _of_all_classes(scores: np.ndarray, threshold: float) -> np.ndarray:  # (..., units) → (..., C)
    """Return the scores, for a single unit those of both classes: equal at the threshold."""
    if scores.shape[-1] != 1:
        return scores
    return np.concatenate([2 * threshold - scores, scores], axis=-1)
