"""Parse Pascal VOC: one XML file per image, split lists, and masks as palette PNGs.

The corners of a box are the first and the last pixel inside it, counted from 1. As half-open
coordinates from 0 they are (xmin − 1, ymin − 1, xmax, ymax). A box whose corners coincide is a
click and has no area. A file does not declare whether its tool counts differently.

Source: Everingham et al., The PASCAL Visual Object Classes Challenge 2012 development kit,
section 3.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np

from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.core.types import MAX_MASK_CLASSES, Item
from cvbatch.importers.annotations import AnnotatedBatch, AnnotatedDataset, Annotation
from cvbatch.importers.class_table import ClassTable
from cvbatch.importers.dataset_files import (
    DatasetFile,
    images_by_stem,
    in_hash_order,
    list_tree,
    read_split_lists,
    stem_of,
    to_item,
)
from cvbatch.importers.import_report import ImportReport
from cvbatch.importers.mask_files import PngMasks
from cvbatch.importers.options import ImportOptions
from cvbatch.importers.parsing import non_empty_text, parse_number, read_xml
from cvbatch.sources.readers import ChunkReader
from cvbatch.storage.store import Storage

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
_SIDES = ("height", "width")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_THREADS = 16
_FILES_AT_ONCE = 1024


class _ParsedFile(NamedTuple):
    """The content of one XML file."""

    names: list[str]  # M
    boxes: np.ndarray  # (M, 4) float64
    is_difficult: list[bool]  # M
    declared_hw: tuple[int, int] | None


def read_voc(source: str, options: ImportOptions, report: ImportReport) -> AnnotatedDataset:
    """Return the annotations of a folder that contains `Annotations` and `JPEGImages`.

    Raises:
        SourceError: the folder or a file in it is not in Pascal VOC format.
        ConfigError: the folder contains masks with unknown classes, or with too many.
    """
    storage = options.storage
    tree = list_tree(storage, source)
    xml_files = {
        stem_of(name): file
        for name, file in tree.below("Annotations").items()
        if name.lower().endswith(".xml")
    }
    if not xml_files:
        raise SourceError(
            f"{source} contains no Annotations/*.xml; use the folder that contains Annotations and "
            "JPEGImages"
        )
    images = images_by_stem(tree.below("JPEGImages"), report)
    list_files = tree.below(f"ImageSets/{options.lists}")
    lists = {} if options.split else read_split_lists(storage, list_files, report)
    stems = _usable_stems(xml_files, images, lists, report)
    parsed = dict(_parse(storage, {stem: xml_files[stem] for stem in stems}))
    names = {name for file in parsed.values() for name in file.names}
    table = ClassTable.of(names, options.classes)
    masks = tree.below("SegmentationClass") if options.has_masks else {}
    mask_uris = {
        stem_of(name): file.uri for name, file in masks.items() if name.lower().endswith(".png")
    }
    items = {stem: to_item(images[stem]) for stem in stems}
    annotations = {
        items[stem].image_id: _annotation(
            items[stem], file, table, lists.get(stem), mask_uris.get(stem)
        )
        for stem, file in parsed.items()
    }
    batch = AnnotatedBatch(
        in_hash_order(items.values()), annotations, ChunkReader(storage, "images", "image")
    )
    classes = {"labels": table.names, "boxes": table.names}
    columns: tuple[str, ...] = ("labels", "boxes", "box_is_crowd")
    if not mask_uris:
        return AnnotatedDataset(columns, classes, True, lambda _: iter([batch]))
    classes["mask"] = _mask_classes(table.names, options)
    reader = PngMasks(storage, tuple(range(len(classes["mask"]))))
    return AnnotatedDataset((*columns, "mask"), classes, True, lambda _: iter([batch]), reader.read)


def _annotation(
    item: Item, file: _ParsedFile, table: ClassTable, split: str | None, mask_uri: str | None
) -> Annotation:
    return Annotation(
        image_id=item.image_id,
        split=split,
        boxes=file.boxes,
        class_id=table.ids(file.names),
        score=np.ones(len(file.names), np.float32),
        is_crowd=np.array(file.is_difficult, bool),
        declared_hw=file.declared_hw,
        mask_uri=mask_uri or "",
    )


def _usable_stems(
    xml_files: Mapping[str, DatasetFile],
    images: Mapping[str, DatasetFile],
    lists: Mapping[str, str],
    report: ImportReport,
) -> list[str]:
    """Return the stems with an image and an annotation, and in a split list if there are lists."""
    stems = sorted(xml_files.keys() | images.keys() | lists.keys())
    report.num_found += len(stems)
    usable = []
    for stem in stems:
        if lists and stem not in lists and report.record("unlisted", stem) != "split":
            continue
        if stem not in images:
            report.record("image_missing", stem)
        elif stem not in xml_files:
            report.record("annotation_missing", images[stem].uri)
        else:
            usable.append(stem)
    return usable


def _parse(storage: Storage, files: Mapping[str, DatasetFile]) -> Iterator[tuple[str, _ParsedFile]]:
    remaining = iter(files.items())
    with ThreadPoolExecutor(_THREADS) as pool:
        while batch := list(islice(remaining, _FILES_AT_ONCE)):
            parsed = pool.map(partial(_parse_file, storage), [file.uri for _, file in batch])
            yield from zip([stem for stem, _ in batch], parsed, strict=True)


def _parse_file(storage: Storage, uri: str) -> _ParsedFile:
    root = read_xml(storage, uri)
    if root.tag != "annotation":
        raise SourceError(f"{uri} is a <{root.tag[:40]}>, not a Pascal VOC <annotation>")
    names, boxes, is_difficult = [], [], []
    for i, item in enumerate(root.findall("object")):
        where = f"{uri}: object {i + 1}"
        names.append(non_empty_text(item.findtext("name"), f"{where}: name"))
        boxes.append(_box(item, where))
        is_difficult.append((item.findtext("difficult") or "0").strip() not in ("0", ""))
    return _ParsedFile(
        names,
        np.array(boxes, np.float64).reshape(-1, 4),
        is_difficult,
        _declared_size(root, uri),
    )


def _box(item: ET.Element, where: str) -> tuple[float, float, float, float]:
    box = item.find("bndbox")
    if box is None:
        raise SourceError(f"{where} has no <bndbox>; add it or remove the object")
    x_min, y_min, x_max, y_max = (
        parse_number(box.findtext(corner), f"{where}: {corner}") for corner in _CORNERS
    )
    # In a click the last pixel is the first one, which gives an empty half-open box.
    right = x_max if x_max > x_min else x_min - 1
    bottom = y_max if y_max > y_min else y_min - 1
    return x_min - 1, y_min - 1, right, bottom


def _declared_size(root: ET.Element, uri: str) -> tuple[int, int] | None:
    """Return (height, width), or None: many tools omit the size or write 0."""
    size = root.find("size")
    if size is None:
        return None
    height, width = (parse_number(size.findtext(side) or "0", f"{uri}: {side}") for side in _SIDES)
    return (int(height), int(width)) if height > 0 and width > 0 else None


def _mask_classes(names: tuple[str, ...], options: ImportOptions) -> tuple[str, ...]:
    """Return the class names of the mask values, from 0."""
    if options.mask_classes:
        if len(options.mask_classes) > MAX_MASK_CLASSES:
            raise ConfigError(
                f"{len(options.mask_classes)} classes: a mask can have at most {MAX_MASK_CLASSES}"
            )
        return options.mask_classes
    if set(names) <= set(VOC_CLASSES):
        return ("background", *VOC_CLASSES)
    other = min(set(names) - set(VOC_CLASSES))
    raise ConfigError(
        f"SegmentationClass contains masks, and {other!r} is not a Pascal VOC class, so the names "
        "of the mask values are unknown; set --mask-classes background,a,b in the order of the "
        "values, or use --no-masks"
    )
