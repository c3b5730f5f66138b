"""Summaries of the runs of a prediction, one JSON file per run under the sink."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cvbatch.core.ignored import Ignored
from cvbatch.storage import store
from cvbatch.storage.store import Storage

_HEATMAPS = ("heatmaps", "empty_heatmaps")
_NAME = "%Y%m%dT%H%M%S.%fZ.json"  # names sort by time


class Run(NamedTuple):
    """Summary of one run; its end is in UTC."""

    ended: datetime
    num_images: int
    num_failed: int
    num_chunks: int
    seconds: float
    images_per_second: float
    ignored: Ignored  # files of the source that were not read
    num_heatmaps: int
    num_empty_heatmaps: int  # 0 everywhere


def write_run(storage: Storage, sink_uri: str, summary: Mapping[str, Any]) -> None:
    """Write the summary of the run that ends now."""
    uri = store.join(_folder(sink_uri), datetime.now(UTC).strftime(_NAME))
    storage.put_bytes(uri, json.dumps(summary, indent=1).encode())


def latest(storage: Storage, sink_uri: str) -> Iterator[Run]:
    """Yield the runs, the last one first, each read when it is requested.

    Files that are damaged or are not summaries are skipped.
    """
    folder = _folder(sink_uri)
    for name in sorted(storage.list_names(folder), reverse=True):
        try:
            ended = datetime.strptime(name, _NAME).replace(tzinfo=UTC)
            summary = json.loads(storage.read_bytes(store.join(folder, name)))
            images, failed, chunks = (
                int(summary[key]) for key in ("num_images", "num_failed", "num_chunks")
            )
            seconds, rate = (float(summary[key]) for key in ("seconds", "images_per_second"))
            ignored = _ignored(summary)
            heatmaps = [int(summary.get(f"num_{kind}", 0)) for kind in _HEATMAPS]
        except (ValueError, TypeError, LookupError, AttributeError):
            continue
        yield Run(ended, images, failed, chunks, seconds, rate, ignored, *heatmaps)


def _ignored(summary: Mapping[str, Any]) -> Ignored:
    """Return what a run did not read; nothing for a summary of an earlier version."""
    ignored, names = Ignored(), summary.get("ignored_examples", {})
    for kind, count in summary.get("ignored", {}).items():
        ignored.add(str(kind), list(map(str, names.get(kind, []))), int(count))
    return ignored


def _folder(sink_uri: str) -> str:
    return store.join(sink_uri, "_cvbatch", "runs")
