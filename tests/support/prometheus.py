"""Prometheus series of cvbatch's jobs: their names and tags, and those of one run."""

from __future__ import annotations

import re

NAMES = {
    "cvbatch_images": {"run", "status"},
    "cvbatch_failures": {"run", "kind"},
    "cvbatch_bytes": {"run", "direction"},
    "cvbatch_stage_seconds": {"run", "stage"},
    "cvbatch_queue_depth": {"run", "stage"},
    "cvbatch_chunks_left": {"run"},
    "cvbatch_chunks": {"run"},
}


def metrics_of(run, scraped):
    """Return the series of a run: (name without ray_, tag's value) → value."""
    series_of_run = {}
    for series, value in scraped.items():
        name, _, tags = series.partition("{")
        labels = dict(re.findall(r'(\w+)="([^"]*)"', tags))
        if name.startswith("ray_cvbatch_") and labels.get("run") == run:
            name = name.removeprefix("ray_").removesuffix("_total")
            (value_of_tag,) = [labels[tag] for tag in NAMES[name] - {"run"}] or [""]
            series_of_run[name, value_of_tag] = series_of_run.get((name, value_of_tag), 0.0) + value
    return series_of_run
