"""SVG charts: score histogram, training curve, reliability diagram.

SVG is sharp at any size and follows the light or dark mode of the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element

import numpy as np

from cvbatch.report.html import el, format_count, shorten

_WIDTH, _HEIGHT = 320, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 10, 10, 22


def histogram(
    title: str,
    counts: Mapping[int, int],
    num_bins: int,
    limits: tuple[float, float] | None = None,
) -> Element:
    """Return a histogram.

    Args:
        title: of the chart.
        counts: bin index → number of scores.
        num_bins: number of bins of equal width.
        limits: smallest and largest value; None: scores in 0..1, of which the page dims the bins
            below its minimum score.
    """
    low, high = limits or (0.0, 1.0)
    max_count = max(counts.values(), default=1)
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    bars = []
    for i in range(num_bins):
        num_scores = counts.get(i, 0)
        bar_height = num_scores / max_count * height
        start, end = (low + (high - low) * edge / num_bins for edge in (i, i + 1))
        form = ".4g" if limits else ".2f"
        tooltip = f"{start:{form}} to {end:{form}}: {num_scores:,}"
        score = {} if limits else {"data-score": f"{end:.6g}"}
        bars.append(
            el(
                "rect",
                {
                    "class": "column",
                    **score,
                    "x": f"{_LEFT + i * width / num_bins + 0.5:.2f}",
                    "y": f"{_TOP + height - bar_height:.2f}",
                    "width": f"{width / num_bins - 1:.2f}",
                    "height": f"{bar_height:.2f}",
                },
                el("title", {}, tooltip),
            )
        )
    total = sum(counts.values())
    description = f"{title}: {total:,} scores, {max_count:,} in the largest bin"
    labels = [f"{edge:.3g}" for edge in (low, (low + high) / 2, high)]
    return _chart(title, description, [*_axes((0, max_count), labels), *bars])


def line_chart(
    title: str,
    values: Sequence[float],
    labels: Sequence[str],
    breaks: Sequence[int],
    best: int | None,
) -> Element:
    """Return a curve over the epochs; NaN and infinite values are gaps.

    Args:
        title: of the chart.
        values: one for each epoch.
        labels: name of each epoch.
        breaks: indices of the epochs that start a new phase.
        best: index of the best epoch; None if it is not known.
    """
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return _chart(title, f"{title}: no value", [])
    low, high = min(known), max(known)
    low, high = (low - 0.5, high + 0.5) if low == high else (low, high)
    x = _scale(np.arange(len(values)), 0, max(len(values) - 1, 1), _LEFT, _WIDTH - _RIGHT)
    y = _scale(np.array(values, np.float64), low, high, _HEIGHT - _BOTTOM, _TOP)
    phase_lines = [
        el("line", {"class": "break", "x1": f"{at:.2f}", "x2": f"{at:.2f}", "y1": _TOP,
                    "y2": _HEIGHT - _BOTTOM})
        for at in ((x[i - 1] + x[i]) / 2 for i in breaks)
    ]  # fmt: skip
    curve = el("path", {"class": "curve", "d": _path(x, y)})
    dots = [
        el("circle", {"class": "best" if i == best else "dot", "cx": f"{x[i]:.2f}",
                      "cy": f"{y[i]:.2f}", "r": "4" if i == best else "1.6"},
           el("title", {}, f"epoch {labels[i]}: {values[i]:.4g}"))
        for i in range(len(values)) if math.isfinite(values[i]) and (i == best or len(values) < 80)
    ]  # fmt: skip
    num_epochs = format_count(len(values), "epoch")
    description = f"{title} over {num_epochs}: from {known[0]:.4g} to {known[-1]:.4g}"
    if best is not None and math.isfinite(values[best]):
        description += f", {values[best]:.4g} at the best epoch, {labels[best]}"
    axes = _axes((low, high), (labels[0], labels[-1]))
    return _chart(title, description, [*axes, *phase_lines, curve, *dots])


def reliability_diagram(
    confidence: Sequence[float | None], accuracy: Sequence[float | None], counts: Sequence[int]
) -> Element:
    """Return the accuracy of each confidence bin, with the diagonal of perfect calibration.

    Args:
        confidence: mean score of each bin, 0..1; None if the bin is empty.
        accuracy: share of correct predictions in each bin, 0..1; None if the bin is empty.
        counts: number of predictions in each bin.
    """
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    dots = []
    max_count = max(counts, default=1) or 1
    for score, correct, number in zip(confidence, accuracy, counts, strict=True):
        if score is None or correct is None:
            continue
        tooltip = f"confidence {score:.2f}: accuracy {100 * correct:.0f} %, {number:,} predictions"
        dots.append(
            el("circle", {"class": "dot", "cx": f"{_LEFT + score * width:.2f}",
                          "cy": f"{_TOP + (1 - correct) * height:.2f}",
                          "r": f"{2 + 5 * math.sqrt(number / max_count):.2f}"},
               el("title", {}, tooltip))
        )  # fmt: skip
    diagonal = el(
        "line",
        {"class": "break", "x1": _LEFT, "y1": _HEIGHT - _BOTTOM, "x2": _WIDTH - _RIGHT, "y2": _TOP},
    )
    axes = _axes((0, 1), ("0", "confidence", "1"))
    description = f"Accuracy by confidence, in {len(dots)} bins"
    return _chart("Accuracy by confidence", description, [*axes, diagonal, *dots])


def _scale(values: np.ndarray, low: float, high: float, start: float, end: float) -> np.ndarray:
    scaled: np.ndarray = start + (values - low) / (high - low) * (end - start)
    return scaled


def _path(x: np.ndarray, y: np.ndarray) -> str:  # (n,), (n,)
    """Return the `d` attribute of an SVG path that is interrupted at NaN."""
    steps, is_drawing = [], False
    for px, py in zip(x.tolist(), y.tolist(), strict=True):
        if math.isfinite(py):
            steps.append(f"{'L' if is_drawing else 'M'}{px:.2f} {py:.2f}")
        is_drawing = math.isfinite(py)
    return "".join(steps)


def _axes(y_range: tuple[float, float], x_labels: Sequence[str]) -> list[Element]:
    """Return three grid lines with their values, and the labels below the x axis."""
    elements = []
    for fraction in (0.0, 0.5, 1.0):
        y = _HEIGHT - _BOTTOM - fraction * (_HEIGHT - _TOP - _BOTTOM)
        value = y_range[0] + fraction * (y_range[1] - y_range[0])
        elements.append(el("line", {"class": "grid", "x1": _LEFT, "x2": _WIDTH - _RIGHT,
                                    "y1": f"{y:.2f}", "y2": f"{y:.2f}"}))  # fmt: skip
        is_short = 1e-4 <= abs(value) < 10_000 or not value
        text = f"{value:.3g}" if is_short else f"{value:.1e}"
        elements.append(el("text", {"class": "tick", "x": _LEFT - 5, "y": f"{y + 3.5:.2f}",
                                    "text-anchor": "end"}, text))  # fmt: skip
    last = len(x_labels) - 1
    for i, label in enumerate(x_labels):
        x = _LEFT + i / max(last, 1) * (_WIDTH - _LEFT - _RIGHT)
        anchor = "start" if i == 0 else "end" if i == last else "middle"
        elements.append(el("text", {"class": "tick", "x": f"{x:.2f}", "y": _HEIGHT - 6,
                                    "text-anchor": anchor}, label))  # fmt: skip
    return elements


def _chart(title: str, description: str, children: Sequence[Element]) -> Element:
    svg = el(
        "svg",
        {"class": "chart", "viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "role": "img",
         "aria-label": shorten(description, 300)},
        *children,
    )  # fmt: skip
    return el("figure", {"class": "chart-box"}, el("figcaption", {}, title), svg)
