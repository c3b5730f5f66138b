"""Class table of a data set: class names in the order of their ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cvbatch.core.errors import ConfigError
from cvbatch.core.types import MAX_MASK_CLASSES
from cvbatch.importers.annotations import UNKNOWN_CLASS


@dataclass(frozen=True)
class ClassTable:
    """Class names by id, and ids by name."""

    names: tuple[str, ...]
    id_of: dict[str, int]

    @classmethod
    def of(cls, dataset_names: Iterable[str], specified: Sequence[str] | None) -> ClassTable:
        """Return the table of the specified names, or else of the names in the data set.

        Args:
            dataset_names: a sequence keeps its order; any other iterable is sorted.
            specified: the names of `--classes`; None or empty: use those of the data set.
        """
        is_ordered = isinstance(dataset_names, Sequence)
        names = tuple(specified or (dataset_names if is_ordered else sorted(dataset_names)))
        return cls(names, {name: i for i, name in enumerate(names)})

    def ids(self, names: Iterable[str]) -> np.ndarray:  # (M,) int32
        """Return the id of each name; UNKNOWN_CLASS for a name that is not in the table."""
        return np.array([self.id_of.get(name, UNKNOWN_CLASS) for name in names], np.int32)


def check_mask_classes(names: Sequence[str], remedy: str = "") -> None:
    """Raise ConfigError if a mask cannot have so many classes."""
    if len(names) > MAX_MASK_CLASSES:
        raise ConfigError(
            f"{len(names)} classes: a mask can have at most {MAX_MASK_CLASSES}{remedy}"
        )
