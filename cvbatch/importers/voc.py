"""Parse Pascal VOC: one XML file per image, split lists, and masks as palette PNGs.

XML files beside the images, as labelImg and Roboflow write them, are read too.

The corners of a box are the first and the last pixel inside it, counted from 1. As half-open
coordinates from 0 they are (xmin − 1, ymin − 1, xmax, ymax). A box whose corners coincide is a
click and has no area. A file does not declare whether its tool counts differently.

Source: Everingham et al., The PASCAL Visual Object Classes Challenge 2012 development kit,
section 3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.core.types import Item
from cvbatch.importers.annotations import AnnotatedDataset, Annotation, one_batch
from cvbatch.importers.class_table import ClassTable, check_mask_classes
from cvbatch.importers.dataset_files import (
    DatasetFile,
    images_by_stem,
    in_threads,
    is_image,
    list_tree,
    read_split_lists,
    splits_of_folders,
    stem_of,
    to_item,
)
from cvbatch.importers.import_report import ImportReport
from cvbatch.importers.labelmap import LABELMAP, LabelMap, read_labelmap
from cvbatch.importers.mask_files import MASK_SUFFIXES, MaskFiles, voc_colours
from cvbatch.importers.options import ImportOptions
from cvbatch.importers.voc_files import ParsedFile, parse_file
from cvbatch.storage.store import Storage

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
_MASK_FOLDERS = ("SegmentationClass/", "SegmentationObject/")


class _Files(NamedTuple):
    """The files of a data set, by the stem of the image."""

    xml: dict[str, DatasetFile]
    images: dict[str, DatasetFile]
    split_of: dict[str, str]  # {}: there are no split lists
    masks: dict[str, DatasetFile]
    labelmap: DatasetFile | None


def read_voc(source: str, options: ImportOptions, report: ImportReport) -> AnnotatedDataset:
    """Return the annotations of a folder with `Annotations`, or with XML files beside the images.

    Raises:
        SourceError: the folder or a file in it is not in Pascal VOC format.
        ConfigError: the folder contains masks with unknown classes, or with too many.
    """
    storage = options.storage
    files = _find_files(source, options, report)
    stems = _usable_stems(files, report, has_images=options.has_images)
    parsed: dict[str, ParsedFile] = {}
    parse = partial(_parse_or_reason, storage, files.xml)
    for stem, result in in_threads(parse, stems):
        if isinstance(result, ParsedFile):
            parsed[stem] = result
        else:
            report.record("annotation_unreadable", result)
    for file in parsed.values():
        report.num_objects_found += file.num_dropped
        for kind, example in file.issues:
            report.record(kind, example)
    table = ClassTable.of(
        {name for file in parsed.values() for name in file.names}, options.classes
    )
    items = {stem: _item(files, stem, file) for stem, file in parsed.items()}
    annotations = {
        items[stem].image_id: _annotation(
            items[stem], file, table, files.split_of.get(stem), files.masks.get(stem)
        )
        for stem, file in parsed.items()
    }
    batches = one_batch(storage, items.values(), annotations)
    classes = {"labels": table.names, "boxes": table.names}
    columns: tuple[str, ...] = ("labels", "boxes", "box_is_crowd")
    if not files.masks:
        return AnnotatedDataset(columns, classes, True, batches)
    if files.labelmap and not options.mask_classes:
        labelmap = read_labelmap(storage, files.labelmap.uri)
    else:
        names = _mask_classes(table.names, options)
        labelmap = LabelMap(names, voc_colours(len(names)))
    classes["mask"] = labelmap.names
    values = tuple(range(len(labelmap.names)))
    # Without a label map, the indices of a palette are the classes, whatever its colours are.
    is_declared = files.labelmap is not None and not options.mask_classes
    reader = MaskFiles(storage, values, labelmap.colours, is_declared)
    return AnnotatedDataset((*columns, "mask"), classes, True, batches, reader.read)


def _find_files(source: str, options: ImportOptions, report: ImportReport) -> _Files:
    tree = list_tree(options.storage, source, report)
    xml = _by_stem(tree.below("Annotations"), ".xml")
    mask_files = {name: file for name, file in tree.files.items() if name.startswith(_MASK_FOLDERS)}
    others = {name: file for name, file in tree.files.items() if name not in mask_files}
    images_below = tree.below("JPEGImages")
    is_beside = not xml
    if is_beside:
        xml = _by_stem(tree.files, ".xml")
        images_below = {name: file for name, file in others.items() if not name.endswith(".xml")}
    elif not any(map(is_image, images_below)):
        images_below = {name: file for name, file in others.items() if is_image(name)}
    if not xml:
        raise SourceError(
            f"{source} contains no Annotations/*.xml and no other XML file; use the folder that "
            "contains Annotations and JPEGImages, or XML files beside the images"
        )
    images = images_by_stem(images_below, report)
    xml = _paired(xml, images)
    stems = xml.keys() | images.keys()
    split_of = {}
    if not options.split:
        lists = tree.below(f"ImageSets/{options.lists}")
        split_of = read_split_lists(options.storage, lists, stems, report)
        if not split_of and is_beside:
            split_of = splits_of_folders(stems)
    masks = _by_stem(tree.below("SegmentationClass"), *MASK_SUFFIXES) if options.has_masks else {}
    return _Files(xml, images, split_of, masks, tree.files.get(LABELMAP))


def _by_stem(files: Mapping[str, DatasetFile], *suffixes: str) -> dict[str, DatasetFile]:
    return {stem_of(n): file for n, file in files.items() if n.lower().endswith(suffixes)}


def _paired(
    xml: Mapping[str, DatasetFile], images: Mapping[str, DatasetFile]
) -> dict[str, DatasetFile]:
    """Return the XML files by the stem of their image, which may be in another folder.

    A name that several images or XML files without a partner have is not paired.
    """
    single = [stem for stem in images if stem not in xml]
    counts = Counter(stem.rpartition("/")[2] for stem in single)
    image_of = {stem.rpartition("/")[2]: stem for stem in single}
    without_image = [stem for stem in xml if stem not in images]
    xml_counts = Counter(stem.rpartition("/")[2] for stem in without_image)
    paired = {}
    for stem, file in xml.items():
        name = stem.rpartition("/")[2]
        is_unique = stem not in images and counts[name] == xml_counts[name] == 1
        paired[image_of[name] if is_unique else stem] = file
    return paired


def _item(files: _Files, stem: str, parsed: ParsedFile) -> Item:
    if stem in files.images:
        return to_item(files.images[stem])
    suffix = f".{parsed.file_name.rpartition('.')[2]}" if is_image(parsed.file_name) else ""
    return Item("", f"JPEGImages/{stem}{suffix}", 0)


def _annotation(
    item: Item,
    file: ParsedFile,
    table: ClassTable,
    split: str | None,
    mask: DatasetFile | None,
) -> Annotation:
    return Annotation(
        image_id=item.image_id,
        split=split,
        boxes=file.boxes,
        class_id=table.ids(file.names),
        score=np.ones(len(file.names), np.float32),
        is_crowd=np.array(file.is_difficult, bool),
        declared_hw=file.declared_hw,
        mask_uri=mask.uri if mask else "",
    )


def _usable_stems(files: _Files, report: ImportReport, *, has_images: bool) -> list[str]:
    """Return the stems with an image and an annotation, and in a split list if there are lists."""
    stems = sorted(files.xml.keys() | files.images.keys() | files.split_of.keys())
    report.num_found += len(stems)
    usable = []
    for stem in stems:
        is_listed = not files.split_of or stem in files.split_of
        if not is_listed and report.record("unlisted", stem) != "split":
            continue
        if stem not in files.images and (has_images or stem not in files.xml):
            report.record("image_missing", stem)
        elif stem not in files.xml:
            report.record("annotation_missing", files.images[stem].uri)
        else:
            usable.append(stem)
    return usable


def _parse_or_reason(
    storage: Storage, files: Mapping[str, DatasetFile], stem: str
) -> ParsedFile | str:
    """Return the content of an XML file, or why it cannot be read."""
    try:
        return parse_file(storage, files[stem].uri)
    except SourceError as error:
        return str(error)


def _mask_classes(names: tuple[str, ...], options: ImportOptions) -> tuple[str, ...]:
    """Return the class names of the mask values, from 0."""
    if options.mask_classes:
        check_mask_classes(options.mask_classes)
        return options.mask_classes
    if set(names) <= set(VOC_CLASSES):
        return ("background", *VOC_CLASSES)
    other = min(set(names) - set(VOC_CLASSES))
    raise ConfigError(
        f"SegmentationClass contains masks, and {other!r} is not a Pascal VOC class, so the names "
        "of the mask values are unknown; set --mask-classes background,a,b in the order of the "
        "values, or use --no-masks"
    )
