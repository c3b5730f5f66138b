"""What every format of an export is asked: which columns it keeps, and to take one image more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from cvbatch.exporters.folder import ExportFolder
from cvbatch.results.row import Row

SPLIT_NAMES = {"train": "train", "validation": "val", "test": "test"}


class ImageTarget(NamedTuple):
    """Where an image stands in an export."""

    stem: str  # below the folder of its kind, "/" between folders
    suffix: str  # of the image, with its point; "" where it is not known
    split: str  # a value of SPLIT_NAMES

    @property
    def name(self) -> str:
        """Return the name of the image's file."""
        return f"{self.stem}{self.suffix}"


@dataclass(frozen=True)
class ExportContext:
    """What a format is given once."""

    folder: ExportFolder
    classes: dict[str, tuple[str, ...]]  # of each column that the result has and the format keeps
    has_images: bool
    is_inside: bool  # the images lie in containers
    is_multi_label: bool


class Exporter(ABC):
    """One format. An instance serves one export."""

    COLUMNS: ClassVar[tuple[str, ...]]  # of "labels", "boxes", "mask": one of them there must be
    OUTPUT_NAMES: ClassVar[
        tuple[str, ...]
    ]  # the files and folders it writes, below the export's folder
    IS_FLAT: ClassVar[bool] = False  # names have neither folders nor white space

    def __init__(self, plan: ExportContext) -> None:
        self.context = plan
        self.warnings: Counter[str] = Counter()  # what is worth telling at the end

    @staticmethod  # noqa: B027 - most formats hold any name
    def check_classes(column: str, names: Sequence[str]) -> None:
        """Raise ConfigError where the format has no way to say a class's name."""

    @abstractmethod
    def image_file(self, placed: ImageTarget) -> str:
        """Return where an image's file goes."""

    @abstractmethod
    def add(self, row: Row, placed: ImageTarget) -> None:
        """Take an image: write its own files, and note it for the documents."""

    @abstractmethod
    def close(self) -> None:
        """Write the documents of all images."""
