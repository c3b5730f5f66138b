"""Parse COCO: one JSON file per split, with boxes and segmentations of all images.

Class ids are consecutive, in the order of the category ids. In a mask, 0 is the background, and
smaller objects are drawn over larger ones.

Source: cocodataset.org/#format-data
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
    AnnotatedBatch,
    AnnotatedDataset,
    Annotation,
    MaskIssue,
)
from cvbatch.importers.class_table import ClassTable
from cvbatch.importers.dataset_files import in_hash_order
from cvbatch.importers.import_report import ImportReport
from cvbatch.importers.options import ImportOptions
from cvbatch.importers.parsing import (
    finite_numbers,
    list_of_objects,
    non_empty_text,
    non_negative_int,
    read_json,
    relative_path,
)
from cvbatch.importers.polygons import parse_segmentation, rasterize
from cvbatch.sources.readers import ChunkReader
from cvbatch.storage import store
from cvbatch.storage.listing import list_files
from cvbatch.storage.store import Storage

_NAME = re.compile(r"instances_((train|val|validation|test)[^/]*)\.json")
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


class _Document(NamedTuple):
    """An annotation file, its split, and the folder of its images."""

    uri: str
    split: str | None
    images_uri: str


class _Object(NamedTuple):
    """One object of an image."""

    category_id: int
    box: tuple[float, float, float, float]  # half-open xyxy
    is_crowd: bool
    segmentation: Any  # as `parse_segmentation` returns it; None without --masks


@dataclass
class _Image:
    image_id: str
    uri: str
    split: str | None
    declared_hw: Size | None
    objects: list[_Object] = field(default_factory=list)


def read_coco(source: str, options: ImportOptions, report: ImportReport) -> AnnotatedDataset:
    """Return the annotations of `instances_*.json`.

    Args:
        source: the folder of the data set, or one JSON file (which requires `options.images`).
        options: options of the import.
        report: counts images, objects and issues.

    Raises:
        SourceError: there is no such file, or it is not in COCO format.
        ConfigError: --images is missing, or there are too many classes for a mask.
    """
    storage = options.storage
    categories: dict[int, str] = {}
    images: dict[str, _Image] = {}
    for document in _documents(source, options):
        _read_document(storage, document, source, categories, images, options.has_masks, report)
    ordered = [categories[key] for key in sorted(categories)]
    table = ClassTable.of(ordered, options.classes)
    # An annotation may have a category that the file does not list.
    class_of = {key: table.id_of.get(name, UNKNOWN_CLASS) for key, name in categories.items()}
    annotations = {
        image.image_id: _annotation(image, class_of, None if options.split else image.split)
        for image in images.values()
    }
    items = in_hash_order(Item(image.uri, image.image_id, 0) for image in images.values())
    batch = AnnotatedBatch(items, annotations, ChunkReader(storage, "images", "image"))
    classes = {"labels": table.names, "boxes": table.names}
    columns: tuple[str, ...] = ("labels", "boxes", "box_is_crowd")
    if not options.has_masks:
        return AnnotatedDataset(columns, classes, True, lambda _: iter([batch]))
    classes["mask"] = ("background", *table.names)
    if len(classes["mask"]) > MAX_MASK_CLASSES:
        raise ConfigError(
            f"{len(table.names)} classes: a mask can have at most {MAX_MASK_CLASSES}, with the "
            "background; omit --masks, or set fewer --classes and --unknown drop"
        )
    masks = _SegmentationMasks(images, class_of)
    return AnnotatedDataset((*columns, "mask"), classes, True, lambda _: iter([batch]), masks.read)


def _documents(source: str, options: ImportOptions) -> list[_Document]:
    if source.lower().endswith(".json"):
        if options.images is None:
            raise ConfigError(
                f"{source} is one file: set --images DIR, or use the folder of the data set as SRC"
            )
        match = _NAME.fullmatch(source.rsplit("/", 1)[-1])
        split = _SPLITS[match[2]] if match else None
        return [_Document(source, split, options.images)]
    storage, folder = options.storage, store.join(source, "annotations")
    try:
        names = sorted(storage.list_names(folder))
    except (NotFoundError, AccessDeniedError) as error:
        raise SourceError(f"the source cannot be read: {error}") from None
    matches = [match for name in names if (match := _NAME.fullmatch(name))]
    if not matches:
        raise SourceError(
            f"{source} contains no annotations/instances_*.json; use the folder of the data set, "
            "or a JSON file and --images DIR"
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
    """Return the folder of the images of a split, such as train2017.

    It is the first that contains files of SRC/train2017, SRC/images/train2017 and SRC/images.
    """
    for parts in ((name,), ("images", name), ("images",)):
        folder = store.join(source, *parts)
        if _has_files(storage, folder):
            return folder
    raise SourceError(
        f"{source} has no folder {name}, images/{name} or images with files; set --images DIR"
    )


def _has_files(storage: Storage, folder: str) -> bool:
    try:
        return bool(list_files(storage, folder).files.num_rows)
    except NotFoundError:
        return False


def _read_document(
    storage: Storage,
    document: _Document,
    source: str,
    categories: dict[int, str],
    images: dict[str, _Image],
    has_masks: bool,
    report: ImportReport,
) -> None:
    """Add the content of one annotation file to `categories` (by id) and `images` (by image id)."""
    uri = document.uri
    content = read_json(storage, uri)
    _add_categories(list_of_objects(content, "categories", uri), categories, uri)
    image_of_key: dict[object, _Image] = {}  # by the id in the document
    duplicates: list[_Image] = []
    image_items = list_of_objects(content, "images", uri)
    report.num_found += len(image_items)
    for i, item in enumerate(image_items):
        image = _image(item, document, source, f"{uri}: images[{i}]")
        key = _key(item.get("id"), f"{uri}: images[{i}].id")
        if key in image_of_key or image.image_id in images:
            report.record("duplicate", f"{uri}: images[{i}], {image.image_id}")
            # Objects of this id are assigned to the first image with it.
            duplicates.append(image_of_key.setdefault(key, image))
        else:
            image_of_key[key] = images[image.image_id] = image
    for i, item in enumerate(list_of_objects(content, "annotations", uri)):
        where = f"{uri}: annotations[{i}]"
        parsed = _object(item, has_masks, where)
        key = _key(item.get("image_id"), f"{where}.image_id")
        if key in image_of_key:
            image_of_key[key].objects.append(parsed)
        else:
            report.num_objects_found += 1
            report.record("object_astray", where)
    for image in duplicates:
        if images.get(image.image_id) is not image:  # it is dropped
            report.num_objects_found += len(image.objects)
            report.num_objects_of_dropped_images += len(image.objects)


def _key(value: object, where: str) -> object:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise SourceError(f"{where} is {str(value)[:80]!r}; it must be an integer or a string")
    return value


def _add_categories(
    items: Iterable[Mapping[str, Any]], categories: dict[int, str], uri: str
) -> None:
    for i, item in enumerate(items):
        where = f"{uri}: categories[{i}]"
        key = non_negative_int(item.get("id"), f"{where}.id")
        name = non_empty_text(item.get("name"), f"{where}.name")
        if categories.setdefault(key, name) != name:
            raise SourceError(f"{where}: id {key} is {name!r}, but elsewhere {categories[key]!r}")
    repeated = sorted(name for name, count in Counter(categories.values()).items() if count > 1)
    if repeated:
        raise SourceError(f"{uri}: category {repeated[0]!r} has two ids; use a single id")


def _image(item: Mapping[str, Any], document: _Document, source: str, where: str) -> _Image:
    name = relative_path(item.get("file_name"), f"{where}.file_name")
    uri = store.absolute(store.join(document.images_uri, name))
    root = store.absolute(source).rstrip("/") + "/"
    declared = None
    if item.get("height") and item.get("width"):
        height, width = (
            non_negative_int(item[side], f"{where}.{side}") for side in ("height", "width")
        )
        declared = height, width
    image_id = uri.removeprefix(root) if uri.startswith(root) else name
    return _Image(image_id, uri, document.split, declared)


def _object(item: Mapping[str, Any], has_masks: bool, where: str) -> _Object:
    x_min, y_min, width, height = finite_numbers(item.get("bbox"), 4, f"{where}.bbox")
    segmentation = None
    if has_masks:
        segmentation = parse_segmentation(item.get("segmentation"), f"{where}.segmentation")
    return _Object(
        non_negative_int(item.get("category_id"), f"{where}.category_id"),
        (x_min, y_min, x_min + width, y_min + height),
        _is_true(item.get("iscrowd", 0), f"{where}.iscrowd"),
        segmentation,
    )


def _is_true(value: object, where: str) -> bool:
    return value if isinstance(value, bool) else non_negative_int(value, where) != 0


def _annotation(image: _Image, class_of: Mapping[int, int], split: str | None) -> Annotation:
    class_ids = [class_of.get(item.category_id, UNKNOWN_CLASS) for item in image.objects]
    return Annotation(
        image_id=image.image_id,
        split=split,
        boxes=np.array([item.box for item in image.objects], np.float64).reshape(-1, 4),
        class_id=np.array(class_ids, np.int32),
        score=np.ones(len(class_ids), np.float32),
        is_crowd=np.array([item.is_crowd for item in image.objects], bool),
        declared_hw=image.declared_hw,
    )


@dataclass(frozen=True)
class _SegmentationMasks:
    """Draws masks from segmentations."""

    images: Mapping[str, _Image]
    class_of: Mapping[int, int]

    def read(self, annotation: Annotation, frame_hw: Size) -> np.ndarray | MaskIssue:
        """Return the mask as class ids, (h, w) uint8; see `MaskReader`."""
        mask = np.zeros(frame_hw, np.uint8)
        rank = np.full(frame_hw, np.iinfo(np.int64).max)  # of the topmost object; smaller is above
        for item in self.images[annotation.image_id].objects:
            class_id = self.class_of.get(item.category_id, UNKNOWN_CLASS)
            if class_id == UNKNOWN_CLASS:
                continue  # Recorded with its box.
            try:
                region = rasterize(item.segmentation, frame_hw)
            except ValueError as error:
                return MaskIssue("mask_unreadable", f"{annotation.image_id}: {error}")
            object_rank = int(region.sum()) * 256 + class_id  # by area, then by class id
            is_above = region & (object_rank < rank)
            mask[is_above] = class_id + 1
            rank[is_above] = object_rank
        return mask
