"""Charts of the page: histograms in its colours, which follow its controls; figures as images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element

from cvbatch.report.html import el, shorten

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


def plot(source: str, title: str, description: str, *, is_wide: bool = False) -> Element:
    """Return a figure of `cvbatch.plots`.

    It is an image and not a part of the page: the security policy of the page forbids the styles
    inside of an SVG, and an image runs no script.

    Args:
        source: data URI of the PNG or SVG.
        title: below the image.
        description: for readers who do not see it.
        is_wide: it has a row of its own.
    """
    image = el("img", {"src": source, "alt": shorten(description, 300), "class": "plot"})
    kind = "plot-box wide" if is_wide else "plot-box"
    return el("figure", {"class": kind}, image, el("figcaption", {}, title))


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
