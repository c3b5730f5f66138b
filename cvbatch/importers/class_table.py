"""The class table: names in the order of their ids, as found or as said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cvbatch.importers.annotations import UNKNOWN_CLASS


@dataclass(frozen=True)
class ClassTable:
    """Names, and their ids; a name that is not in it is UNKNOWN_CLASS."""

    names: tuple[str, ...]
    id_of: dict[str, int]

    @classmethod
    def of(cls, found: Iterable[str], said: Sequence[str] | None) -> ClassTable:
        """Return the table of what was said, or else of what was found, sorted unless in order.

        found: a set is sorted; a sequence keeps its order.
        """
        names = found if isinstance(found, Sequence) else sorted(found)
        names = tuple(said) if said else tuple(names)
        return cls(names, {name: i for i, name in enumerate(names)})

    def ids(self, names: Iterable[str]) -> np.ndarray:  # (M,) int32
        """Return the ids of names."""
        return np.array([self.id_of.get(name, UNKNOWN_CLASS) for name in names], np.int32)
