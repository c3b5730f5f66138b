"""Timestamps of finished batches per worker, and the steady rate computed from them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

Event = tuple[float, int, int]  # Unix time (s), images finished at that time, worker


class Stamps:
    """Records finished images in a file of this process; works in a worker of any framework."""

    def __init__(self, folder: str) -> None:
        self._path = Path(folder) / f"stamps-{os.getpid()}.txt"

    def add(self, num_images: int) -> None:
        with self._path.open("a") as file:
            file.write(f"{time.time()} {num_images}\n")


def read_events(folder: Path) -> list[Event]:
    """Return the events that all workers recorded in a folder."""
    events = []
    for worker, path in enumerate(sorted(folder.glob("stamps-*.txt"))):
        for line in path.read_text().splitlines():
            when, num_images = line.split()
            events.append((float(when), int(num_images), worker))
    return events


def steady_rate(events: list[Event]) -> float:
    """Return images per second from the time at which every worker has finished its first unit."""
    first: dict[int, float] = {}
    for when, _, worker in sorted(events):
        first.setdefault(worker, when)
    begun, ended = max(first.values()), max(when for when, _, _ in events)
    done = sum(num_images for when, num_images, _ in events if when > begun)
    if ended <= begun:
        raise SystemExit("too few units for a steady rate: use more images or smaller units")
    return done / (ended - begun)


def print_summary(events: list[Event], num_images: int, **more: Any) -> None:
    """Print the number of images and the steady rate as JSON, the last line of standard output."""
    print(json.dumps({"images": num_images, "steady": steady_rate(events), **more}), flush=True)
