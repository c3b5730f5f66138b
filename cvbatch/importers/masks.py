"""Parse masks beside images: class ids, or the colours of labelmap.txt.

Images and masks are paired by their stem, in parallel folders such as images/ and masks/, or in one
folder with a suffix such as a_mask.png.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.core.types import VOID_CLASS
from cvbatch.images.orientation import Size
from cvbatch.importers.annotations import (
    AnnotatedDataset,
    Annotation,
    MaskIssue,
    MaskReader,
    one_batch,
)
from cvbatch.importers.class_table import check_mask_classes
from cvbatch.importers.dataset_files import (
    DatasetFile,
    images_by_stem,
    is_image,
    list_tree,
    read_split_lists,
    splits_of_folders,
    stem_of,
    to_item,
)
from cvbatch.importers.import_report import ImportReport
from cvbatch.importers.labelmap import LABELMAP, LabelMap, read_labelmap
from cvbatch.importers.mask_files import MASK_SUFFIXES, MaskFiles
from cvbatch.importers.options import ImportOptions
from cvbatch.storage.store import Storage

IMAGE_FOLDERS = ("JPEGImages", "images", "image", "imgs", "img")
MASK_FOLDERS = ("SegmentationClass", "masks", "mask", "labels", "annotations")
_IGNORED_FOLDERS = ("SegmentationObject",)  # a number for each object
# Ends of the stem of a mask after that of its image.
NAME_SUFFIXES = ("_mask", "-mask", "_masks", "_seg", "_segmentation", "_label", "_labels", "_gt")


class Pairs(NamedTuple):
    """Images and masks."""

    images: dict[str, DatasetFile]  # by stem
    masks: dict[str, DatasetFile]  # by the stem of the image


def read_masks(source: str, options: ImportOptions, report: ImportReport) -> AnnotatedDataset:
    """Return the masks of a folder of images and masks.

    Raises:
        SourceError: there are no images or no masks, or labelmap.txt is not valid.
        ConfigError: the classes are not known, or do not agree with the values.
    """
    storage = options.storage
    tree = list_tree(storage, source, report)
    pairs = _pairs(source, tree.files, options, report)
    labelmap, values = _classes_and_values(source, tree.files.get(LABELMAP), options)
    stems = pairs.images.keys() | pairs.masks.keys()
    split_of: Mapping[str, str] = {}
    if not options.split:
        lists = tree.below("ImageSets/Segmentation")
        split_of = read_split_lists(storage, lists, stems, report) or splits_of_folders(stems)
    files = MaskFiles(storage, values, labelmap.colours)
    is_guessed = options.values is None and not labelmap.colours and len(values) == 2
    reader = _Binary(files) if is_guessed else files
    return dataset_of_pairs(storage, pairs, split_of, labelmap.names, reader.read, report)


def dataset_of_pairs(
    storage: Storage,
    pairs: Pairs,
    split_of: Mapping[str, str],
    classes: tuple[str, ...],
    read_mask: MaskReader,
    report: ImportReport,
) -> AnnotatedDataset:
    """Return a data set of images with masks; record images without one, and the reverse.

    Args:
        storage: reads the images.
        pairs: the files.
        split_of: stem → split; {}: the data set has no splits.
        classes: names of the classes of the masks.
        read_mask: reads the mask of an image.
        report: counts images.
    """
    images, masks = pairs
    stems = sorted(images.keys() | masks.keys() | split_of.keys())
    report.num_found += len(stems)
    annotations, items = {}, []
    for stem in stems:
        if split_of and stem not in split_of and report.record("unlisted", stem) != "split":
            continue
        if stem not in images:
            report.record("image_missing", masks[stem].uri if stem in masks else stem)
        elif stem not in masks:
            report.record("annotation_missing", images[stem].uri)
        else:
            item = to_item(images[stem])
            items.append(item)
            annotations[item.image_id] = Annotation(
                image_id=item.image_id, split=split_of.get(stem), mask_uri=masks[stem].uri
            )
    batches = one_batch(storage, items, annotations)
    return AnnotatedDataset(("mask",), {"mask": classes}, False, batches, read_mask)


@dataclass(frozen=True)
class _Binary:
    """Masks of two classes with the values 0 and 1; 0 and 255 would be background and void."""

    files: MaskFiles

    def read(self, annotation: Annotation, frame_hw: Size) -> np.ndarray | MaskIssue | None:
        """Return the mask as class ids, (h, w) uint8; see `MaskReader`."""
        mask = self.files.read(annotation, frame_hw)
        if isinstance(mask, np.ndarray) and (mask == VOID_CLASS).any() and not (mask == 1).any():
            return MaskIssue(
                "mask_value",
                f"{annotation.mask_uri} has the pixel values 0 and 255: set --values 0,255 if 255 "
                "is the second class, or --values 0,1 if it is void",
            )
        return mask


def _pairs(
    source: str, files: Mapping[str, DatasetFile], options: ImportOptions, report: ImportReport
) -> Pairs:
    storage = options.storage
    used = {name: file for name, file in files.items() if not _is_below(name, _IGNORED_FOLDERS)}
    in_masks = {name: file for name, file in used.items() if _is_below(name, MASK_FOLDERS)}
    if options.masks:
        in_masks = list_tree(storage, options.masks, report).files
    mask_uris = {file.uri for file in in_masks.values()}
    images = {n: file for n, file in used.items() if file.uri not in mask_uris and is_image(n)}
    if options.images:
        images = list_tree(storage, options.images, report, source).files
    elif any(_is_below(name, IMAGE_FOLDERS) for name in images):
        images = {n: file for n, file in images.items() if _is_below(n, IMAGE_FOLDERS)}
    images = {_without(name, IMAGE_FOLDERS): file for name, file in images.items()}
    masks = {_without(name, MASK_FOLDERS): file for name, file in in_masks.items()}
    masks = {name: file for name, file in masks.items() if name.lower().endswith(MASK_SUFFIXES)}
    if not masks:  # beside the images
        masks = {n: file for n, file in images.items() if n.lower().endswith(MASK_SUFFIXES)}
        return _beside(source, images, masks, options, report)
    by_stem = images_by_stem(images, report)
    suffix = name_suffix([stem_of(name) for name in masks], by_stem.keys(), options.mask_suffix)
    return _checked(source, by_stem, masks_by_stem(masks, by_stem, suffix, report))


def _beside(
    source: str,
    images: Mapping[str, DatasetFile],
    masks: Mapping[str, DatasetFile],
    options: ImportOptions,
    report: ImportReport,
) -> Pairs:
    """Return the pairs of one folder, in which the suffix alone tells masks from images."""
    stems = {stem_of(name) for name in images}
    suffix = name_suffix([stem_of(name) for name in masks], stems, options.mask_suffix)
    of_masks = {
        name: file
        for name, file in masks.items()
        if suffix and stem_of(name).endswith(suffix) and stem_of(name) != suffix
    }
    others = {name: file for name, file in images.items() if name not in of_masks}
    by_stem = images_by_stem(others, report)
    return _checked(source, by_stem, masks_by_stem(of_masks, by_stem, suffix, report))


def _checked(source: str, images: dict[str, DatasetFile], masks: dict[str, DatasetFile]) -> Pairs:
    if not images or not masks:
        missing = "images" if not images else "masks"
        raise SourceError(
            f"{source} contains no {missing}; use a folder with images/ and masks/, or masks "
            "beside the images such as a_mask.png, or set --images, --masks and --mask-suffix"
        )
    return Pairs(images, masks)


def masks_by_stem(
    masks: Mapping[str, DatasetFile],
    images: Mapping[str, DatasetFile],
    suffix: str,
    report: ImportReport,
) -> dict[str, DatasetFile]:
    """Return the masks by the stem of their image; later ones of an image are duplicates."""
    by_stem: dict[str, DatasetFile] = {}
    for name, file in sorted(masks.items()):
        stem = stem_of(name)
        if stem not in images and suffix and stem.endswith(suffix):
            stem = stem.removesuffix(suffix)
        if stem in by_stem:
            report.num_found += 1
            report.record("duplicate", file.uri)
        else:
            by_stem[stem] = file
    return by_stem


def name_suffix(masks: Iterable[str], images: Iterable[str], specified: str | None) -> str:
    """Return the suffix of masks: the specified one, or the first known one that fits an image."""
    if specified is not None:
        return specified
    image_stems = set(images)
    unpaired = [stem for stem in masks if stem not in image_stems] or list(masks)
    for suffix in NAME_SUFFIXES:
        if any(s.endswith(suffix) and s.removesuffix(suffix) in image_stems for s in unpaired):
            return suffix
    return ""


def _is_below(name: str, folders: Iterable[str]) -> bool:
    return not set(folders).isdisjoint(name.split("/")[:-1])


def _without(name: str, folders: Iterable[str]) -> str:
    """Return a path without the first of its folders that is one of these."""
    parts = name.split("/")
    position = next((i for i, part in enumerate(parts[:-1]) if part in set(folders)), None)
    return name if position is None else "/".join(parts[:position] + parts[position + 1 :])


def _classes_and_values(
    source: str, file: DatasetFile | None, options: ImportOptions
) -> tuple[LabelMap, tuple[int, ...]]:
    """Return the classes of the masks with their colours, and the pixel value of each."""
    labelmap = LabelMap(options.classes or (), {})
    if file is not None:
        declared = read_labelmap(options.storage, file.uri)
        labelmap = declared if options.classes is None else _renamed(declared, options.classes)
    names = labelmap.names
    if not names:
        raise ConfigError(
            f"{source} has no {LABELMAP}: set --classes to the class names in the order of the "
            "pixel values from 0, or of --values"
        )
    values = options.values or tuple(range(len(names)))
    check_values(names, values)
    return labelmap, values


def check_values(classes: Sequence[str], values: Sequence[int]) -> None:
    """Raise ConfigError unless each class has a pixel value of its own."""
    check_mask_classes(classes)
    if len(values) != len(classes) or len(set(values)) < len(values) or max(values) > 255:
        raise ConfigError(
            f"--values {','.join(map(str, values))} must be {len(classes)} different values from 0 "
            "to 255, one for each class"
        )


def _renamed(labelmap: LabelMap, classes: tuple[str, ...]) -> LabelMap:
    """Return a label map in the order of --classes."""
    unknown = [name for name in labelmap.names if name not in classes]
    if unknown:
        raise ConfigError(
            f"--classes lacks {unknown[0]!r}, which {LABELMAP} has; list all its classes"
        )
    id_of = {name: i for i, name in enumerate(classes)}
    colours = {colour: id_of[labelmap.names[i]] for colour, i in labelmap.colours.items()}
    return LabelMap(classes, colours)
