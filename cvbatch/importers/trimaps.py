"""Parse images and masks in two folders, paired by name; by default Oxford-IIIT Pets.

The trimaps of that data set have the values 1 foreground, 2 background, 3 contour.

Source: Parkhi et al., Cats and Dogs, CVPR 2012; annotations/README of the data set.
"""

from __future__ import annotations

from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.importers.annotations import AnnotatedDataset
from cvbatch.importers.dataset_files import (
    FileTree,
    images_by_stem,
    list_tree,
    read_split_lists,
    stem_of,
)
from cvbatch.importers.import_report import ImportReport
from cvbatch.importers.labelmap import LABELMAP, LabelMap, read_labelmap
from cvbatch.importers.mask_files import MASK_SUFFIXES, MaskFiles
from cvbatch.importers.masks import (
    Pairs,
    check_values,
    dataset_of_pairs,
    masks_by_stem,
    name_suffix,
)
from cvbatch.importers.options import ImportOptions

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
    pairs = _images_and_masks(source, tree, options, report)
    split_of = {}
    if not options.split:
        stems = pairs.images.keys() | pairs.masks.keys()
        split_of = read_split_lists(storage, tree.below("annotations"), stems, report)
    reader = MaskFiles(storage, values, labelmap.colours)
    return dataset_of_pairs(storage, pairs, split_of, classes, reader.read, report)


def _images_and_masks(
    source: str, tree: FileTree, options: ImportOptions, report: ImportReport
) -> Pairs:
    image_files, mask_files = tree.below("images"), tree.below("annotations/trimaps")
    if options.images:
        image_files = list_tree(options.storage, options.images, report, source).files
    if options.masks:
        mask_files = list_tree(options.storage, options.masks, report).files
    images = images_by_stem(image_files, report)
    masks = {n: file for n, file in mask_files.items() if n.lower().endswith(MASK_SUFFIXES)}
    suffix = name_suffix([stem_of(name) for name in masks], images, options.mask_suffix)
    pairs = Pairs(images, masks_by_stem(masks, images, suffix, report))
    if not all(pairs):
        missing = "images" if not images else "masks (PNG, TIFF, BMP)"
        raise SourceError(
            f"{source} contains no {missing}; use the folder that contains images/ and "
            "annotations/trimaps/, or set --images and --masks"
        )
    return pairs


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
    if values is None:
        values = tuple(range(len(classes))) if options.masks else PET_VALUES
    check_values(classes, values)
    return classes, values
