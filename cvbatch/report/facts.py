"""What the page knows of every image of the gallery, as JSON: for search, sort, filters and CSV."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from cvbatch.core.redaction import redact
from cvbatch.report.columns import COLUMN_PAGES, describe
from cvbatch.report.html import shorten
from cvbatch.report.outcomes import LabelComparison
from cvbatch.report.samples import Card
from cvbatch.results.row import Row

_MAX_TEXT = 300  # characters of predictions and labels in the CSV


@dataclass
class Facts:
    """Facts about the images that were added, in their order.

    Attributes:
        is_multi_label: an image belongs to all its labels, not only to the best one.
        classes: names of all classes, in the order in which they occur.
        cards: JSON-ready facts of each image; a class is an index into `classes`.
    """

    is_multi_label: bool = False
    classes: dict[str, int] = field(default_factory=dict)
    cards: list[dict[str, Any]] = field(default_factory=list)

    def add(self, card: Card) -> None:
        """Add an image."""
        row, comparison = card.row, card.comparison
        facts = {
            "id": row.image_id,
            "uri": redact(row.uri),
            "status": "ok" if row.error is None else "failed",
            "error": "" if row.error is None else f"{row.error.stage}/{row.error.kind}",
            "width": row.width or 0,
            "height": row.height or 0,
            "score": _number(_best_score(row)),
            "predicted": shorten("; ".join(describe(row)), _MAX_TEXT),
            "classes": sorted({*map(self.class_index, self._names(row, comparison))}),
            "boxes": self._box_scores(row),
            "changes": list(card.changes),
        }
        if comparison is not None:
            facts |= self._outcomes(row, comparison)
        self.cards.append(facts)

    def as_script(self) -> str:
        """Return the facts as JSON that cannot end its `<script>` element."""
        document = {"classes": list(self.classes), "cards": self.cards}
        text = json.dumps(document, separators=(",", ":"), allow_nan=False)
        return text.replace("<", "\\u003c")

    def class_index(self, name: str) -> int:
        """Return the index of a class, which is added to the classes."""
        return self.classes.setdefault(shorten(name), len(self.classes))

    def _names(self, row: Row, comparison: LabelComparison | None) -> list[str]:
        """Return the classes of an image but those of its boxes, which have a minimum score."""
        names = []
        for column, page in COLUMN_PAGES.items():
            if column != "boxes":
                count = 1 if page.has_one_class and not self.is_multi_label else None
                names += [element["label"] for element in (page.elements(row) or [])[:count]]
        if comparison is not None:
            names += [*comparison.labels, *(box.label for box in comparison.true_boxes)]
        return names

    def _box_scores(self, row: Row) -> list[list[float]] | None:
        """Return class and highest score of the boxes of each class; None without boxes."""
        if row.boxes is None:
            return None
        highest: dict[int, float] = {}
        for box in row.boxes:
            class_index = self.class_index(box["label"])
            if math.isfinite(box["score"]):
                highest[class_index] = max(box["score"], highest.get(class_index, -math.inf))
        return [[class_index, _rounded(score)] for class_index, score in sorted(highest.items())]

    def _outcomes(self, row: Row, comparison: LabelComparison) -> dict[str, Any]:
        true_boxes = [box for box in comparison.true_boxes if not box.is_crowd]
        found = [box.found for box in true_boxes]
        wrong = [
            box["score"]
            for box, outcome in zip(row.boxes or (), comparison.outcomes, strict=False)
            if outcome == "fp"
        ]
        return {
            "truth": shorten(", ".join([*comparison.labels, *(b.label for b in true_boxes)]),
                             _MAX_TEXT),
            "correct": comparison.is_correct,
            "agreement": _number(comparison.mean_agreement),
            "loss": _number(comparison.loss),
            "false_positive": _number(max(wrong, default=None)),
            "missed": None in found,
            "found": _number(min((score for score in found if score is not None), default=None)),
            "cells": [
                [column, *(self.class_index(name) if name else -1 for name in names)]
                for column, *names in comparison.cells
            ],
        }  # fmt: skip


def _best_score(row: Row) -> float | None:
    """Return the highest score of the first column with scores; None without one."""
    for page in COLUMN_PAGES.values():
        elements = page.elements(row)
        if page.score_title and elements:
            return float(elements[0]["score"])
    return None


def _number(value: float | None) -> float | None:
    """Return a number for JSON, which has no NaN and no infinity."""
    return None if value is None or not math.isfinite(value) else _rounded(value)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
