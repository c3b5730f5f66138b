"""Row type of the table of named networks: builder, task, default size and classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cvbatch.core.tasks import Task
from cvbatch.models.frameworks import keras


@dataclass(frozen=True)
class ZooEntry:
    """Builder, defaults and allowed image sizes of a network that a job file can name."""

    build: Callable[..., keras.Model]  # (num_classes, image_size, **options)
    task: Task
    num_classes: int  # default; 1 is a single sigmoid unit, for two classes
    image_size: tuple[int, int]  # default (height, width) in pixels
    multiple_of: int = 1  # height and width must be multiples of this
    minimum: tuple[int, int] = (1, 1)  # smallest (height, width) in pixels

    @classmethod
    def classifier(
        cls, build: Callable[..., keras.Model], num_classes: int, side: int, minimum: int
    ) -> ZooEntry:
        """Return the entry of a classifier whose default and minimum image sizes are square."""
        return cls(build, "classification", num_classes, (side, side), minimum=(minimum, minimum))
