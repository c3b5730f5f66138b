"""Find the closest known names, for "did you mean" in error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest_names(
    name: str, known: Iterable[str], max_names: int = 1, cutoff: float = 0.5
) -> list[str]:
    """Return the known names closest to `name`, best first; upper and lower case are equal.

    Args:
        max_names: maximum number of names, where names that differ only by case count once.
        cutoff: minimum of difflib's ratio, from 0 (nothing in common) to 1 (equal).
    """
    by_lower: dict[str, list[str]] = {}
    for known_name in known:
        by_lower.setdefault(known_name.lower(), []).append(known_name)
    close = difflib.get_close_matches(name.lower(), by_lower, max_names, cutoff)
    return [known_name for lower in close for known_name in by_lower[lower]]


def hint(name: str, known: Iterable[str]) -> str:
    """Return text for an error message: the closest known names, or all if none is close."""
    known = list(known)
    close = closest_names(name, known, 3)
    return f"nearest are {', '.join(close)}" if close else f"there are {', '.join(known)}"
