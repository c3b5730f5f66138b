"""One row of the table of named networks: builder, task, default size and classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras

from cvbatch.core.tasks import Task


@dataclass(frozen=True)
class ZooEntry:
    """A network that a job file can name.

    Args:
        build: function of (num_classes, image_size, options by name) that returns the network.
        task: what its outputs are for.
        num_classes: default number of outputs; 1 is one sigmoid unit, for two classes.
        image_size: default height and width in pixels.
        multiple_of: number of pixels that divides both sides.
        minimum: smallest height and width in pixels.
    """

    build: Callable[..., keras.Model]
    task: Task
    num_classes: int
    image_size: tuple[int, int]
    multiple_of: int = 1
    minimum: tuple[int, int] = (1, 1)

    @classmethod
    def classifier(
        cls, build: Callable[..., keras.Model], num_classes: int, side: int, minimum: int
    ) -> ZooEntry:
        """Return the entry of a classifier of square images, `minimum` pixels a side or more."""
        return cls(build, "classification", num_classes, (side, side), minimum=(minimum, minimum))
