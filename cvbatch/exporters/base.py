"""Exporter protocol: which columns a format stores, and how one image is written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from cvbatch.exporters.folder import ExportFolder
from cvbatch.exporters.sources import ExportSource
from cvbatch.results.row import Row

SPLIT_NAMES = {"train": "train", "validation": "val", "test": "test"}


class ImageTarget(NamedTuple):
    """File name and split of an image in an export."""

    stem: str  # path without suffix, below the folder of its kind; "/" between folders
    suffix: str  # of the image file, such as ".jpg"; "" if it is not known
    split: str  # a value of SPLIT_NAMES

    @property
    def name(self) -> str:
        """Return the path of the image file below the folder of its kind."""
        return f"{self.stem}{self.suffix}"


@dataclass(frozen=True)
class ExportContext:
    """What an exporter needs to know about the export."""

    folder: ExportFolder
    classes: dict[str, tuple[str, ...]]  # of each column that the result has and the format stores
    has_images: bool  # images are copied or linked
    is_inside: bool  # the images are in containers: Parquet files or tars
    source: ExportSource

    @property
    def is_multi_label(self) -> bool:
        """Return whether an image may have several labels."""
        return self.source.is_multi_label

    @property
    def is_truth(self) -> bool:
        """Return whether labels are exported, not predictions: there are no scores."""
        return self.source.is_truth


class Exporter(ABC):
    """Writes one format. An instance serves one export."""

    COLUMNS: ClassVar[tuple[str, ...]]  # of "labels", "boxes", "mask"; a result needs one of them
    OUTPUT_NAMES: ClassVar[tuple[str, ...]]  # files and folders written, below the export's folder
    IS_FLAT: ClassVar[bool] = False  # file names have neither folders nor white space

    def __init__(self, context: ExportContext) -> None:
        self.context = context
        self.warnings: Counter[str] = Counter()  # message → count, reported at the end

    @staticmethod  # noqa: B027 - most formats allow any class name
    def check_classes(column: str, names: Sequence[str]) -> None:
        """Raise ConfigError if the format cannot store one of the class names."""

    @abstractmethod
    def image_file(self, target: ImageTarget) -> str:
        """Return the path of an image file below the export's folder."""

    @abstractmethod
    def add(self, row: Row, target: ImageTarget) -> None:
        """Write the annotation files of an image, and add it to the documents."""

    @abstractmethod
    def close(self) -> None:
        """Write the documents that contain all images."""
