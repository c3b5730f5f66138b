"""Decide which members of a tar or zip are images: by name, or by their first bytes."""

from __future__ import annotations

from typing import Literal, NamedTuple

from cvbatch.core.ignored import Ignored
from cvbatch.core.types import Failure, SourceOptions
from cvbatch.images.signatures import IMAGE_SUFFIXES
from cvbatch.sources.file_kinds import (
    NEVER_DECODED,
    NO_SUFFIX,
    NOT_SELECTED,
    PICTURE_KINDS,
    UNKNOWN,
    is_image_data,
    kind_of,
    not_decoded,
)
from cvbatch.storage.junk import JUNK, is_junk

_DOTTED_SUFFIXES = tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES)


class Member(NamedTuple):
    """One image of a file; the name is "" for the failure of the file's unreadable rest."""

    name: str
    data: bytes
    failure: Failure | None = None


class Choice(NamedTuple):
    """What is done with a member: `refuse` is a failed row, `sniff` reads the first bytes."""

    action: Literal["read", "sniff", "refuse", "ignore"]
    kind: str = ""


def choose(name: str, options: SourceOptions) -> Choice:
    """Return what is done with a member.

    With `members`, the suffix of a member is all that follows the first dot of its file name, as in
    WebDataset: that of `a/1.seg.png` is `seg.png`.
    """
    if is_junk(name):
        return Choice("ignore", JUNK)
    is_image = name.lower().endswith(_DOTTED_SUFFIXES)
    if options.members:
        suffix = name.rpartition("/")[2].lower().partition(".")[2]
        if suffix not in options.members:
            return Choice("ignore", NOT_SELECTED if is_image else kind_of(name))
        return Choice("read")
    if is_image:
        return Choice("read")
    kind = kind_of(name)
    if kind in (UNKNOWN, NO_SUFFIX):
        return Choice("sniff", kind)
    if kind not in PICTURE_KINDS or options.unreadable == "skip":
        return Choice("ignore", kind)
    return Choice("refuse" if kind in NEVER_DECODED else "read", kind)


def checked(member: Member, choice: Choice, ignored: Ignored) -> Member | None:
    """Return a member that was read, or None and count it if its bytes are no image's."""
    if choice.action == "refuse":
        return Member(member.name, b"", not_decoded(choice.kind))
    if choice.action == "sniff" and not is_image_data(member.data):
        ignored.add(choice.kind, [member.name])
        return None
    return member


def unique_name(name: str, numbers: dict[str, int]) -> str:
    """Return the name, with ~2, ~3, ... appended to repeated names.

    Args:
        name: of a member.
        numbers: last number appended to each name so far; the returned name is added.
    """
    unique, number = name, numbers.get(name, 1)
    while unique in numbers:
        number += 1
        unique = f"{name}~{number}"
    if unique != name:
        numbers[name] = number
    numbers[unique] = 1
    return unique
