"""One row of the table of named networks: builder, task, default size and classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras

from cvbatch.core.tasks import Task


@dataclass(frozen=True)
class ZooEntry:
    """A network that a job file can name."""

    build: Callable[..., keras.Model]  # (num_classes, image_size, options by name)
    task: Task
    num_classes: int  # default; 1 is one sigmoid unit, for two classes
    image_size: tuple[int, int]  # default height, width in pixels
    multiple_of: int = 1  # what both sides must be
    minimum: tuple[int, int] = (1, 1)  # height, width

    @classmethod
    def classifier(
        cls, build: Callable[..., keras.Model], num_classes: int, side: int, minimum: int
    ) -> ZooEntry:
        """Return the entry of a classifier of square images, `minimum` pixels a side or more."""
        return cls(build, "classification", num_classes, (side, side), minimum=(minimum, minimum))
