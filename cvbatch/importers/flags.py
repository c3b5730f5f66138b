"""The flags of an import, as one table: which format takes which, and how argparse is told.

Plain Python alone, so that the command line loads nothing to show its help.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from cvbatch.importers.rules import FORMAT_DESCRIPTIONS, ISSUE_KINDS, RULES

__all__ = ["FORMAT_DESCRIPTIONS", "Flag", "chosen_actions", "format_flags"]

_ALL = tuple(FORMAT_DESCRIPTIONS)
_LABELLED = ("folders", "voc", "coco", "trimaps")  # not by a model


class Flag(NamedTuple):
    """A flag, the formats that take it, and argparse's keywords for it."""

    name: str
    formats: tuple[str, ...]
    options: dict[str, Any]


_FLAGS = (
    Flag(
        "--classes",
        _LABELLED,
        {"metavar": "NAMES", "help": "a,b,c or a .txt file, in order; default: those found"},
    ),
    Flag(
        "--images",
        ("coco", "trimaps"),
        {"metavar": "DIR", "help": "where images lie, if elsewhere"},
    ),
    Flag(
        "--masks",
        ("trimaps",),
        {"metavar": "DIR", "help": "PNG masks of your own; say their --classes"},
    ),
    Flag(
        "--values",
        ("trimaps",),
        {"metavar": "V,V", "help": "pixel value of each class; default: 1,2,3, of --masks 0,1,..."},
    ),
    Flag(
        "--masks",
        ("coco",),
        {"dest": "has_masks", "action": "store_true", "help": "draw masks from the outlines"},
    ),
    Flag(
        "--no-masks",
        ("voc",),
        {"dest": "has_masks", "action": "store_false", "help": "leave SegmentationClass out"},
    ),
    Flag(
        "--mask-classes",
        ("voc",),
        {"metavar": "NAMES", "help": "of mask values, from 0 on; default: Pascal VOC's own"},
    ),
    Flag(
        "--lists",
        ("voc",),
        {"metavar": "NAME", "default": "Main", "help": "of ImageSets; default: %(default)s"},
    ),
    Flag(
        "--orientation",
        ("voc", "coco", "trimaps"),
        {
            "choices": ("auto", "stored", "upright"),
            "default": "auto",
            "help": "what labels of images with an EXIF orientation refer to; default: the pixels "
            "as stored, unless the annotation gives the size of the upright image",
        },
    ),
    Flag(
        "--min-score",
        ("predictions",),
        {"type": float, "default": 0.5, "metavar": "P", "help": "default: %(default)s"},
    ),
    Flag(
        "--split",
        _ALL,
        {
            "metavar": "A,B,C",
            "help": "shares of train, validation and test, by a hash of the image's id; default: "
            "the data set's own splits, 0.8,0.1,0.1 where it has none",
        },
    ),
    Flag(
        "--seed",
        _ALL,
        {"type": int, "default": 0, "metavar": "N", "help": "of the hash; default: 0"},
    ),
    Flag(
        "--shard-images",
        _ALL,
        {"type": int, "default": 256, "metavar": "N", "help": "in a file; default: %(default)s"},
    ),
)


def format_flags(format_: str) -> Iterator[Flag]:
    """Yield the flags a format takes, those about oddities last."""
    yield from (flag for flag in _FLAGS if format_ in flag.formats)
    for rule in RULES:
        if format_ in rule.formats:
            meant = "; ".join(ISSUE_KINDS[kind].meaning for kind in rule.kinds)
            options = {
                "choices": rule.actions,
                "default": rule.actions[0],
                "help": f"{meant}; default: %(default)s",
            }
            yield Flag(f"--{rule.flag}", rule.formats, options)


def chosen_actions(said: Mapping[str, Any]) -> dict[str, str]:
    """Return flag of a rule → action, of what the command line said."""
    keys = {rule.flag: rule.flag.replace("-", "_") for rule in RULES}
    return {flag: said[key] for flag, key in keys.items() if key in said}
