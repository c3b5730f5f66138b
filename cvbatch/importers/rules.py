"""Table of data issues: how a report names each, and which actions its flag allows.

This module imports nothing heavy, so that the command line can list the flags at start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

Unit = Literal["image", "object", "entry"]


class Rule(NamedTuple):
    """A flag, and the actions it allows for some kinds of issues; the first is the default."""

    flag: str
    actions: tuple[str, ...]
    kinds: tuple[str, ...]
    formats: tuple[str, ...]  # formats in which these issues can occur


class IssueKind(NamedTuple):
    """A kind of issue: the unit that is counted and dropped, and its name in a report."""

    unit: Unit
    description: str


ISSUE_KINDS: dict[str, IssueKind] = {
    "box_partly_outside": IssueKind("object", "boxes partly outside their image"),
    "box_outside": IssueKind("object", "boxes wholly outside their image"),
    "box_no_area": IssueKind("object", "boxes without area"),
    "class_unknown": IssueKind("object", "objects of a class that is not listed"),
    "folder_unknown": IssueKind("image", "images in a folder that is not in --classes"),
    "mask_value": IssueKind("image", "masks with a value that is not a class"),
    "mask_size": IssueKind("image", "masks whose size differs from their image"),
    "mask_unreadable": IssueKind("image", "masks that cannot be read"),
    "declared_size": IssueKind("image", "images whose size differs from their annotation"),
    "image_missing": IssueKind("image", "annotations without an image"),
    "annotation_missing": IssueKind("image", "images without an annotation"),
    "object_astray": IssueKind("object", "objects of an image that is not listed"),
    "image_unreadable": IssueKind("image", "images that cannot be read"),
    "duplicate": IssueKind("image", "duplicate images"),
    "in_two_splits": IssueKind("entry", "images listed in two splits; test takes precedence"),
    "unlisted": IssueKind("image", "images in none of the split lists of the data set"),
    "failed": IssueKind("image", "images whose prediction failed"),
    "below_score": IssueKind("image", "images without a label of the minimum score"),
    "turned": IssueKind("entry", "images with an EXIF orientation, rotated with their labels"),
    "no_objects": IssueKind("entry", "images without an object"),
}

FORMAT_DESCRIPTIONS = {
    "folders": "class folders: SRC/class/*.jpg, or SRC/train/class/*.jpg",
    "voc": "Pascal VOC: SRC/Annotations, JPEGImages, ImageSets and SegmentationClass",
    "coco": "COCO: SRC/annotations/instances_*.json, or one such file as SRC",
    "trimaps": "Oxford-IIIT Pets: SRC/images and SRC/annotations/trimaps; or any PNG masks",
    "predictions": "the sink of `cvbatch predict`: predictions as pseudo-labels",
}
_ALL = tuple(FORMAT_DESCRIPTIONS)
_BOXES = ("voc", "coco", "predictions")

RULES = (
    Rule("outside", ("clip", "drop", "refuse"), ("box_partly_outside",), _BOXES),
    Rule("no-area", ("drop", "refuse"), ("box_outside", "box_no_area"), _BOXES),
    Rule(
        "unknown",
        ("refuse", "drop"),
        ("class_unknown", "folder_unknown", "mask_value"),
        ("folders", "voc", "coco", "trimaps"),
    ),
    Rule("mask-size", ("drop", "refuse"), ("mask_size",), ("voc", "trimaps", "predictions")),
    Rule(
        "declared-size",
        ("drop", "keep", "refuse"),
        ("declared_size",),
        ("voc", "coco", "predictions"),
    ),
    Rule(
        "missing",
        ("drop", "refuse"),
        ("image_missing", "annotation_missing", "object_astray"),
        _ALL,
    ),
    Rule("unreadable", ("drop", "refuse"), ("image_unreadable", "mask_unreadable"), _ALL),
    Rule(
        "duplicates", ("drop", "refuse"), ("duplicate", "in_two_splits"), ("voc", "coco", "trimaps")
    ),
    Rule("unlisted", ("drop", "split", "refuse"), ("unlisted",), ("voc", "trimaps")),
)

# No flag changes these: a prediction without a label is of no use, an image without objects is.
_FIXED_ACTIONS = {"failed": "drop", "below_score": "drop", "turned": "keep", "no_objects": "keep"}

FLAG_OF = {kind: rule.flag for rule in RULES for kind in rule.kinds}


def actions_by_kind(chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the action for every kind of issue.

    Args:
        chosen: flag → action, for flags that do not have their default.
    """
    actions = {
        kind: chosen.get(rule.flag, rule.actions[0]) for rule in RULES for kind in rule.kinds
    }
    return actions | _FIXED_ACTIONS
