"""What may be odd in a labelled data set, and what is done about it: one table, one flag a row.

Plain Python alone, so that the command line can offer the flags without loading anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

Unit = Literal["image", "object", "entry"]


class Rule(NamedTuple):
    """What may be done about oddities; the first action is the default."""

    flag: str
    actions: tuple[str, ...]
    kinds: tuple[str, ...]
    formats: tuple[str, ...]  # that can have them


class IssueKind(NamedTuple):
    """An oddity: what it befalls, and how a report calls it."""

    unit: Unit  # what is counted, and what is dropped
    meaning: str


ISSUE_KINDS: dict[str, IssueKind] = {
    "box_partly_outside": IssueKind("object", "boxes partly outside their image"),
    "box_outside": IssueKind("object", "boxes wholly outside their image"),
    "box_no_area": IssueKind("object", "boxes of no area"),
    "class_unknown": IssueKind("object", "objects of a class that is not listed"),
    "folder_unknown": IssueKind("image", "images in a folder that is not in --classes"),
    "mask_value": IssueKind("image", "masks with a value that is no class"),
    "mask_size": IssueKind("image", "masks of another size than their image"),
    "mask_unreadable": IssueKind("image", "masks that cannot be read"),
    "declared_size": IssueKind("image", "images of another size than their annotation says"),
    "image_missing": IssueKind("image", "annotations without an image"),
    "annotation_missing": IssueKind("image", "images without an annotation"),
    "object_astray": IssueKind("object", "objects of an image that is not listed"),
    "image_unreadable": IssueKind("image", "images that cannot be read"),
    "duplicate": IssueKind("image", "images that are there twice"),
    "in_two_splits": IssueKind("entry", "images listed in two splits, kept in the one for testing"),
    "unlisted": IssueKind("image", "images in none of the data set's own lists"),
    "failed": IssueKind("image", "images whose prediction failed"),
    "below_score": IssueKind("image", "images without a label of the minimum score"),
    "turned": IssueKind("entry", "images with an EXIF orientation, turned upright with their labels"),
    "no_objects": IssueKind("entry", "images without an object"),
}

FORMAT_DESCRIPTIONS = {
    "folders": "class folders: SRC/class/*.jpg, or SRC/train/class/*.jpg",
    "voc": "Pascal VOC: SRC/Annotations, JPEGImages, ImageSets and SegmentationClass",
    "coco": "COCO: SRC/annotations/instances_*.json, or one such file as SRC",
    "trimaps": "Oxford-IIIT Pets: SRC/images and SRC/annotations/trimaps; or masks of your own",
    "predictions": "the sink of `cvbatch predict`: what a model said, as labels for another",
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

# What no flag changes: a prediction without a label is none, an image without objects is a label.
_FIXED = {"failed": "drop", "below_score": "drop", "turned": "keep", "no_objects": "keep"}

FLAG_OF = {kind: rule.flag for rule in RULES for kind in rule.kinds}


def actions_by_kind(chosen: Mapping[str, str]) -> dict[str, str]:
    """Return what is done about every kind of oddity.

    chosen: flag → action, where it is not the default; the command line allows no others.
    """
    said = {kind: chosen.get(rule.flag, rule.actions[0]) for rule in RULES for kind in rule.kinds}
    return said | _FIXED
