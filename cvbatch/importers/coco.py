"""Parse COCO: one JSON file per split, with boxes and outlines of all images.

Class ids are consecutive, in the order of the category ids. In a mask, 0 is the background, and
smaller objects are drawn over larger ones.

Source: cocodataset.org/#format-data
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cvbatch.core.errors import SourceError
from cvbatch.core.types import Item
from cvbatch.images.orientation import Size
from cvbatch.importers.annotations import (
    UNKNOWN_CLASS,
    AnnotatedDataset,
    Annotation,
    one_batch,
)
from cvbatch.importers.class_table import ClassTable
from cvbatch.importers.coco_layouts import Document, find_documents
from cvbatch.importers.coco_objects import CocoObject, ObjectParser
from cvbatch.importers.image_lookup import path_parts
from cvbatch.importers.import_report import ImportReport
from cvbatch.importers.options import ImportOptions
from cvbatch.importers.outline_masks import outlined_dataset
from cvbatch.importers.parsing import (
    is_unicode,
    list_of_objects,
    list_under,
    non_empty_text,
    read_json,
    shorten,
    to_key,
    to_number,
)

Key = int | str  # id of an image or a category


@dataclass
class _Category:
    name: str
    group: str | None  # "supercategory"
    is_used: bool = False  # an object has it


@dataclass
class _Image:
    image_id: str
    uri: str
    split: str | None
    declared_hw: Size | None
    objects: list[CocoObject] = field(default_factory=list)


@dataclass
class _Content:
    """What the annotation files of a data set contain."""

    report: ImportReport
    has_outlines: bool
    has_prefix: bool  # image ids without images begin with the name of their document
    categories: dict[Key, _Category] = field(default_factory=dict)
    images: dict[str, _Image] = field(default_factory=dict)  # by image id

    def add(self, document: Document, content: Any) -> None:
        """Add an annotation file."""
        uri = document.uri
        self._add_categories(list_of_objects(content, "categories", uri), uri)
        image_of_key: dict[Key, _Image] = {}  # by the id in the document
        # Objects of these are counted with their images. They are in no data set.
        dropped: dict[Key, _Image] = {}
        duplicates: list[_Image] = []
        entries = list_of_objects(content, "images", uri)
        self.report.num_found += len(entries)
        for i, entry in enumerate(entries):
            where = f"{uri}: images[{i}]"
            key = to_key(entry.get("id"))
            if key is None:
                value = shorten(repr(entry.get("id")))
                self.report.record("image_invalid", f"{where}.id is {value}")
                continue
            image = self._image(entry, document, where)
            if image is None:
                dropped.setdefault(key, _Image("", "", None, None))
            elif key in image_of_key or image.image_id in self.images:
                self.report.record("duplicate", f"{where}, {image.image_id}")
                # Objects of this id are assigned to the first image with it.
                duplicates.append(image_of_key.setdefault(key, image))
            else:
                image_of_key[key] = self.images[image.image_id] = image
        self._add_objects(list_under(content, "annotations", uri), dropped | image_of_key, uri)
        for image in [*dropped.values(), *duplicates]:
            if self.images.get(image.image_id) is not image:
                self.report.num_objects_found += len(image.objects)
                self.report.num_objects_of_dropped_images += len(image.objects)
                image.objects = []

    def _add_categories(self, entries: Iterable[Mapping[str, Any]], uri: str) -> None:
        for i, entry in enumerate(entries):
            where = f"{uri}: categories[{i}]"
            key = to_key(entry.get("id"))
            if key is None:
                raise SourceError(
                    f"{where}.id is {shorten(repr(entry.get('id')))}; it must be a whole number or "
                    "a text"
                )
            name = entry.get("name")
            is_number = isinstance(name, int) and not isinstance(name, bool)
            name = non_empty_text(str(name) if is_number else name, f"{where}.name")
            group = entry.get("supercategory")
            category = _Category(name, group if isinstance(group, str) else None)
            known = self.categories.setdefault(key, category)
            if known.name != name:
                raise SourceError(
                    f"{where}: id {key} is {name!r}, but elsewhere {known.name!r}; import the "
                    "files one by one with the same --classes"
                )

    def _image(self, entry: Mapping[str, Any], document: Document, where: str) -> _Image | None:
        name = entry.get("file_name")
        if not isinstance(name, str) or not path_parts(name):
            self.report.record("image_invalid", f"{where}.file_name is {shorten(repr(name))}")
            return None
        if not is_unicode(name):
            example = f"{where}.file_name is {shorten(ascii(name))}, which is not Unicode"
            self.report.record("image_invalid", example)
            return None
        declared_hw = self._declared_size(entry, where)
        if document.images is None:
            prefix = [document.name] if self.has_prefix and document.name else []
            image_id = "/".join([*prefix, *path_parts(name)])
            return _Image(image_id, "", document.split, declared_hw)
        match = document.images.find(name, document.name)
        if match.issue:
            example = f"{where}.file_name is {shorten(repr(name))}"
            example += f", found {match.file.uri}" if match.file else (
                f"; it must be a path below the folder of images, {document.images_uri}"
            )  # fmt: skip
            action = self.report.record(match.issue, example)
            if match.file is None or action != "keep":
                return None
        if match.file is None:
            return None
        return _Image(match.file.image_id, match.file.uri, document.split, declared_hw)

    def _declared_size(self, entry: Mapping[str, Any], where: str) -> Size | None:
        """Return (height, width); many tools omit the size or write 0."""
        values = [entry.get(side) for side in ("height", "width")]
        if not all(values):
            return None
        if any(isinstance(value, str) for value in values):
            self.report.record("number_text", where)
        height, width = map(to_number, values)
        if not (height >= 1 and width >= 1 and height == height // 1 and width == width // 1):
            self.report.record("size_invalid", f"{where}: height and width are {values}")
            return None
        return int(height), int(width)

    def _add_objects(
        self, entries: list[Any], image_of_key: Mapping[Key, _Image], uri: str
    ) -> None:
        parser = ObjectParser(self.report, has_masks=self.has_outlines)
        ids: set[Key] = set()
        for i, entry in enumerate(entries):
            where = f"{uri}: annotations[{i}]"
            if not isinstance(entry, dict):
                self.report.num_objects_found += 1
                self.report.record("object_invalid", f"{where} is {shorten(repr(entry))}")
                continue
            own_key = to_key(entry.get("id"))
            if own_key in ids:
                self.report.record("id_repeated", f"{where}.id is {own_key!r}")
            elif own_key is not None:
                ids.add(own_key)
            key = to_key(entry.get("image_id"))
            image = None if key is None else image_of_key.get(key)
            if image is None:
                self.report.num_objects_found += 1
                self.report.record("object_astray", where)
                continue
            parsed = parser.parse(entry, where)
            category = self.categories.get(parsed.category_id) if parsed else None
            if parsed is None or category is None:
                self.report.num_objects_found += 1
                if parsed is not None:
                    example = f"{where}.category_id is {parsed.category_id!r}"
                    self.report.record("category_unlisted", example)
                continue
            category.is_used = True
            image.objects.append(parsed)

    def class_names(self) -> list[str]:
        """Return the class names in the order of the category ids, without unused groups."""
        groups = {category.group for category in self.categories.values()}
        names = []
        for key in sorted(self.categories, key=lambda key: (isinstance(key, str), key)):
            category = self.categories[key]
            is_group = category.name in groups - {category.group} and not category.is_used
            if is_group and (category.group or "none").lower() == "none":
                self.report.record("category_group", f"{key}: {category.name}")
            else:
                names.append(category.name)
        return names


def read_coco(source: str, options: ImportOptions, report: ImportReport) -> AnnotatedDataset:
    """Return the annotations of a COCO data set.

    Args:
        source: the folder of the data set, or one JSON file.
        options: options of the import.
        report: counts images, objects and issues.

    Raises:
        SourceError: there is no such file, or it is not in COCO format.
        ConfigError: --images is missing, or there are too many classes for a mask.
    """
    documents = find_documents(source, options, report)
    has_outlines = options.has_masks or options.has_box_masks
    content = _Content(report, has_outlines, has_prefix=len(documents) > 1)
    for document in documents:
        content.add(document, read_json(options.storage, document.uri))
    _count_unused_images(documents, images=content.images, report=report)
    names = content.class_names()
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise SourceError(
            f"{documents[0].uri}: category {repeated[0]!r} has two ids; use a single id"
        )
    table = ClassTable.of(names, options.classes)
    class_of = {
        key: table.id_of.get(category.name, UNKNOWN_CLASS)
        for key, category in content.categories.items()
    }
    images = content.images
    annotations = {
        image.image_id: _annotation(image, class_of, None if options.split else image.split)
        for image in images.values()
    }
    items = (Item(image.uri, image.image_id, 0) for image in images.values())
    return outlined_dataset(
        table,
        ("labels", "boxes", "box_is_crowd", "box_area"),
        one_batch(options.storage, items, annotations),
        options,
    )


def _count_unused_images(
    documents: Iterable[Document], images: Mapping[str, _Image], report: ImportReport
) -> None:
    """Count the images in the folders that no annotation file lists."""
    uris = {uri for document in documents if document.images for uri in document.images.image_uris}
    report.num_ignored += len(uris - {image.uri for image in images.values()})


def _annotation(image: _Image, class_of: Mapping[Key, int], split: str | None) -> Annotation:
    class_ids = [class_of.get(item.category_id, UNKNOWN_CLASS) for item in image.objects]
    return Annotation(
        image_id=image.image_id,
        split=split,
        boxes=np.array([item.box for item in image.objects], np.float64).reshape(-1, 4),
        class_id=np.array(class_ids, np.int32),
        score=np.ones(len(class_ids), np.float32),
        is_crowd=np.array([item.is_crowd for item in image.objects], bool),
        area=np.array([item.area for item in image.objects], np.float64),
        outlines=[item.outline for item in image.objects],
        declared_hw=image.declared_hw,
    )
