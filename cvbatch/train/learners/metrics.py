"""One answer is scored in several ways at once; those scores are kept, merged and sent together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cvbatch.metrics.average_precision import AveragePrecision
from cvbatch.metrics.base import Metric
from cvbatch.metrics.classification import BoxIoU, Confusion, MultiLabelPrecision, TopK

_KINDS: dict[str, type[Metric]] = {
    "average_precision": AveragePrecision,
    "box_iou": BoxIoU,
    "confusion": Confusion,
    "multi_label_precision": MultiLabelPrecision,
    "top_k": TopK,
}


@dataclass(frozen=True)
class MetricSet:
    """Scores of the same images, by the names of their kinds; they merge as each of them does."""

    scores: Mapping[str, Metric]

    @classmethod
    def of(cls, *scores: Metric) -> MetricSet:
        """Return these scores, each of another kind, as one."""
        names = {kind: name for name, kind in _KINDS.items()}
        return cls({names[type(score)]: score for score in scores})

    def merge(self, *others: MetricSet) -> MetricSet:
        """Return the scores of all the images that these saw.

        Raises:
            ValueError: the settings of a score differ.
        """
        return MetricSet(
            {
                name: score.merge(*(other.scores[name] for other in others))
                for name, score in self.scores.items()
            }
        )

    def to_state(self) -> dict[str, Any]:
        """Return the scores as numbers, strings and lists of them, fit for JSON."""
        return {name: score.to_state() for name, score in self.scores.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> MetricSet:
        """Return what `to_state` told, also after JSON."""
        return cls({name: _KINDS[name].from_state(values) for name, values in state.items()})

    def figures(self, name: str) -> dict[str, float]:
        """Return the figures of one score; NaN where it has none to give."""
        values = self.scores[name].as_dict()  # type: ignore[attr-defined]
        return {key: float("nan") if value is None else value for key, value in values.items()}
