"""Options of an import, parsed and validated from the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cvbatch.core.errors import ConfigError
from cvbatch.datasets.splits import Shares, parse_shares
from cvbatch.importers.import_report import SPLITS
from cvbatch.importers.parsing import read_class_names
from cvbatch.storage.store import Storage


@dataclass(frozen=True)
class ImportOptions:
    """Options of an import. Each format uses those that have a flag for it."""

    classes: tuple[str, ...] | None = None  # None: the classes in the data set
    mask_classes: tuple[str, ...] | None = None  # of Pascal VOC masks, background first
    annotations: tuple[tuple[str | None, str], ...] = ()  # (split, COCO file below the source)
    images: str | None = None  # folder of the images; None: the format's folder in the source
    masks: str | None = None  # folder of the masks; None: the format's folder in the source
    has_images: bool = True  # False: labels alone
    check_images: bool = True  # decode each image, to find damaged ones
    has_masks: bool = True  # import Pascal VOC masks, or draw masks from outlines
    has_box_masks: bool = False  # import the outline of each box as its mask
    values: tuple[int, ...] | None = None  # pixel value of each class in a mask file
    mask_suffix: str | None = None  # of a mask's stem after that of its image; None: recognised
    image_column: str | None = None  # of a CSV file; None: recognised by its name
    class_column: str | None = None
    separator: str | None = None  # between classes of one image; None: one class per image
    lists: str = "Main"  # folder in ImageSets with the split lists
    orientation: Literal["auto", "stored", "upright"] = "auto"  # pixels that labels refer to
    min_score: float = 0.5
    split: Shares | None = None  # None: the splits of the data set, or else DEFAULT_SHARES
    seed: int = 0
    shard_images: int = 256
    overwrite: bool = False
    storage: Storage = field(default_factory=Storage)


def parse_import_options(arguments: Mapping[str, Any]) -> ImportOptions:
    """Return the options of a parsed command line; an option without a flag has its default.

    Raises:
        ConfigError: an option is invalid.
        SourceError: a file of class names cannot be read.
    """
    fields = ImportOptions.__dataclass_fields__
    values = {key: arguments[key] for key in fields if key in arguments}
    for key in ("classes", "mask_classes"):
        if values.get(key) is not None:
            values[key] = read_class_names(Storage(), values[key])
    if values.get("values") is not None:
        values["values"] = _pixel_values(values["values"])
    if values.get("split") is not None:
        values["split"] = parse_shares(values["split"])
    values["annotations"] = tuple(_annotation_file(text) for text in values.get("annotations", ()))
    options = ImportOptions(**values)
    if options.images and not options.has_images:
        raise ConfigError("--images and --no-images exclude each other; set one of them")
    if not 0 <= options.min_score <= 1:
        raise ConfigError(f"--min-score {options.min_score} must be between 0 and 1")
    if options.shard_images < 1:
        raise ConfigError(f"--shard-images {options.shard_images} must be 1 or more")
    return options


def _annotation_file(text: str) -> tuple[str | None, str]:
    """Parse SPLIT=FILE or FILE."""
    name, _, file = text.rpartition("=")
    if name and name not in SPLITS:
        raise ConfigError(
            f"--annotations {text!r}: {name!r} is not a split; use one of {', '.join(SPLITS)}, "
            "such as train=a.json"
        )
    return name or None, file


def _pixel_values(text: str) -> tuple[int, ...]:
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise ConfigError(f"--values {text!r} must be pixel values such as 0,255")
    return tuple(int(part) for part in text.split(","))
