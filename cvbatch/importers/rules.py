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
    "box_derived": IssueKind("entry", "boxes derived from outlines, because theirs are unusable"),
    "id_repeated": IssueKind("entry", "ids that several objects have; all of them are kept"),
    "box_invalid": IssueKind("object", "objects without a usable box or outline"),
    "object_invalid": IssueKind("object", "objects without a usable class or image"),
    "area_invalid": IssueKind("entry", "areas that are no numbers of 0 or more, ignored"),
    "crowd_unclear": IssueKind("entry", "iscrowd values that are null or no numbers, taken as 0"),
    "difficult_unclear": IssueKind(
        "entry", "difficult values that are neither 0 nor 1, taken as 0"
    ),
    "number_text": IssueKind("entry", "objects or images with numbers written as text"),
    "outline_invalid": IssueKind("entry", "outlines that are unusable or only partly usable"),
    "outline_missing": IssueKind(
        "entry", "objects without an outline, void in the mask and without one of their own"
    ),
    "size_invalid": IssueKind("entry", "image sizes in annotations that are no sizes, ignored"),
    "class_unknown": IssueKind("object", "objects of a class that is not listed"),
    "category_unlisted": IssueKind("object", "objects of a category that the file does not list"),
    "category_group": IssueKind("entry", "categories that only group others, left out"),
    "folder_unknown": IssueKind("image", "images in a folder that is not in --classes"),
    "label_unknown": IssueKind("image", "images of a class that is not in --classes"),
    "mask_value": IssueKind("image", "masks with a value that is not a class"),
    "mask_size": IssueKind("image", "masks whose size differs from their image"),
    "annotation_unreadable": IssueKind("image", "annotation files that cannot be read"),
    "mask_unreadable": IssueKind("image", "masks that cannot be read"),
    "declared_size": IssueKind("image", "images whose size differs from their annotation"),
    "image_missing": IssueKind("image", "annotations without an image"),
    "image_invalid": IssueKind("image", "entries of images without a usable id or file name"),
    "image_by_name": IssueKind("image", "images found by their name, because their path is wrong"),
    "image_ambiguous": IssueKind("image", "annotations whose name several images have"),
    "annotation_missing": IssueKind("image", "images without an annotation"),
    "object_astray": IssueKind("object", "objects of an image that is not listed"),
    "image_unreadable": IssueKind("image", "images that cannot be read"),
    "image_damaged": IssueKind("image", "images that cannot be decoded"),
    "duplicate": IssueKind("image", "duplicate images"),
    "split_missing": IssueKind("entry", "splits whose folder or list does not exist"),
    "split_repeated": IssueKind("entry", "splits with the images of train, which are for training"),
    "in_two_splits": IssueKind("entry", "images listed in two splits; test takes precedence"),
    "unlisted": IssueKind("image", "images in none of the split lists of the data set"),
    "failed": IssueKind("image", "images whose prediction failed"),
    "below_score": IssueKind("image", "images without a label of the minimum score"),
    "turned": IssueKind("entry", "images with an EXIF orientation, rotated with their labels"),
    "no_objects": IssueKind("entry", "images without an object"),
}

FORMAT_DESCRIPTIONS = {
    "folders": "class folders: SRC/class/*.jpg, or SRC/train/class/*.jpg",
    "csv": "a CSV file with a column of image paths and a column of classes",
    "voc": "Pascal VOC: SRC/Annotations, JPEGImages, ImageSets and SegmentationClass; or XML files "
    "beside the images",
    "coco": "COCO, also of CVAT, Roboflow and FiftyOne: the folder of the data set, or one JSON "
    "file",
    "yolo": "YOLO boxes or polygons: SRC/data.yaml, images and labels/*.txt",
    "trimaps": "Oxford-IIIT Pets: SRC/images and SRC/annotations/trimaps; or other --masks",
    "masks": "masks in PNG or TIFF beside images, as class ids or as colours of labelmap.txt",
    "predictions": "the sink of `cvbatch predict`: predictions as pseudo-labels",
}
_ALL = tuple(FORMAT_DESCRIPTIONS)
_BOXES = ("voc", "coco", "yolo", "predictions")
_MASKS = ("trimaps", "masks")

RULES = (
    Rule("outside", ("clip", "drop", "refuse"), ("box_partly_outside",), _BOXES),
    Rule("no-area", ("drop", "refuse"), ("box_outside", "box_no_area"), _BOXES),
    Rule(
        "faulty",
        ("drop", "refuse"),
        ("box_invalid", "object_invalid", "image_invalid"),
        ("voc", "coco", "yolo", "csv"),
    ),
    Rule(
        "repaired",
        ("keep", "refuse"),
        (
            "box_derived",
            "area_invalid",
            "crowd_unclear",
            "difficult_unclear",
            "number_text",
            "outline_invalid",
            "outline_missing",
            "size_invalid",
            "id_repeated",
        ),
        ("voc", "coco", "yolo"),
    ),
    Rule("by-name", ("keep", "drop", "refuse"), ("image_by_name",), ("coco", "yolo", "csv")),
    Rule(
        "unknown",
        ("refuse", "drop"),
        ("class_unknown", "folder_unknown", "label_unknown", "mask_value"),
        ("folders", "csv", "voc", "coco", "yolo", *_MASKS),
    ),
    Rule("broken", ("refuse", "drop"), ("annotation_unreadable",), ("voc",)),
    Rule("mask-size", ("drop", "refuse"), ("mask_size",), ("voc", *_MASKS, "predictions")),
    Rule(
        "declared-size",
        ("drop", "keep", "refuse"),
        ("declared_size",),
        ("voc", "coco", "predictions"),
    ),
    Rule(
        "missing",
        ("drop", "refuse"),
        (
            "image_missing",
            "image_ambiguous",
            "annotation_missing",
            "object_astray",
            "split_missing",
            "category_unlisted",
        ),
        _ALL,
    ),
    Rule("unreadable", ("drop", "refuse"), ("image_unreadable", "mask_unreadable"), _ALL),
    Rule("damaged", ("drop", "keep", "refuse"), ("image_damaged",), _ALL),
    Rule(
        "duplicates",
        ("drop", "refuse"),
        ("duplicate", "in_two_splits"),
        ("csv", "voc", "coco", "yolo", *_MASKS),
    ),
    Rule("unlisted", ("drop", "split", "refuse"), ("unlisted",), ("voc", "yolo", *_MASKS)),
)

# No flag changes these: a prediction without a label is of no use, an image without objects is.
_FIXED_ACTIONS = {
    "failed": "drop",
    "below_score": "drop",
    "turned": "keep",
    "no_objects": "keep",
    "category_group": "keep",
    "split_repeated": "keep",
}

RULE_OF = {kind: rule for rule in RULES for kind in rule.kinds}


def actions_by_kind(chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the action for every kind of issue.

    Args:
        chosen: flag → action, for flags that do not have their default.
    """
    actions = {
        kind: chosen.get(rule.flag, rule.actions[0]) for rule in RULES for kind in rule.kinds
    }
    return actions | _FIXED_ACTIONS
