"""Names that were meant: the nearest known ones to offer for one that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest_names(
    name: str, known: Iterable[str], most: int = 1, likeness: float = 0.5
) -> list[str]:
    """Return the known names most like one, best first, whatever their case; [] if none is near.

    likeness: difflib's ratio, from 0 (nothing in common) to 1.
    """
    by_lower: dict[str, list[str]] = {}
    for one in known:
        by_lower.setdefault(one.lower(), []).append(one)
    close = difflib.get_close_matches(name.lower(), by_lower, most, likeness)
    return [one for lower in close for one in by_lower[lower]]


def hint(name: str, known: Iterable[str]) -> str:
    """Return the words that offer the names nearest to one, or all where none is near."""
    known = list(known)
    near = closest_names(name, known, 3)
    return f"nearest are {', '.join(near)}" if near else f"there are {', '.join(known)}"
