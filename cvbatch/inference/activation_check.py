"""Decide at build time which activation is still to be applied to a network's scores.

The graph (`value_ranges`) and the scores of a few images must agree. Where they disagree, the job
is refused, because a second softmax changes scores without any other sign.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cvbatch.config.models import (
    Activation,
    DetectionConfig,
    LocalizationConfig,
    ModelConfig,
    SegmentationConfig,
)
from cvbatch.core.errors import ModelError
from cvbatch.inference import detector_formats
from cvbatch.inference.activation import default_activation
from cvbatch.inference.detection_check import check_boxes, check_class_ids
from cvbatch.inference.detector_formats import DETECTORS
from cvbatch.inference.forward_pass import Tensors
from cvbatch.inference.graph import Network, run_network, task_tensors
from cvbatch.inference.graph_outputs import GRAPH_OUTPUTS
from cvbatch.inference.mask_check import MaskDecision, decide_masks, observe_masks, top_boxes
from cvbatch.inference.outputs_localization import single_box
from cvbatch.inference.outputs_segmentation import num_ids
from cvbatch.inference.value_ranges import Values, values_of
from cvbatch.models.frameworks import tf

_RANGE_TOLERANCE = 1e-3
_SUM_TOLERANCE = 0.02  # of bfloat16 scores of many classes
_EXPLICIT_TOLERANCE = 0.25  # a bicubic resize of probabilities may leave 0..1


class Decision(NamedTuple):
    """What is applied to the scores, and why.

    Attributes:
        activation: softmax, sigmoid or none.
        reason: one sentence for the log.
        masks: what the masks of boxes are.
    """

    activation: Activation
    reason: str
    masks: MaskDecision = MaskDecision("logits", "")


class Figures(NamedTuple):
    """Scores of a few images; rows are the scores of one image, pixel or box.

    Attributes:
        low: smallest score.
        high: largest score.
        sum_low: smallest sum of a row.
        sum_high: largest sum of a row.
        num_images: number of images.
        units: scores of a row.
        are_whole: whether all are whole numbers.
        num_ids: number of classes, if the scores are class ids; else 0.
    """

    low: float
    high: float
    sum_low: float
    sum_high: float
    num_images: int
    units: int
    are_whole: bool = False
    num_ids: int = 0

    @property
    def is_empty(self) -> bool:
        """Return whether no row is finite: such images become failed rows of the result."""
        return self.low > self.high

    @property
    def are_in_range(self) -> bool:
        """Return whether all scores are in 0..1."""
        return self.is_within(_RANGE_TOLERANCE)

    def is_within(self, tolerance: float) -> bool:
        """Return whether all scores are in 0..1, give or take a tolerance."""
        return self.is_empty or (self.low >= -tolerance and self.high <= 1 + tolerance)

    @property
    def are_several_whole(self) -> bool:
        """Return whether different values occur, and only whole numbers."""
        return self.are_whole and self.low < self.high

    @property
    def rows_sum_to_1(self) -> bool:
        """Return whether every row is a distribution over two or more classes."""
        is_1 = max(abs(self.sum_low - 1), abs(self.sum_high - 1)) <= _SUM_TOLERANCE
        return self.units > 1 and self.are_in_range and is_1

    def __str__(self) -> str:
        if self.is_empty:
            return f"scores of {self.num_images} images are not finite"
        text = f"scores of {self.num_images} images are {_span(self.low, self.high)}"
        if self.units == 1:
            return text
        return f"{text}, and rows sum to {_span(self.sum_low, self.sum_high)}"


def _span(low: float, high: float) -> str:
    """Return a range with three decimals, or one number for both ends."""
    ends = [f"{round(end, 3):g}" for end in (low, high)]
    return " to ".join(dict.fromkeys(ends))


def decide(
    model: Network,
    config: ModelConfig,
    pixels: np.ndarray,  # (N, H, W, 3) uint8
    *,
    checks_boxes: bool,
    needs_values: bool = False,
    num_classes: int | None = None,
) -> Decision:
    """Decide which activation to apply.

    Args:
        model: the network.
        config: resolved.
        pixels: a few images.
        needs_values: the values of the scores matter, as in training, where a prediction needs only
            the class with the largest score of a pixel.
        checks_boxes: compare boxes with the job's box format; needs images of the job.
        num_classes: number of class names; class ids of boxes are compared with it.

    Raises:
        ModelError: graph and scores disagree, the scores do not fit the job's activation, or the
            boxes do not fit its box format, or their class ids the class names; or as
            `decide_masks`.
    """
    scores_of = GRAPH_OUTPUTS[config.task].scores
    if scores_of is None:
        return Decision("none", "")
    values, figures, boxes, masks = _observe(model, config, pixels, scores_of)
    name = f"model {config.model!r}"
    if isinstance(config, DetectionConfig) and config.detector != "boxes_scores":
        name = f"{name} as detector {config.detector}"
    size = pixels.shape[1:3] if checks_boxes else None
    if isinstance(config, DetectionConfig | LocalizationConfig):
        if size is not None:
            box_format = detector_formats.box_format_of(config)
            checked = config.model_copy(update={"box_format": box_format})
            check_boxes(checked, boxes.corners, *size)
        check_class_ids(name, boxes.class_ids, num_classes)
    decision = _decide_from(name, config, values, figures, needs_values=needs_values)
    return decision._replace(masks=decide_masks(config, *masks, size))


def _decide_from(
    name: str, config: ModelConfig, values: Values, figures: Figures, *, needs_values: bool
) -> Decision:
    if isinstance(config, SegmentationConfig) and figures.num_ids:
        return _decide_ids(name, figures)
    if config.activation != "auto":
        _check_explicit(name, config.activation, figures)
        advice = _background_advice(config, figures.units) if config.activation == "sigmoid" else ""
        return Decision(
            config.activation,
            f"{name}: activation {config.activation}, as the job file says ({figures}){advice}",
        )
    if isinstance(config, DetectionConfig):
        return _decide_detection(name, config, values, figures)
    is_multi_label = bool(getattr(config, "multi_label", False))
    units = figures.units
    is_arg_max = _is_arg_max(config, units) and not needs_values
    if isinstance(config, SegmentationConfig) and units == 1 and figures.are_several_whole:
        return _decide_whole(name, figures)
    verdict = _verdict(values, figures, is_multi_label, is_arg_max)
    if verdict:
        raise ModelError(_refusal(name, verdict, values, figures))
    if values.are_probabilities or (is_arg_max and figures.rows_sum_to_1):
        kinds = " and ".join(sorted(values.activations)) or "rows that sum to 1"
        reason = f"its scores are probabilities, of {kinds} in {values.source} ({figures})"
        advice = _background_advice(config, units) if "sigmoid" in values.activations else ""
        return Decision("none", f"{name}: {reason}; nothing is applied to them{advice}")
    activation = default_activation(units, is_multi_label)
    reason = f"its scores are logits, of {values.source} ({figures}); {activation} is applied"
    return Decision(activation, f"{name}: {reason}")


def _check_explicit(name: str, activation: Activation, figures: Figures) -> None:
    if activation == "none" and not figures.is_within(_EXPLICIT_TOLERANCE):
        raise ModelError(
            f"{name}: activation none says that its scores are probabilities, but the {figures}; "
            "set activation: softmax (classes exclude each other) or sigmoid"
        )


def _decide_ids(name: str, figures: Figures) -> Decision:
    count = figures.num_ids
    values = f"{'' if figures.are_whole else 'fractions '}{_span(figures.low, figures.high)}"
    if not figures.is_empty and not (
        figures.are_whole and figures.low >= 0 and figures.high < count
    ):
        raise ModelError(
            f"{name}: its one channel holds {values} for {figures.num_images} images, and ids of "
            f"the {count} classes are 0 to {count - 1}; set classes: to one name for each id, or "
            "to two names if the channel is the score of the second class"
        )
    return Decision(
        "none", f"{name}: its output holds class ids ({values} for {figures.num_images} images)"
    )


def _decide_whole(name: str, figures: Figures) -> Decision:
    """Decide on one channel of whole numbers: a thresholded score, or class ids without names."""
    if not figures.are_in_range:
        raise ModelError(
            f"{name}: its one channel holds the whole numbers {_span(figures.low, figures.high)}, "
            "which may be class ids; set classes: to one name for each id"
        )
    return Decision("none", f"{name}: its one channel holds 0 and 1, without fractions")


def _background_advice(config: ModelConfig, units: int) -> str:
    """Return what independent channels of a segmentation network mean without a background."""
    if not isinstance(config, SegmentationConfig) or config.background or units == 1:
        return ""
    return (
        "; its channels are independent, and every pixel gets the best one: set background: add if "
        "no channel is the background"
    )


def _decide_detection(
    name: str, config: DetectionConfig, values: Values, figures: Figures
) -> Decision:
    if activation := DETECTORS[config.detector].activation:
        if values.are_probabilities or figures.are_in_range:
            raise ModelError(
                f"{name}: a {activation} is applied to its logits, but the {figures}, so that they "
                "seem to be probabilities already; set detector: boxes_scores and the box_format "
                "of its boxes"
            )
        return Decision("none", f"{name}: a {activation} is applied to its logits ({figures})")
    if not figures.are_in_range:
        raise ModelError(
            f"{name}: the scores of its boxes must be probabilities, but the {figures}; set "
            "activation: sigmoid or softmax if they are logits"
        )
    return Decision("none", f"{name}: its scores are probabilities ({figures})")


def _is_arg_max(config: ModelConfig, units: int) -> bool:
    """Return whether only the largest score of a pixel counts, which no activation changes."""
    return (
        isinstance(config, SegmentationConfig)
        and units > 1
        and config.tiles is None
        and config.score_threshold is None
        and config.background is None
    )


def _verdict(values: Values, figures: Figures, is_multi_label: bool, is_arg_max: bool) -> str:
    """Return why graph and scores disagree; "" if they agree."""
    are_in_range = figures.are_in_range
    is_distribution = values.row_sum is not None and figures.units > 1 and not is_multi_label
    table = (
        (
            values.are_probabilities and not are_in_range,
            "{kinds} before {source} gives values in 0..1",
        ),
        (
            values.are_probabilities and is_distribution and not figures.rows_sum_to_1,
            "the softmax before {source} is not over the classes, or its result is scaled",
        ),
        (
            values.are_logits and figures.rows_sum_to_1 and not is_arg_max,
            "{source} is not a softmax or sigmoid, so that its values would be logits",
        ),
        (
            not (values.are_probabilities or values.are_logits) and are_in_range and not is_arg_max,
            "{source} may return probabilities or logits",
        ),
    )
    if figures.is_empty:
        return ""
    kinds = " and ".join(sorted(values.activations)) or "an activation"
    reason = next((text for is_true, text in table if is_true), "")
    return reason.format(kinds=kinds, source=values.source)


def _refusal(name: str, verdict: str, values: Values, figures: Figures) -> str:
    return (
        f"{name}: {verdict}, but the {figures}; set activation: none if the scores are "
        "probabilities, softmax or sigmoid if that is still to be applied"
        if figures.are_in_range and not values.are_probabilities
        else f"{name}: {verdict}: the {figures}; correct the network, or set activation: none to "
        "use its scores as they are, softmax or sigmoid to apply that to them"
    )


class _Boxes(NamedTuple):
    """Boxes of the best scores of a few images.

    Attributes:
        corners: (K, 4) in the box format.
        class_ids: (K,) int32; empty if the boxes have scores for all classes.
    """

    corners: Any
    class_ids: Any


class _Observed(NamedTuple):
    """What the graph and the outputs of a few images say.

    Attributes:
        values: of the scores, from the graph.
        figures: of the scores.
        boxes: those of the best scores; empty without boxes.
        masks: as `observe_masks`.
    """

    values: Values
    figures: Figures
    boxes: _Boxes
    masks: tuple[Values | MaskDecision, dict[str, np.ndarray]]


def _observe(
    model: Network, config: ModelConfig, pixels: np.ndarray, scores_of: Callable[..., Any]
) -> _Observed:
    """Run the network on a batch."""
    batch = model.input_shape[0] or len(pixels)
    pixels = np.resize(pixels, (batch, *pixels.shape[1:]))  # repeats images to a fixed batch
    size = pixels.shape[1], pixels.shape[2]
    seen: list[tuple[Values, int, int, Values | MaskDecision]] = []

    def forward(images: tf.Tensor) -> tuple[tf.Tensor, _Boxes, Tensors]:
        raw, _ = run_network(model, config, images)
        scores = _raw_scores(scores_of, config, raw, size)
        ids = num_ids(config, scores) if isinstance(config, SegmentationConfig) else 0
        known = getattr(model, "known_values", {})
        mask_values, masks = observe_masks(config, raw, size, known)
        seen.append((values_of(scores, known), int(scores.shape[-1]), ids, mask_values))
        rows = tf.reshape(tf.cast(scores, tf.float32), (-1, scores.shape[-1]))
        rows = tf.boolean_mask(rows, tf.reduce_all(tf.math.is_finite(rows), axis=1))
        sums = tf.reduce_sum(rows, axis=1)
        limits = [f(x) for x in (rows, sums) for f in (tf.reduce_min, tf.reduce_max)]
        limits.append(tf.reduce_max(tf.abs(rows - tf.round(rows))))
        return tf.stack(limits), _best_boxes(config, raw, size), masks

    tensors = tf.function(forward, autograph=False)(tf.constant(pixels))
    limits, boxes, masks = tf.nest.map_structure(lambda tensor: tensor.numpy(), tensors)
    low, high, sum_low, sum_high, fraction = limits.tolist()
    values, units, ids, mask_values = seen[0]
    ends = low, high, sum_low, sum_high
    figures = Figures(*ends, len(pixels), units, fraction <= 0, ids)
    return _Observed(values, figures, boxes, (mask_values, masks))


def _raw_scores(
    scores_of: Callable[..., Any], config: ModelConfig, raw: Tensors, size: tuple[int, int]
) -> tf.Tensor:
    """Return the logits that a detector makes scores of, or else the scores."""
    logits = None
    if isinstance(config, DetectionConfig):
        logits = detector_formats.logits_of(config, raw)
    return scores_of(config, task_tensors(raw, config, size)) if logits is None else logits


def _best_boxes(config: ModelConfig, raw: Tensors, size: tuple[int, int]) -> _Boxes:
    """Return the boxes of the best scores of each image: others may be padding."""
    no_classes = tf.zeros((0,), tf.int32)
    if isinstance(config, LocalizationConfig):
        return _Boxes(tf.cast(single_box(raw)["box"], tf.float32), no_classes)
    if not isinstance(config, DetectionConfig):
        return _Boxes(tf.zeros((0, 4)), no_classes)
    outputs = detector_formats.decode(config, raw, size)
    found = top_boxes(tf.cast(outputs["scores"], tf.float32))
    corners = tf.gather(tf.cast(outputs["boxes"], tf.float32), found.indices, batch_dims=1)
    if "class_ids" not in outputs:
        return _Boxes(tf.reshape(corners, (-1, 4)), no_classes)
    is_box = found.values > 0
    class_ids = tf.gather(outputs["class_ids"], found.indices, batch_dims=1)
    return _Boxes(corners[is_box], class_ids[is_box])
