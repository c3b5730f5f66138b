"""What each run of a prediction did lies under its sink, one small file a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cvbatch.storage import store
from cvbatch.storage.store import Storage

_NAME = "%Y%m%dT%H%M%S.%fZ.json"  # names sort by the time they were made


class Run(NamedTuple):
    """What one run did."""

    ended: datetime
    num_images: int
    num_failed: int
    num_chunks: int
    seconds: float
    images_per_second: float


def write_run(storage: Storage, sink_uri: str, summary: Mapping[str, Any]) -> None:
    """Write what the run that ends now did."""
    uri = store.join(_folder(sink_uri), datetime.now(UTC).strftime(_NAME))
    storage.put_bytes(uri, json.dumps(summary, indent=1).encode())


def latest(storage: Storage, sink_uri: str) -> Iterator[Run]:
    """Yield the runs, the last one first; each is read when it is asked for.

    What is damaged, or was put there by hand, is left out: it says nothing of the others.
    """
    folder = _folder(sink_uri)
    for name in sorted(storage.list_names(folder), reverse=True):
        try:
            ended = datetime.strptime(name, _NAME).replace(tzinfo=UTC)
            said = json.loads(storage.read_bytes(store.join(folder, name)))
            images, failed, chunks = (
                int(said[key]) for key in ("num_images", "num_failed", "num_chunks")
            )
            seconds, rate = (float(said[key]) for key in ("seconds", "images_per_second"))
        except (ValueError, TypeError, LookupError):
            continue
        yield Run(ended, images, failed, chunks, seconds, rate)


def _folder(sink_uri: str) -> str:
    return store.join(sink_uri, "_cvbatch", "runs")
