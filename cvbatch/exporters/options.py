"""Options of an export, and the table of the flags of each format.

This module imports no large package, because the command line needs it for `--help`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from cvbatch.core.errors import ConfigError
from cvbatch.datasets.splits import Shares, parse_shares

EXPORT_DESCRIPTIONS = {
    "coco": "COCO: annotations/instances_*.json for boxes, stuff_*.json for masks, and results",
    "voc": "Pascal VOC: Annotations, ImageSets, SegmentationClass and JPEGImages",
    "yolo": "YOLO boxes: labels/*.txt, data.yaml and images",
    "yolo-segment": "YOLO polygons, traced from masks: labels/*.txt, data.yaml and images",
    "fiftyone": "FiftyOne: detections.json, classifications.json, masks and data",
}
Images = Literal["copy", "link", "none"]


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export."""

    min_score: float = 0.0  # of boxes and labels, 0..1
    images: Images = "copy"
    split: Shares | None = None  # train, validation and test; None: all images are for training
    seed: int = 0  # of the hash that chooses the split
    overwrite: bool = False

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> ExportOptions:
        """Return the options of a parsed command line; other arguments are ignored.

        Raises:
            ConfigError: a value is out of range.
        """
        values = {key: arguments[key] for key in cls.__dataclass_fields__ if key in arguments}
        if values.get("split") is not None:
            values["split"] = parse_shares(values["split"])
        options = cls(**values)
        if not 0 <= options.min_score <= 1:
            raise ConfigError(f"--min-score {options.min_score} must be between 0 and 1")
        return options


class Flag(NamedTuple):
    """A flag, the formats that accept it, and the keyword arguments for argparse."""

    name: str
    formats: tuple[str, ...]
    options: dict[str, Any]


_ALL = tuple(EXPORT_DESCRIPTIONS)
_SPLIT = ("coco", "voc", "yolo", "yolo-segment")
FLAGS = (
    Flag(
        "--min-score",
        _ALL,
        {
            "type": float,
            "default": 0.0,
            "metavar": "P",
            "help": "minimum score of boxes and labels, 0 to 1; default: %(default)s",
        },
    ),
    Flag(
        "--images",
        _ALL,
        {
            "choices": get_args(Images),
            "default": "copy",
            "help": "copy images into DST, link to local files, or leave images out; default: "
            "%(default)s",
        },
    ),
    Flag(
        "--split",
        _SPLIT,
        {
            "metavar": "A,B,C",
            "help": "shares of train, validation and test, such as 0.8,0.1,0.1; an image's split "
            "depends on a hash of its id, as in `cvbatch import`; default: all for training",
        },
    ),
    Flag(
        "--seed",
        _SPLIT,
        {
            "type": int,
            "default": 0,
            "metavar": "N",
            "help": "seed of the hash; default: %(default)s",
        },
    ),
)
