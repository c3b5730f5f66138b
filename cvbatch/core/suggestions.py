"""Find the closest known names, for "did you mean" in error messages."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

MAX_SIBLINGS = 10_000  # names of a folder that are compared
_WINDOWS_PATH = re.compile(r"(?:.*/)?([A-Za-z]):\\(.+)", re.DOTALL)

_SINGLE_SLASH = re.compile(r"(?:.*/)?(s3|gs):/([^/].*)", re.DOTALL)


def closest_names(
    name: str, known: Iterable[str], max_names: int = 1, cutoff: float = 0.5
) -> list[str]:
    """Return the known names closest to `name`, best first; case, hyphens and dots do not count.

    Args:
        max_names: maximum number of names, where names that differ only by case count once.
        cutoff: minimum of difflib's ratio, from 0 (nothing in common) to 1 (equal).
    """
    by_letters: dict[str, list[str]] = {}
    for known_name in known:
        by_letters.setdefault(_letters(known_name), []).append(known_name)
    letters = _letters(name)
    if letters in by_letters:
        return by_letters[letters]
    close = difflib.get_close_matches(letters, by_letters, max_names, cutoff)
    return [known_name for match in close for known_name in by_letters[match]]


def _letters(name: str) -> str:
    return re.sub(r"[-_. ]", "", name).lower() or name


def hint(name: str, known: Iterable[str]) -> str:
    """Return text for an error message: the closest known names, or all if none is close."""
    known = list(known)
    return (
        did_you_mean(closest_names(name, known, 3, cutoff=0.6)) or f"use one of {', '.join(known)}"
    )


def did_you_mean(names: Iterable[str]) -> str:
    """Return "did you mean a, b or c?"; "" without names."""
    *first, last = list(names) or [""]
    return f"did you mean {', '.join(first)}{' or ' * bool(first)}{last}?" if last else ""


def hint_for_path(path: str) -> str:
    """Return what to do about a local file or folder that does not exist.

    Args:
        path: absolute, as it was looked for.
    """
    if match := _WINDOWS_PATH.fullmatch(path):
        folder = match[2].replace("\\", "/")
        return (
            "it is a Windows path; write it as this machine names it, in WSL "
            f"/mnt/{match[1].lower()}/{folder}"
        )
    if match := _SINGLE_SLASH.fullmatch(path):
        return f"did you mean {match[1]}://{match[2]}?"
    folder, name = os.path.split(path.rstrip("/"))
    if not Path(folder).is_dir():
        return f"there is no folder {folder} either; check the path"
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, MAX_SIBLINGS)]
    except OSError:
        names = []
    siblings = [other for other in names if not name.startswith(f"{other}.")]  # net.onnx of .data
    return did_you_mean(closest_names(name, siblings, cutoff=0.75)) or "check the name"
