"""What an export is told to do, and which format takes which flag, as one table.

Plain Python alone, so that the command line loads nothing to show its help.
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
    "yolo": "YOLO: labels/*.txt, data.yaml and images",
    "fiftyone": "FiftyOne: detections.json, classifications.json, masks and data",
}
Images = Literal["copy", "link", "none"]


@dataclass(frozen=True)
class ExportOptions:
    """What the flags of an export say."""

    min_score: float = 0.0  # of boxes and labels
    images: Images = "copy"
    split: Shares | None = None  # None: all images are for training
    seed: int = 0
    overwrite: bool = False

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> ExportOptions:
        """Return what a command line said. Raises ConfigError for what makes no sense."""
        known = {key: said[key] for key in cls.__dataclass_fields__ if key in said}
        if known.get("split") is not None:
            known["split"] = parse_shares(known["split"])
        options = cls(**known)
        if not 0 <= options.min_score <= 1:
            raise ConfigError(f"--min-score {options.min_score} must lie between 0 and 1")
        return options


class Flag(NamedTuple):
    """A flag, the formats that take it, and argparse's keywords for it."""

    name: str
    formats: tuple[str, ...]
    options: dict[str, Any]


_ALL = tuple(EXPORT_DESCRIPTIONS)
_SPLIT = ("coco", "voc", "yolo")
FLAGS = (
    Flag(
        "--min-score",
        _ALL,
        {"type": float, "default": 0.0, "metavar": "P", "help": "of boxes; default: %(default)s"},
    ),
    Flag(
        "--images",
        _ALL,
        {
            "choices": get_args(Images),
            "default": "copy",
            "help": "into DST; link: files on this machine alone; default: %(default)s",
        },
    ),
    Flag(
        "--split",
        _SPLIT,
        {
            "metavar": "A,B,C",
            "help": "shares of train, validation and test, by a hash of the image's id, as an "
            "import makes them; default: all are for training",
        },
    ),
    Flag(
        "--seed",
        _SPLIT,
        {"type": int, "default": 0, "metavar": "N", "help": "of the hash; default: %(default)s"},
    ),
)
