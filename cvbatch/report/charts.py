"""Charts as drawings in the page: sharp at any size, in the reader's light or dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element

import numpy as np

from cvbatch.report.html import el, format_count, shorten

_WIDTH, _HEIGHT = 320, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 10, 10, 22


def histogram(title: str, counts: Mapping[int, int], num_bins: int) -> Element:
    """Return how many scores lie in each of `num_bins` equal parts of 0 to 1."""
    most = max(counts.values(), default=1)
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    bars = []
    for place in range(num_bins):
        number = counts.get(place, 0)
        tall = number / most * height
        bars.append(
            el(
                "rect",
                {
                    "class": "column",
                    "data-score": f"{(place + 1) / num_bins:.6g}",
                    "x": f"{_LEFT + place * width / num_bins + 0.5:.2f}",
                    "y": f"{_TOP + height - tall:.2f}",
                    "width": f"{width / num_bins - 1:.2f}",
                    "height": f"{tall:.2f}",
                },
                el("title", {}, f"{place / num_bins:.2f} to {(place + 1) / num_bins:.2f}: "
                                f"{number:,}"),
            )
        )  # fmt: skip
    total = sum(counts.values())
    told = f"{title}: {total:,} scores, the fullest part holds {most:,}"
    axes = _axes((0, most), ("0", "0.5", "1"))
    return _chart(title, told, [*axes, *bars])


def line_chart(
    title: str,
    values: Sequence[float],
    labels: Sequence[str],
    breaks: Sequence[int],
    best: int | None,
) -> Element:
    """Return a curve over the epochs; what is no finite number is a gap.

    labels: of the first and the last place. breaks: places where a new phase begins. best: the
    place of the epoch that was kept.
    """
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return _chart(title, f"{title}: no value", [])
    low, high = min(known), max(known)
    low, high = (low - 0.5, high + 0.5) if low == high else (low, high)
    x = _scale(np.arange(len(values)), 0, max(len(values) - 1, 1), _LEFT, _WIDTH - _RIGHT)
    y = _scale(np.array(values, np.float64), low, high, _HEIGHT - _BOTTOM, _TOP)
    marks = [
        el("line_chart", {"class": "break", "x1": f"{at:.2f}", "x2": f"{at:.2f}", "y1": _TOP,
                    "y2": _HEIGHT - _BOTTOM})
        for at in ((x[i - 1] + x[i]) / 2 for i in breaks)
    ]  # fmt: skip
    drawn = el("path", {"class": "curve", "d": _path(x, y)})
    dots = [
        el("circle", {"class": "best" if i == best else "dot", "cx": f"{x[i]:.2f}",
                      "cy": f"{y[i]:.2f}", "r": "4" if i == best else "1.6"},
           el("title", {}, f"epoch {labels[i]}: {values[i]:.4g}"))
        for i in range(len(values)) if math.isfinite(values[i]) and (i == best or len(values) < 80)
    ]  # fmt: skip
    told = (
        f"{title} over {format_count(len(values), 'epoch')}: from {known[0]:.4g} to {known[-1]:.4g}"
    )
    if best is not None and math.isfinite(values[best]):
        told += f", {values[best]:.4g} at the best epoch, {labels[best]}"
    axes = _axes((low, high), (labels[0], labels[-1]))
    return _chart(title, told, [*axes, *marks, drawn, *dots])


def reliability_diagram(
    confidence: Sequence[float | None], accuracy: Sequence[float | None], counts: Sequence[int]
) -> Element:
    """Return how often the answers of each confidence are right, beside how often they should."""
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    dots = []
    most = max(counts, default=1) or 1
    for sure, right, number in zip(confidence, accuracy, counts, strict=True):
        if sure is None or right is None:
            continue
        dots.append(
            el("circle", {"class": "dot", "cx": f"{_LEFT + sure * width:.2f}",
                          "cy": f"{_TOP + (1 - right) * height:.2f}",
                          "r": f"{2 + 5 * math.sqrt(number / most):.2f}"},
               el("title", {}, f"confidence {sure:.2f}: {100 * right:.0f} % right, {number:,}"))
        )  # fmt: skip
    straight = el(
        "line_chart",
        {"class": "break", "x1": _LEFT, "y1": _HEIGHT - _BOTTOM, "x2": _WIDTH - _RIGHT, "y2": _TOP},
    )
    told = f"How often answers of each confidence are right, in {len(dots)} parts; see the figures"
    axes = _axes((0, 1), ("0", "confidence", "1"))
    return _chart("Share of right answers by confidence", told, [*axes, straight, *dots])


def _scale(values: np.ndarray, low: float, high: float, start: float, end: float) -> np.ndarray:
    scaled: np.ndarray = start + (values - low) / (high - low) * (end - start)
    return scaled


def _path(x: np.ndarray, y: np.ndarray) -> str:  # (n,), (n,)
    steps, is_on = [], False
    for here, there in zip(x.tolist(), y.tolist(), strict=True):
        if math.isfinite(there):
            steps.append(f"{'L' if is_on else 'M'}{here:.2f} {there:.2f}")
        is_on = math.isfinite(there)
    return "".join(steps)


def _axes(up: tuple[float, float], marks: Sequence[str]) -> list[Element]:
    """Return the lines and figures of the range `up`, and marks along the foot."""
    made = []
    for part in (0.0, 0.5, 1.0):
        y = _HEIGHT - _BOTTOM - part * (_HEIGHT - _TOP - _BOTTOM)
        value = up[0] + part * (up[1] - up[0])
        made.append(el("line_chart", {"class": "grid", "x1": _LEFT, "x2": _WIDTH - _RIGHT,
                                "y1": f"{y:.2f}", "y2": f"{y:.2f}"}))  # fmt: skip
        is_short = 1e-4 <= abs(value) < 10_000 or not value
        text = f"{value:.3g}" if is_short else f"{value:.1e}"
        made.append(el("text", {"class": "tick", "x": _LEFT - 5, "y": f"{y + 3.5:.2f}",
                                "text-anchor": "end"}, text))  # fmt: skip
    for place, mark in enumerate(marks):
        x = _LEFT + place / max(len(marks) - 1, 1) * (_WIDTH - _LEFT - _RIGHT)
        anchor = "start" if place == 0 else "end" if place == len(marks) - 1 else "middle"
        made.append(el("text", {"class": "tick", "x": f"{x:.2f}", "y": _HEIGHT - 6,
                                "text-anchor": anchor}, mark))  # fmt: skip
    return made


def _chart(title: str, told: str, children: Sequence[Element]) -> Element:
    drawing = el(
        "svg",
        {"class": "chart", "viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "role": "img",
         "aria-label": shorten(told, 300)},
        *children,
    )  # fmt: skip
    return el("figure", {"class": "chart-box"}, el("figcaption", {}, title), drawing)
