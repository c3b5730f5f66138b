"""A result as Pascal VOC: an XML file an image, lists, masks as palette pictures.

Corners are whole pixels counted from 1, the last one in the box: a side moves by up to half a
pixel, and a box that covers no two pixels becomes one pixel, which an import takes for a click.
Scores have no place in it. Names are flat, without white space, as the lists want them.
"""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image

from cvbatch.core.errors import ConfigError
from cvbatch.exporters.base import SPLIT_NAMES, ExportContext, Exporter, ImageTarget
from cvbatch.exporters.json_stream import ItemSpool, write_document
from cvbatch.results.parts import box_corners
from cvbatch.results.row import Row

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_THIN = "boxes of one pixel, which an import takes for clicks"
_CLASS_LISTS = {"boxes": "classes.txt", "mask": "mask_classes.txt"}


class Voc(Exporter):
    """Writes Pascal VOC."""

    COLUMNS = ("boxes", "mask")
    TOPS = (
        "Annotations",
        "ImageSets",
        "JPEGImages",
        "SegmentationClass",
        *_CLASS_LISTS.values(),
    )
    IS_FLAT = True

    def __init__(self, plan: ExportContext) -> None:
        super().__init__(plan)
        kinds = [kind for kind in ("Main", "Segmentation") if kind == "Main" or self._has_masks]
        self._lists = {
            (kind, split): ItemSpool(plan.folder, "")
            for kind in kinds
            for split in SPLIT_NAMES.values()
        }
        self._palette = _palette()

    @property
    def _has_masks(self) -> bool:
        return "mask" in self.context.classes

    @staticmethod
    def check_classes(column: str, names: Sequence[str]) -> None:
        """Raise ConfigError where a name cannot stand in XML, or stands for two classes."""
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ConfigError(
                f"the {column} have two classes called {twice[0]!r}, and Pascal VOC knows classes "
                "by name alone; export as coco or yolo"
            )
        for name in names:
            if not name.strip() or name != name.strip() or not name.isprintable():
                raise ConfigError(
                    f"the class {name!r} has no name that Pascal VOC could hold: one printable "
                    "line; export as coco"
                )

    def image_file(self, placed: ImageTarget) -> str:
        """Return where an image's file goes."""
        return f"JPEGImages/{placed.name}"

    def add(self, row: Row, placed: ImageTarget) -> None:
        """Take an image."""
        folder = self.context.folder
        folder.put(f"Annotations/{placed.stem}.xml", self._annotation(row, placed))
        self._lists["Main", placed.split].add(f"{placed.stem}\n")
        if row.mask is not None:
            folder.put(f"SegmentationClass/{placed.stem}.png", self._picture(row.mask))
            self._lists["Segmentation", placed.split].add(f"{placed.stem}\n")

    def _annotation(self, row: Row, placed: ImageTarget) -> bytes:
        root = ET.Element("annotation")
        _say(root, folder="JPEGImages", filename=placed.name)
        _say(ET.SubElement(root, "source"), database="cvbatch")
        _say(ET.SubElement(root, "size"), width=row.width, height=row.height, depth=3)
        _say(root, segmented=int(row.mask is not None))
        corners = _corners(row)
        if num_thin := int((corners[:, :2] == corners[:, 2:]).any(axis=1).sum()):
            self.warnings[_THIN] += num_thin
        for corner, box in zip(corners.tolist(), row.boxes or (), strict=True):
            item = ET.SubElement(root, "object")
            _say(item, name=self.context.classes["boxes"][box["class_id"]], pose="Unspecified")
            _say(item, truncated=0, difficult=0)
            _say(ET.SubElement(item, "bndbox"), **dict(zip(_CORNERS, corner, strict=True)))
        ET.indent(root)
        return ET.tostring(root, encoding="unicode").encode() + b"\n"

    def _picture(self, mask: np.ndarray) -> bytes:  # (h, w) uint8
        image = Image.fromarray(mask)
        image.putpalette(self._palette)
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()

    def close(self) -> None:
        """Write the lists of the splits that have an image, and of the classes."""
        for (kind, split), items in self._lists.items():
            if items.count:
                write_document(self.context.folder, f"ImageSets/{kind}/{split}.txt", (items,))
        for column, name in _CLASS_LISTS.items():
            if column in self.context.classes:
                lines = "".join(f"{label}\n" for label in self.context.classes[column])
                self.context.folder.put(name, lines.encode())


def _say(element: ET.Element, **said: object) -> None:
    for name, value in said.items():
        ET.SubElement(element, name).text = str(value)


def _corners(
    row: Row,
) -> np.ndarray:  # (M, 4) int64, from 1, the last pixel in the box
    """Return the nearest whole pixels, within the image, one at least."""
    size, xyxy = np.array(row.size_hw[::-1]), box_corners(row.boxes)
    first = np.clip(np.floor(xyxy[:, :2] + 0.5) + 1, 1, size)
    last = np.clip(np.floor(xyxy[:, 2:] + 0.5), first, size)
    return np.concatenate([first, last], axis=1).astype(np.int64)


def _palette() -> list[int]:
    """Return the 256 colours of the development kit: a class's bits dealt out to R, G and B."""
    index = np.arange(256)
    colour = np.zeros((256, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colour[:, channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return [int(value) for value in colour.reshape(-1)]
