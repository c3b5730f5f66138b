"""What an import is told to do, once it was found to make sense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cvbatch.core.errors import ConfigError
from cvbatch.datasets.splits import Shares, parse_shares
from cvbatch.importers.parsing import read_names
from cvbatch.storage.store import Storage


@dataclass(frozen=True)
class ImportOptions:
    """What the flags of an import say; each format reads those that are about it."""

    classes: tuple[str, ...] | None = None  # None: those found
    mask_classes: tuple[str, ...] | None = None  # of the masks of Pascal VOC, background first
    images: str | None = None  # a folder, where images do not lie beside the annotations
    masks: str | None = None  # a folder of masks
    has_masks: bool = True  # whether masks that Pascal VOC has, or COCO could have, are taken
    values: tuple[int, ...] | None = None  # in a mask file: the value of each class
    lists: str = "Main"  # the folder of ImageSets whose lists count
    orientation: Literal["auto", "stored", "upright"] = "auto"  # what boxes and masks refer to
    min_score: float = 0.5
    split: Shares | None = None  # None: the set's own, or DEFAULT_SHARES
    seed: int = 0
    shard_images: int = 256
    overwrite: bool = False
    storage: Storage = field(default_factory=Storage)


def options_of(said: Mapping[str, Any]) -> ImportOptions:
    """Return what a command line said; what its format has no flag for is left at the default.

    Raises:
        ConfigError: something that makes no sense.
        SourceError: a file of class names cannot be read.
    """
    known = {key: said[key] for key in ImportOptions.__dataclass_fields__ if key in said}
    for key in ("classes", "mask_classes"):
        if known.get(key) is not None:
            known[key] = read_names(Storage(), known[key])
    if known.get("values") is not None:
        known["values"] = _values(known["values"])
    if known.get("split") is not None:
        known["split"] = parse_shares(known["split"])
    options = ImportOptions(**known)
    if not 0 <= options.min_score <= 1:
        raise ConfigError(f"--min-score {options.min_score} must lie between 0 and 1")
    if options.shard_images < 1:
        raise ConfigError(f"--shard-images {options.shard_images} must be 1 or more")
    return options


def _values(text: str) -> tuple[int, ...]:
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise ConfigError(f"--values {text!r} must be pixel values such as 0,255")
    return tuple(int(part) for part in text.split(","))
