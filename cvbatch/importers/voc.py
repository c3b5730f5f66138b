"""Pascal VOC: one XML file an image, lists of splits, and masks as palette pictures.

A box's corners are the first and the last pixel in it, counted from 1; half-open from 0 they are
(xmin − 1, ymin − 1, xmax, ymax). Corners that coincide were a click, not a box: of no area. Where
the development kit counts differently, nothing in a file says so.
(Everingham et al., The PASCAL Visual Object Classes Challenge 2012 development kit, section 3.)
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
from cvbatch.importers.annotations import AnnotatedDataset, Annotation, Batch
from cvbatch.importers.class_table import ClassTable
from cvbatch.importers.dataset_files import (
    File,
    images_by_stem,
    item_of,
    list_tree,
    read_lists,
    scattered,
    stem_of,
)
from cvbatch.importers.import_report import Report
from cvbatch.importers.mask_files import MaskFiles
from cvbatch.importers.options import ImportOptions
from cvbatch.importers.parsing import number_in, read_xml, text_of
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
_AHEAD = 1024  # annotations parsed at once


class _Annotation(NamedTuple):
    """What one XML file says."""

    names: list[str]  # M
    boxes: np.ndarray  # (M, 4) float64
    is_difficult: list[bool]  # M
    declared_hw: tuple[int, int] | None


def read_voc(source: str, options: ImportOptions, report: Report) -> AnnotatedDataset:
    """Return what a folder with `Annotations` and `JPEGImages` says.

    Raises:
        SourceError: it is not such a folder, or a file in it is not what it must be.
        ConfigError: it has masks, and what their values mean is neither said nor known.
    """
    storage = options.storage
    tree = list_tree(storage, source)
    annotations = {
        stem_of(name): file
        for name, file in tree.below("Annotations").items()
        if name.lower().endswith(".xml")
    }
    if not annotations:
        raise SourceError(
            f"{source} holds no Annotations/*.xml; name the folder that has Annotations and "
            "JPEGImages in it"
        )
    images = images_by_stem(tree.below("JPEGImages"), report)
    lists = (
        {}
        if options.split
        else read_lists(storage, tree.below(f"ImageSets/{options.lists}"), report)
    )
    stems = _usable(annotations, images, lists, report)
    parsed = dict(_parse(storage, {stem: annotations[stem] for stem in stems}))
    table = ClassTable.of({name for one in parsed.values() for name in one.names}, options.classes)
    masks = tree.below("SegmentationClass") if options.has_masks else {}
    mask_of = {
        stem_of(name): file.uri for name, file in masks.items() if name.lower().endswith(".png")
    }
    items = {stem: item_of(images[stem]) for stem in stems}
    examples = {
        items[stem].image_id: _example(items[stem], said, table, lists.get(stem), mask_of.get(stem))
        for stem, said in parsed.items()
    }
    batch = Batch(scattered(items.values()), examples, ChunkReader(storage, "images", "image"))
    classes = {"labels": table.names, "boxes": table.names}
    columns: tuple[str, ...] = ("labels", "boxes", "box_is_crowd")
    if not mask_of:
        return AnnotatedDataset(columns, classes, True, lambda _: iter([batch]))
    classes["mask"] = _mask_classes(table.names, options)
    reader = MaskFiles(storage, tuple(range(len(classes["mask"]))))
    return AnnotatedDataset((*columns, "mask"), classes, True, lambda _: iter([batch]), reader.read)


def _example(
    item: Item, said: _Annotation, table: ClassTable, split: str | None, mask_uri: str | None
) -> Annotation:
    return Annotation(
        image_id=item.image_id,
        split=split,
        boxes=said.boxes,
        class_id=table.ids(said.names),
        score=np.ones(len(said.names), np.float32),
        is_crowd=np.array(said.is_difficult, bool),
        declared_hw=said.declared_hw,
        mask_at=mask_uri or "",
    )


def _usable(
    annotations: Mapping[str, File],
    images: Mapping[str, File],
    lists: Mapping[str, str],
    report: Report,
) -> list[str]:
    """Return the stems that have an image and an annotation and are in a list, if there are any."""
    stems = sorted(annotations.keys() | images.keys() | lists.keys())
    report.num_found += len(stems)
    usable = []
    for stem in stems:
        if lists and stem not in lists and report.note("unlisted", stem) != "split":
            continue
        if stem not in images:
            report.note("image_missing", stem)
        elif stem not in annotations:
            report.note("annotation_missing", images[stem].uri)
        else:
            usable.append(stem)
    return usable


def _parse(storage: Storage, files: Mapping[str, File]) -> Iterator[tuple[str, _Annotation]]:
    waiting = iter(files.items())
    with ThreadPoolExecutor(_THREADS) as pool:
        while some := list(islice(waiting, _AHEAD)):
            said = pool.map(partial(_read_annotation, storage), [file.uri for _, file in some])
            yield from zip([stem for stem, _ in some], said, strict=True)


def _read_annotation(storage: Storage, uri: str) -> _Annotation:
    root = read_xml(storage, uri)
    if root.tag != "annotation":
        raise SourceError(f"{uri} is a <{root.tag[:40]}>, not an <annotation> of Pascal VOC")
    names, boxes, is_difficult = [], [], []
    for i, item in enumerate(root.findall("object")):
        where = f"{uri}: object {i + 1}"
        names.append(text_of(item.findtext("name"), f"{where}: name"))
        boxes.append(_box(item, where))
        is_difficult.append((item.findtext("difficult") or "0").strip() not in ("0", ""))
    return _Annotation(
        names,
        np.array(boxes, np.float64).reshape(-1, 4),
        is_difficult,
        _declared_size(root, uri),
    )


def _box(item: ET.Element, where: str) -> tuple[float, float, float, float]:
    box = item.find("bndbox")
    if box is None:
        raise SourceError(f"{where} has no <bndbox>; mend the file or take the object out")
    x_min, y_min, x_max, y_max = (
        number_in(box.findtext(corner), f"{where}: {corner}") for corner in _CORNERS
    )
    # a click: its last pixel is its first, so the half-open box closes upon it
    right = x_max if x_max > x_min else x_min - 1
    bottom = y_max if y_max > y_min else y_min - 1
    return x_min - 1, y_min - 1, right, bottom


def _declared_size(root: ET.Element, uri: str) -> tuple[int, int] | None:
    """Return (height, width); many tools leave the size out or write 0."""
    size = root.find("size")
    if size is None:
        return None
    height, width = (number_in(size.findtext(side) or "0", f"{uri}: {side}") for side in _SIDES)
    return (int(height), int(width)) if height > 0 and width > 0 else None


def _mask_classes(names: tuple[str, ...], options: ImportOptions) -> tuple[str, ...]:
    """Return what the values of the masks mean, from 0 on."""
    if options.mask_classes:
        if len(options.mask_classes) > MAX_MASK_CLASSES:
            raise ConfigError(
                f"{len(options.mask_classes)} classes: a mask holds at most {MAX_MASK_CLASSES}"
            )
        return options.mask_classes
    if set(names) <= set(VOC_CLASSES):
        return ("background", *VOC_CLASSES)
    other = min(set(names) - set(VOC_CLASSES))
    raise ConfigError(
        f"SegmentationClass holds masks, and with classes such as {other!r} what their values mean "
        "is not known; say --mask-classes background,a,b in the order of the values, or --no-masks"
    )
