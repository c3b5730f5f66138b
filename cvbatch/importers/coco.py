"""COCO: one JSON file for all images of a split; boxes as corner and size, outlines as masks.

Classes are numbered in the order of their category ids, without gaps. In a mask, 0 is the
background and smaller objects lie upon larger ones.
(cocodataset.org/#format-data)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from cvbatch.core.errors import AccessDeniedError, ConfigError, NotFoundError, SourceError
from cvbatch.core.types import MAX_MASK_CLASSES, Item
from cvbatch.images.orientation import Size
from cvbatch.importers.annotations import (
    UNKNOWN_CLASS,
    AnnotatedDataset,
    Annotation,
    Batch,
    MaskFault,
)
from cvbatch.importers.class_table import ClassTable
from cvbatch.importers.dataset_files import scattered
from cvbatch.importers.import_report import Report
from cvbatch.importers.options import ImportOptions
from cvbatch.importers.parsing import numbers, objects, read_json, relative_name, text_of, whole
from cvbatch.importers.polygons import check_outline, region_of
from cvbatch.sources.readers import ChunkReader
from cvbatch.storage import store
from cvbatch.storage.listing import list_files
from cvbatch.storage.store import Storage

_NAME = re.compile(r"instances_((train|val|validation|test)[^/]*)\.json")
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


class _Document(NamedTuple):
    """An annotation file, the split it is of, and where its images lie."""

    uri: str
    split: str | None
    images_uri: str


class _Object(NamedTuple):
    """One annotation."""

    category: int
    box: tuple[float, float, float, float]  # half-open xyxy
    is_crowd: bool
    outline: Any  # checked; None where masks are not asked for


@dataclass
class _Image:
    image_id: str
    uri: str
    split: str | None
    declared_hw: Size | None
    objects: list[_Object] = field(default_factory=list)


def read_coco(source: str, options: ImportOptions, report: Report) -> AnnotatedDataset:
    """Return what `instances_*.json` say: a file with --images, or the data set's folder.

    Raises:
        SourceError: there is no such file, or it is not what it must be.
        ConfigError: the images of a single file are not said, or masks would have 255 classes.
    """
    categories: dict[int, str] = {}
    images: dict[str, _Image] = {}
    storage = options.storage
    for document in _documents(source, options):
        _read(storage, document, source, categories, images, options.has_masks, report)
    ordered = [categories[key] for key in sorted(categories)]
    table = ClassTable.of(ordered, options.classes)
    # an annotation may name a category that the file does not list
    class_of = {key: table.id_of.get(name, UNKNOWN_CLASS) for key, name in categories.items()}
    examples = {
        one.image_id: _example(one, class_of, None if options.split else one.split)
        for one in images.values()
    }
    items = scattered(Item(one.uri, one.image_id, 0) for one in images.values())
    batch = Batch(items, examples, ChunkReader(storage, "images", "image"))
    classes = {"labels": table.names, "boxes": table.names}
    columns: tuple[str, ...] = ("labels", "boxes", "box_is_crowd")
    if not options.has_masks:
        return AnnotatedDataset(columns, classes, True, lambda _: iter([batch]))
    classes["mask"] = ("background", *table.names)
    if len(classes["mask"]) > MAX_MASK_CLASSES:
        raise ConfigError(
            f"{len(table.names)} classes: with the background a mask holds at most "
            f"{MAX_MASK_CLASSES}; leave out --masks, or say fewer --classes and --unknown drop"
        )
    painter = _Painter(images, class_of)
    return AnnotatedDataset(
        (*columns, "mask"), classes, True, lambda _: iter([batch]), painter.read
    )


def _documents(source: str, options: ImportOptions) -> list[_Document]:
    if source.lower().endswith(".json"):
        if options.images is None:
            raise ConfigError(
                f"{source} does not say where its images lie: add --images DIR, or name the data "
                "set's folder"
            )
        found = _NAME.fullmatch(source.rsplit("/", 1)[-1])
        split = _SPLITS[found[2]] if found else None
        return [_Document(source, split, options.images)]
    storage, folder = options.storage, store.join(source, "annotations")
    try:
        names = sorted(storage.list_names(folder))
    except (NotFoundError, AccessDeniedError) as error:
        raise SourceError(f"the source cannot be read: {error}") from None
    matches = [match for name in names if (match := _NAME.fullmatch(name))]
    if not matches:
        raise SourceError(
            f"{source} holds no annotations/instances_*.json; name its folder, or a JSON file and "
            "--images DIR"
        )
    return [
        _Document(
            store.join(folder, match[0]),
            _SPLITS[match[2]],
            options.images or _images_folder(storage, source, match[1]),
        )
        for match in matches
    ]


def _images_folder(storage: Storage, source: str, name: str) -> str:
    """Return the folder of a split's images: SRC/train2017, SRC/images/train2017 or SRC/images."""
    for parts in ((name,), ("images", name), ("images",)):
        folder = store.join(source, *parts)
        if _holds_files(storage, folder):
            return folder
    raise SourceError(
        f"{source} has no folder {name}, images/{name} or images with files in it; say --images DIR"
    )


def _holds_files(storage: Storage, folder: str) -> bool:
    try:
        return bool(list_files(storage, folder).files.num_rows)
    except NotFoundError:
        return False


def _read(
    storage: Storage,
    document: _Document,
    source: str,
    categories: dict[int, str],
    images: dict[str, _Image],
    has_masks: bool,
    report: Report,
) -> None:
    """Add what one annotation file says to the categories and to the images, by id."""
    uri = document.uri
    content = read_json(storage, uri)
    _add_categories(objects(content, "categories", uri), categories, uri)
    of_key: dict[object, _Image] = {}
    left: list[_Image] = []
    listed = objects(content, "images", uri)
    report.num_found += len(listed)
    for i, item in enumerate(listed):
        image = _image(item, document, source, f"{uri}: images[{i}]")
        key = _key(item.get("id"), f"{uri}: images[{i}].id")
        if key in of_key or image.image_id in images:
            report.note("duplicate", f"{uri}: images[{i}], {image.image_id}")
            left.append(of_key.setdefault(key, image))  # or what has its id: the objects go there
        else:
            of_key[key] = images[image.image_id] = image
    for i, item in enumerate(objects(content, "annotations", uri)):
        where = f"{uri}: annotations[{i}]"
        found = _object(item, has_masks, where)
        key = _key(item.get("image_id"), f"{where}.image_id")
        if key in of_key:
            of_key[key].objects.append(found)
        else:
            report.num_objects_found += 1
            report.note("object_astray", where)
    for image in left:
        if images.get(image.image_id) is not image:
            report.num_objects_found += len(image.objects)
            report.num_objects_left += len(image.objects)


def _key(value: object, where: str) -> object:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise SourceError(f"{where} is {str(value)[:80]!r}; it must be a number or a name")
    return value


def _add_categories(
    listed: Iterable[Mapping[str, Any]], categories: dict[int, str], uri: str
) -> None:
    for i, item in enumerate(listed):
        where = f"{uri}: categories[{i}]"
        key, name = whole(item.get("id"), f"{where}.id"), text_of(item.get("name"), f"{where}.name")
        if categories.setdefault(key, name) != name:
            raise SourceError(f"{where}: {key} is {name!r} here and {categories[key]!r} elsewhere")
    twice = sorted(name for name, count in Counter(categories.values()).items() if count > 1)
    if twice:
        raise SourceError(f"{uri}: the category {twice[0]!r} has two ids; give it one")


def _image(item: Mapping[str, Any], document: _Document, source: str, where: str) -> _Image:
    name = relative_name(item.get("file_name"), f"{where}.file_name")
    uri = store.absolute(store.join(document.images_uri, name))
    root = store.absolute(source).rstrip("/") + "/"
    declared = None
    if item.get("height") and item.get("width"):
        height, width = (whole(item[side], f"{where}.{side}") for side in ("height", "width"))
        declared = height, width
    image_id = uri.removeprefix(root) if uri.startswith(root) else name
    return _Image(image_id, uri, document.split, declared)


def _object(item: Mapping[str, Any], has_masks: bool, where: str) -> _Object:
    x_min, y_min, width, height = numbers(item.get("bbox"), 4, f"{where}.bbox")
    outline = None
    if has_masks:
        outline = check_outline(item.get("segmentation"), f"{where}.segmentation")
    return _Object(
        whole(item.get("category_id"), f"{where}.category_id"),
        (x_min, y_min, x_min + width, y_min + height),
        _is_true(item.get("iscrowd", 0), f"{where}.iscrowd"),
        outline,
    )


def _is_true(value: object, where: str) -> bool:
    return value if isinstance(value, bool) else whole(value, where) != 0


def _example(image: _Image, class_of: Mapping[int, int], split: str | None) -> Annotation:
    found = image.objects
    return Annotation(
        image_id=image.image_id,
        split=split,
        boxes=np.array([one.box for one in found], np.float64).reshape(-1, 4),
        class_id=np.array([class_of.get(one.category, UNKNOWN_CLASS) for one in found], np.int32),
        score=np.ones(len(found), np.float32),
        is_crowd=np.array([one.is_crowd for one in found], bool),
        declared_hw=image.declared_hw,
    )


@dataclass(frozen=True)
class _Painter:
    """Draws masks from outlines."""

    images: Mapping[str, _Image]
    class_of: Mapping[int, int]

    def read(self, example: Annotation, frame_hw: Size) -> np.ndarray | MaskFault:
        """Return the mask as class ids, (h, w) uint8; see `MaskReader`."""
        mask = np.zeros(frame_hw, np.uint8)
        rank = np.full(frame_hw, np.iinfo(np.int64).max)  # of what lies on top: area, then class
        for one in self.images[example.image_id].objects:
            class_id = self.class_of.get(one.category, UNKNOWN_CLASS)
            if class_id == UNKNOWN_CLASS:
                continue  # reported with its box
            try:
                region = region_of(one.outline, frame_hw)
            except ValueError as error:
                return MaskFault("mask_unreadable", f"{example.image_id}: {error}")
            own_rank = int(region.sum()) * 256 + class_id
            is_above = region & (own_rank < rank)
            mask[is_above] = class_id + 1
            rank[is_above] = own_rank
        return mask
