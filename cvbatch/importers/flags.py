"""Command line flags of `cvbatch import`, by format.

This module imports nothing heavy, so that the command line can show its help at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from cvbatch.importers.rules import FORMAT_DESCRIPTIONS, ISSUE_KINDS, RULES

__all__ = ["FORMAT_DESCRIPTIONS", "Flag", "chosen_actions", "format_flags"]

_ALL = tuple(FORMAT_DESCRIPTIONS)
_GROUND_TRUTH = ("folders", "csv", "voc", "coco", "yolo", "trimaps", "masks")


class Flag(NamedTuple):
    """A flag, the formats that have it, and its keyword arguments of `add_argument`."""

    name: str
    formats: tuple[str, ...]
    options: dict[str, Any]


_FLAGS = (
    Flag(
        "--classes",
        _GROUND_TRUTH,
        {
            "metavar": "NAMES",
            "help": "class names in the order of their ids: a,b,c or a .txt file with one name per "
            "line; default: the classes in the data set",
        },
    ),
    Flag(
        "--annotations",
        ("coco",),
        {
            "metavar": "[SPLIT=]FILE",
            "action": "append",
            "default": [],
            "help": "annotation file below SRC, with its split: train, validation or test; can be "
            "repeated; default: the files of COCO, CVAT, Roboflow or FiftyOne in SRC",
        },
    ),
    Flag(
        "--image-column",
        ("csv",),
        {"metavar": "NAME", "help": "column of image paths; default: image, file_name, path, ..."},
    ),
    Flag(
        "--class-column",
        ("csv",),
        {"metavar": "NAME", "help": "column of classes; default: class, label, category, ..."},
    ),
    Flag(
        "--separator",
        ("csv",),
        {
            "metavar": "TEXT",
            "help": "text between several classes of an image, such as ';', which may then have "
            "several rows too; default: one class per image",
        },
    ),
    Flag(
        "--images",
        ("csv", "coco", "yolo", "trimaps", "masks"),
        {"metavar": "DIR", "help": "folder of the images; default: the format's folder in SRC"},
    ),
    Flag(
        "--no-images",
        ("csv", "voc", "coco"),
        {
            "dest": "has_images",
            "action": "store_false",
            "help": "import labels alone, for an evaluation: no image is read or stored",
        },
    ),
    Flag(
        "--no-check-images",
        _ALL,
        {
            "dest": "check_images",
            "action": "store_false",
            "help": "do not decode the images; default: decode each one, to find damaged images",
        },
    ),
    Flag(
        "--masks",
        ("trimaps",),
        {"metavar": "DIR", "help": "folder of other masks; requires --classes or SRC/labelmap.txt"},
    ),
    Flag(
        "--masks",
        ("masks",),
        {
            "metavar": "DIR",
            "help": "folder of the masks; default: SegmentationClass, masks, labels or "
            "annotations in SRC, or masks beside the images",
        },
    ),
    Flag(
        "--mask-suffix",
        ("trimaps", "masks"),
        {
            "metavar": "TEXT",
            "help": "end of a mask's name after the name of its image, such as _mask for "
            "a_mask.png; default: none, or the first of _mask, _seg, ... that fits",
        },
    ),
    Flag(
        "--values",
        ("trimaps",),
        {
            "metavar": "V,V",
            "help": "pixel value of each class in the masks; default: 1,2,3, or 0,1,... with "
            "--masks",
        },
    ),
    Flag(
        "--values",
        ("masks",),
        {"metavar": "V,V", "help": "pixel value of each class in the masks; default: 0,1,..."},
    ),
    Flag(
        "--masks",
        ("coco", "yolo"),
        {
            "dest": "has_masks",
            "action": "store_true",
            "help": "write masks, drawn from the outlines of the objects",
        },
    ),
    Flag(
        "--box-masks",
        ("coco", "yolo"),
        {
            "dest": "has_box_masks",
            "action": "store_true",
            "help": "write the outline of each box as its mask, for evaluations of masks of boxes",
        },
    ),
    Flag(
        "--no-masks",
        ("voc",),
        {"dest": "has_masks", "action": "store_false", "help": "ignore SegmentationClass"},
    ),
    Flag(
        "--mask-classes",
        ("voc",),
        {
            "metavar": "NAMES",
            "help": "class names of the mask values, from 0; default: background and the 20 "
            "classes of Pascal VOC",
        },
    ),
    Flag(
        "--lists",
        ("voc",),
        {
            "metavar": "NAME",
            "default": "Main",
            "help": "folder in ImageSets with the split lists; default: %(default)s",
        },
    ),
    Flag(
        "--orientation",
        ("voc", "coco", "yolo", "trimaps", "masks"),
        {
            "choices": ("auto", "stored", "upright"),
            "default": "auto",
            "help": "pixels that the labels of images with an EXIF orientation refer to; auto: the "
            "pixels as stored, unless the annotation gives the size of the upright image; in YOLO "
            "the upright image; default: %(default)s",
        },
    ),
    Flag(
        "--min-score",
        ("predictions",),
        {
            "type": float,
            "default": 0.5,
            "metavar": "P",
            "help": "minimum score of a pseudo-label, 0 to 1; default: %(default)s",
        },
    ),
    Flag(
        "--split",
        _ALL,
        {
            "metavar": "A,B,C",
            "help": "shares of train, validation and test, assigned by a hash of the image id; "
            "default: the splits of the data set, or 0.8,0.1,0.1 if it has none",
        },
    ),
    Flag(
        "--seed",
        _ALL,
        {"type": int, "default": 0, "metavar": "N", "help": "seed of the hash; default: 0"},
    ),
    Flag(
        "--shard-images",
        _ALL,
        {
            "type": int,
            "default": 256,
            "metavar": "N",
            "help": "maximum number of images per Parquet file; default: %(default)s",
        },
    ),
)


def format_flags(format_: str) -> Iterator[Flag]:
    """Yield the flags of a format, those of data issues last."""
    yield from (flag for flag in _FLAGS if format_ in flag.formats)
    for rule in RULES:
        if format_ in rule.formats:
            descriptions = "; ".join(ISSUE_KINDS[kind].description for kind in rule.kinds)
            options = {
                "choices": rule.actions,
                "default": rule.actions[0],
                "help": f"{descriptions}; default: %(default)s",
            }
            yield Flag(f"--{rule.flag}", rule.formats, options)


def chosen_actions(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return flag → action of the parsed command line; flags that it does not have are left out."""
    keys = {rule.flag: rule.flag.replace("-", "_") for rule in RULES}
    return {flag: arguments[key] for flag, key in keys.items() if key in arguments}
