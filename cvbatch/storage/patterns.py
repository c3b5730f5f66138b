"""Patterns of file names: `*`, `?`, `[...]`, `**`, and braces: `{a,b}`, `{000..127}`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cvbatch.core.errors import SourceError

MAX_ALTERNATIVES = 100_000  # names that the braces of one pattern may stand for
_WILD = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{([^{}/]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")


def is_pattern(name: str) -> bool:
    """Return whether a name has wildcards or braces."""
    return bool(_WILD.search(name)) or any(_alternatives(m[1]) for m in _BRACES.finditer(name))


def has_wildcard(name: str) -> bool:
    """Return whether a name has `*`, `?` or `[`."""
    return bool(_WILD.search(name))


def split_pattern(uri: str) -> tuple[str, str | None]:
    """Return the fixed folder and the pattern below it, None if no name is a pattern."""
    parts = uri.split("/")
    first = next((i for i, part in enumerate(parts) if is_pattern(part)), None)
    if first is None:
        return uri, None
    pattern = "/".join(parts[first:])
    return "/".join(parts[:first]) or ("/" if first else "."), (
        pattern + "**" if pattern.endswith("/") else pattern
    )


def expand_braces(pattern: str) -> list[str]:
    """Return the patterns without braces that a pattern stands for, each once.

    Raises:
        SourceError: They are more than `MAX_ALTERNATIVES`.
    """
    expanded: dict[str, None] = {}
    for alternative in _expand(pattern):
        expanded[alternative] = None
        if len(expanded) > MAX_ALTERNATIVES:
            raise SourceError(
                f"the braces of {pattern} stand for more than {MAX_ALTERNATIVES:,} names; use * "
                "instead"
            )
    return list(expanded)


def _expand(pattern: str) -> Iterator[str]:
    match = next((m for m in _BRACES.finditer(pattern) if _alternatives(m[1])), None)
    if match is None:
        yield pattern
        return
    for alternative in _alternatives(match[1]):
        yield from _expand(pattern[: match.start()] + alternative + pattern[match.end() :])


def _alternatives(inside: str) -> Iterator[str] | list[str]:
    """Return the alternatives of the text between two braces; [] if it is no list and no range."""
    if span := _RANGE.fullmatch(inside):
        return list(_range(span[1], span[2]))
    return inside.split(",") if "," in inside else []


def _range(first: str, last: str) -> Iterator[str]:
    """Yield the numbers of a range, as wide as its ends if one of them begins with 0."""
    start, end = int(first), int(last)
    if abs(end - start) > MAX_ALTERNATIVES:
        raise SourceError(
            f"{{{first}..{last}}} stands for more than {MAX_ALTERNATIVES:,} names; use * instead"
        )
    digits = [text.lstrip("-") for text in (first, last)]
    is_padded = any(len(text) > 1 and text.startswith("0") for text in digits)
    width = max(len(first), len(last)) if is_padded else 0
    step = 1 if end >= start else -1
    for number in range(start, end + step, step):
        yield f"{number:0{width}d}" if width else str(number)


def pattern_regex(pattern: str) -> str:
    """Return the regular expression (RE2) that matches a full relative name."""
    tokens = re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", pattern, re.DOTALL)
    return "(?s)^" + "".join(_token_regex(token) for token in tokens) + r"\z"


def _token_regex(token: str) -> str:
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    if token in wild:
        return wild[token]
    if len(token) > 1:  # [...]
        inside = token[1:-1]
        negated = inside.startswith("!")
        members = inside[negated:].replace("\\", r"\\").replace("[", r"\[").replace("]", r"\]")
        return f"[{'^/' if negated else ''}{members}]"
    return re.escape(token)
