"""Performance targets of the prediction job, and the measured values from the runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Run = dict[str, Any]  # one run of one job: job, round, seconds, peak_mib, steady, ...
Runs = Mapping[str, Sequence[Run]]  # job → its runs, in the order of the rounds


@dataclass(frozen=True)
class Bar:
    """A target with the measured value; `figure` is None if a run it needs is missing."""

    name: str
    figure: float | None
    limit: float
    is_least: bool  # the limit is a minimum; otherwise a maximum
    unit: str = "×"

    @property
    def verdict(self) -> str:
        """Return "pass", "miss" or "not measured"."""
        if self.figure is None:
            return "not measured"
        is_met = self.figure >= self.limit if self.is_least else self.figure <= self.limit
        return "pass" if is_met else "miss"

    def as_json(self) -> dict[str, Any]:
        """Return the target as JSON-ready values."""
        return {**asdict(self), "verdict": self.verdict}


def paired(runs: Runs, ours: str, peer: str, key: str) -> float | None:
    """Return the median over rounds of the ratio of our value to the peer's in the same round."""
    theirs = {run["round"]: run[key] for run in runs.get(peer, ())}
    ratios = [
        run[key] / theirs[run["round"]] for run in runs.get(ours, ()) if run["round"] in theirs
    ]
    return statistics.median(ratios) if ratios else None


def median(runs: Runs, job: str, key: str) -> float | None:
    """Return the median of a value over the runs of a job."""
    values = [run[key] for run in runs.get(job, ()) if key in run]
    return statistics.median(values) if values else None


def all_bars(runs: Runs) -> list[Bar]:
    """Return every target with its measured value."""
    ours, three = "cvbatch, classification", "cvbatch, three tasks"
    textbook = median(runs, "Grad-CAM, textbook loop", "steady")
    gradcam = next(iter(runs.get("Grad-CAM, in the graph", ())), None)
    bars = [
        Bar("steady, classification / limit", _steady(runs, ours, "limit, classification"), 0.8,
            True),
        Bar("steady, three tasks / limit", _steady(runs, three, "limit, three tasks"), 0.8, True),
        Bar("steady, classification / Daft", _steady(runs, ours, "Daft"), 2.0, True),
        Bar("steady, classification / plain Daft", _steady(runs, ours, "plain Daft"), 2.0, True),
        Bar("steady, classification / Ray Data's recipe", _steady(runs, ours, "Ray Data's recipe"),
            3.0, True),
        Bar("whole job, seconds / Daft's", paired(runs, ours, "Daft", "seconds"), 1.0, False),
    ]  # fmt: skip
    for engine in ("litert", "tensorflow"):
        found = gradcam[engine] if gradcam else None
        added = found["added"] * 100 if found else None
        bars.append(Bar(f"Grad-CAM adds, {engine}", added, 10.0, False, " %"))
        ratio = 1000 / textbook / found["heatmap_ms"] if found and textbook else None
        bars.append(Bar(f"Grad-CAM / textbook loop, {engine}", ratio, 10.0, True))
    small = median(runs, ours, "peak_mib")
    large = median(runs, "cvbatch, classification, many", "peak_mib")
    growth = large / small if small and large else None
    return [
        *bars,
        Bar("12 megapixels, reduced / full decode", median(runs, "large JPEG", "ratio"), 2.0, True),
        Bar("peak memory, classification", small, 3072.0, False, " MiB"),
        Bar("peak memory, ten times the images", growth, 1.1, False),
    ]


def _steady(runs: Runs, ours: str, peer: str) -> float | None:
    return paired(runs, ours, peer, "steady")


_COLUMNS = (
    ("images/s steady", "steady", ".1f"),
    ("images", "images", ".0f"),
    ("whole job, s", "seconds", ".1f"),
    ("peak MiB", "peak_mib", ".0f"),
)


def rate_table(runs: Runs) -> list[str]:
    """Return the jobs' medians as lines; only the rate for measurements that are no whole job."""
    lines = [f"{'median of the rounds':44}" + "".join(f"{name:>17}" for name, _, _ in _COLUMNS)]
    for job in runs:
        if median(runs, job, "steady") is None:
            continue
        columns = _COLUMNS[:1] if job.startswith(("limit", "Grad-CAM")) else _COLUMNS
        cells = [f"{median(runs, job, key):{form}}" for _, key, form in columns]
        lines.append(f"{job:44}" + "".join(f"{cell:>17}" for cell in cells))
    return lines


def bar_table(bars: Sequence[Bar]) -> list[str]:
    """Return the targets as lines."""
    lines = [f"{'target':44}{'measured':>17}{'limit':>17}  result"]
    for bar in bars:
        figure = "-" if bar.figure is None else f"{bar.figure:.2f}{bar.unit}"
        limit = f"{'≥' if bar.is_least else '≤'} {bar.limit:g}{bar.unit}"
        lines.append(f"{bar.name:44}{figure:>17}{limit:>17}  {bar.verdict}")
    return lines
