"""Write Pascal VOC: an XML file for each image, image lists, masks as palette PNGs.

Corners are integer pixels counted from 1, the last pixel included: an edge moves by up to half a
pixel. A box narrower than two pixels becomes one pixel wide, which `cvbatch import voc` treats as a
click, a box without area. VOC stores no scores. File names have neither folders nor white space,
because the image lists do not allow them.

Source: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html
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
_ONE_PIXEL = "boxes of one pixel, which an import takes for clicks"
_CLASS_LISTS = {"boxes": "classes.txt", "mask": "mask_classes.txt"}


class Voc(Exporter):
    """Writes Pascal VOC."""

    COLUMNS = ("boxes", "mask")
    OUTPUT_NAMES = (
        "Annotations",
        "ImageSets",
        "JPEGImages",
        "SegmentationClass",
        *_CLASS_LISTS.values(),
    )
    IS_FLAT = True

    def __init__(self, context: ExportContext) -> None:
        super().__init__(context)
        kinds = [kind for kind in ("Main", "Segmentation") if kind == "Main" or self._has_masks]
        self._lists = {
            (kind, split): ItemSpool(context.folder, "")
            for kind in kinds
            for split in SPLIT_NAMES.values()
        }
        self._palette = _palette()

    @property
    def _has_masks(self) -> bool:
        return "mask" in self.context.classes

    @staticmethod
    def check_classes(column: str, names: Sequence[str]) -> None:
        """Raise ConfigError if a name is not allowed in XML or is the name of two classes."""
        duplicates = [name for name, count in Counter(names).items() if count > 1]
        if duplicates:
            raise ConfigError(
                f"the {column} have two classes called {duplicates[0]!r}, but Pascal VOC "
                "identifies classes by name; export as coco or yolo"
            )
        for name in names:
            if not name.strip() or name != name.strip() or not name.isprintable():
                raise ConfigError(
                    f"Pascal VOC cannot store the class name {name!r}: use one printable line "
                    "without surrounding white space; export as coco"
                )

    def image_file(self, target: ImageTarget) -> str:
        """Return the path of an image file below the export's folder."""
        return f"JPEGImages/{target.name}"

    def add(self, row: Row, target: ImageTarget) -> None:
        """Write the XML file and the mask of an image, and add it to the image lists."""
        folder = self.context.folder
        folder.put(f"Annotations/{target.stem}.xml", self._annotation(row, target))
        self._lists["Main", target.split].add(f"{target.stem}\n")
        if row.mask is not None:
            folder.put(f"SegmentationClass/{target.stem}.png", self._encode_mask(row.mask))
            self._lists["Segmentation", target.split].add(f"{target.stem}\n")

    def _annotation(self, row: Row, target: ImageTarget) -> bytes:
        root = ET.Element("annotation")
        _add_texts(root, folder="JPEGImages", filename=target.name)
        _add_texts(ET.SubElement(root, "source"), database="cvbatch")
        _add_texts(ET.SubElement(root, "size"), width=row.width, height=row.height, depth=3)
        _add_texts(root, segmented=int(row.mask is not None))
        corners = _corners(row)
        if num_thin := int((corners[:, :2] == corners[:, 2:]).any(axis=1).sum()):
            self.warnings[_ONE_PIXEL] += num_thin
        for corner, box in zip(corners.tolist(), row.boxes or (), strict=True):
            item = ET.SubElement(root, "object")
            _add_texts(
                item, name=self.context.classes["boxes"][box["class_id"]], pose="Unspecified"
            )
            _add_texts(item, truncated=0, difficult=int(box.get("is_crowd") or 0))
            _add_texts(ET.SubElement(item, "bndbox"), **dict(zip(_CORNERS, corner, strict=True)))
        ET.indent(root)
        return ET.tostring(root, encoding="unicode").encode() + b"\n"

    def _encode_mask(self, mask: np.ndarray) -> bytes:  # (h, w) uint8
        image = Image.fromarray(mask)
        image.putpalette(self._palette)
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()

    def close(self) -> None:
        """Write the image lists of the splits that have an image, and the class lists."""
        for (kind, split), items in self._lists.items():
            if items.count:
                write_document(self.context.folder, f"ImageSets/{kind}/{split}.txt", (items,))
        for column, name in _CLASS_LISTS.items():
            if column in self.context.classes:
                lines = "".join(f"{label}\n" for label in self.context.classes[column])
                self.context.folder.put(name, lines.encode())


def _add_texts(element: ET.Element, **texts: object) -> None:
    """Add a child element with a text for each keyword."""
    for name, value in texts.items():
        ET.SubElement(element, name).text = str(value)


def _corners(
    row: Row,
) -> np.ndarray:  # (M, 4) int64, counted from 1, the last pixel included
    """Return the boxes in integer pixels, clipped to the image, at least one pixel wide."""
    size, xyxy = np.array(row.size_hw[::-1]), box_corners(row.boxes)
    first = np.clip(np.floor(xyxy[:, :2] + 0.5) + 1, 1, size)
    last = np.clip(np.floor(xyxy[:, 2:] + 0.5), first, size)
    return np.concatenate([first, last], axis=1).astype(np.int64)


def _palette() -> list[int]:
    """Return the 256 colours of VOCdevkit's VOClabelcolormap.m, as R, G, B, R, G, B, ..."""
    index = np.arange(256)
    colour = np.zeros((256, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colour[:, channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return [int(value) for value in colour.reshape(-1)]
