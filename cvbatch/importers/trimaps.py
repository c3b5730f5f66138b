"""Parse images and masks in two folders, paired by name; by default Oxford-IIIT Pets.

The trimaps of that data set have the values 1 foreground, 2 background, 3 contour.

Source: Parkhi et al., Cats and Dogs, CVPR 2012; annotations/README of the data set.
"""

from __future__ import annotations

from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.core.types import MAX_MASK_CLASSES
from cvbatch.importers.annotations import AnnotatedBatch, AnnotatedDataset, Annotation
from cvbatch.importers.dataset_files import (
    DatasetFile,
    FileTree,
    images_by_stem,
    in_hash_order,
    list_tree,
    read_split_lists,
    stem_of,
    to_item,
)
from cvbatch.importers.import_report import ImportReport
from cvbatch.importers.labelmap import LABELMAP, LabelMap, read_labelmap
from cvbatch.importers.mask_files import MASK_SUFFIXES, MaskFiles
from cvbatch.importers.masks import masks_by_stem, name_suffix
from cvbatch.importers.options import ImportOptions
from cvbatch.sources.readers import ChunkReader

PET_CLASSES = ("foreground", "background", "contour")
PET_VALUES = (1, 2, 3)


def read_trimaps(source: str, options: ImportOptions, report: ImportReport) -> AnnotatedDataset:
    """Return the masks of `SRC/images` and `SRC/annotations/trimaps`, or of --images and --masks.

    Raises:
        SourceError: a folder does not exist, or contains no images or masks.
        ConfigError: --classes is missing, or does not agree with --values.
    """
    storage = options.storage
    tree = list_tree(storage, source, report)
    labelmap = _labelmap(tree, options)
    classes, values = labelmap.names, tuple(range(len(labelmap.names)))
    if not labelmap.colours:
        classes, values = _classes_and_values(options)
    images, masks = _images_and_masks(source, tree, options, report)
    if not images or not masks:
        missing = "images" if not images else "masks (PNG, TIFF, BMP)"
        raise SourceError(
            f"{source} contains no {missing}; use the folder that contains images/ and "
            "annotations/trimaps/, or set --images and --masks"
        )
    lists = (
        {}
        if options.split
        else read_split_lists(
            storage, tree.below("annotations"), images.keys() | masks.keys(), report
        )
    )
    stems = sorted(images.keys() | masks.keys() | lists.keys())
    report.num_found += len(stems)
    annotations, items = {}, []
    for stem in stems:
        if lists and stem not in lists and report.record("unlisted", stem) != "split":
            continue
        if stem not in images:
            report.record("image_missing", masks[stem].uri if stem in masks else stem)
        elif stem not in masks:
            report.record("annotation_missing", images[stem].uri)
        else:
            item = to_item(images[stem])
            items.append(item)
            annotations[item.image_id] = Annotation(
                image_id=item.image_id, split=lists.get(stem), mask_uri=masks[stem].uri
            )
    batch = AnnotatedBatch(
        in_hash_order(items), annotations, ChunkReader(storage, "images", "image")
    )
    reader = MaskFiles(storage, values, labelmap.colours)
    return AnnotatedDataset(
        ("mask",), {"mask": classes}, False, lambda _: iter([batch]), reader.read
    )


def _images_and_masks(
    source: str, tree: FileTree, options: ImportOptions, report: ImportReport
) -> tuple[dict[str, DatasetFile], dict[str, DatasetFile]]:
    """Return the images and the masks by stem."""
    image_files, mask_files = tree.below("images"), tree.below("annotations/trimaps")
    if options.images:
        image_files = list_tree(options.storage, options.images, report, source).files
    if options.masks:
        mask_files = list_tree(options.storage, options.masks, report).files
    images = images_by_stem(image_files, report)
    masks = {n: file for n, file in mask_files.items() if n.lower().endswith(MASK_SUFFIXES)}
    suffix = name_suffix([stem_of(name) for name in masks], images, options.mask_suffix)
    return images, masks_by_stem(masks, images, suffix, report)


def _labelmap(tree: FileTree, options: ImportOptions) -> LabelMap:
    """Return the classes and colours of labelmap.txt, unless --classes or --values are set."""
    if LABELMAP not in tree.files or options.classes or options.values:
        return LabelMap((), {})
    return read_labelmap(options.storage, tree.files[LABELMAP].uri)


def _classes_and_values(options: ImportOptions) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the classes of the masks, and the pixel value of each."""
    classes, values = options.classes, options.values
    if classes is None:
        if options.masks or values:
            raise ConfigError(
                "--masks and --values require --classes: the class names in the order of --values, "
                "or of the pixel values from 0"
            )
        return PET_CLASSES, PET_VALUES
    if len(classes) > MAX_MASK_CLASSES:
        raise ConfigError(f"{len(classes)} classes: a mask can have at most {MAX_MASK_CLASSES}")
    if values is None:
        values = tuple(range(len(classes))) if options.masks else PET_VALUES
    if len(values) != len(classes) or len(set(values)) < len(values):
        raise ConfigError(
            f"--values {','.join(map(str, values))} must be {len(classes)} different values, one "
            "for each class"
        )
    if max(values) > 255:
        raise ConfigError(f"--values contains {max(values)}; pixel values of a mask are 0 to 255")
    return classes, values
