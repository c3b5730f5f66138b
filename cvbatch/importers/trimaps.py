"""Images and masks in two folders, paired by name; by default those of the Oxford-IIIT Pets.

There a trimap says 1 foreground, 2 background, 3 contour.
(Parkhi et al., Cats and Dogs, CVPR 2012; annotations/README of the data set.)
"""

from __future__ import annotations

from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.core.types import MAX_MASK_CLASSES
from cvbatch.importers.annotations import AnnotatedDataset, Annotation, Batch
from cvbatch.importers.dataset_files import (
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
from cvbatch.sources.readers import ChunkReader

PET_CLASSES = ("foreground", "background", "contour")
PET_VALUES = (1, 2, 3)


def read_trimaps(source: str, options: ImportOptions, report: Report) -> AnnotatedDataset:
    """Return what `SRC/images` and `SRC/annotations/trimaps` say, or the folders of the flags.

    Raises:
        SourceError: there is no such folder.
        ConfigError: other masks without their classes, or other values than classes.
    """
    classes, values = _meaning(options)
    storage = options.storage
    tree = list_tree(storage, source)
    in_images = (
        list_tree(storage, options.images, source).files if options.images else tree.below("images")
    )
    in_masks = (
        list_tree(storage, options.masks).files
        if options.masks
        else tree.below("annotations/trimaps")
    )
    images = images_by_stem(in_images, report)
    masks = {stem_of(name): file for name, file in in_masks.items() if _is_png(name)}
    if not images or not masks:
        missing = "images" if not images else "masks (PNG)"
        raise SourceError(
            f"{source} holds no {missing}: name the folder with images/ and annotations/trimaps/ "
            "in it, or say --images and --masks"
        )
    lists = {} if options.split else read_lists(storage, tree.below("annotations"), report)
    stems = sorted(images.keys() | masks.keys() | lists.keys())
    report.num_found += len(stems)
    examples, items = {}, []
    for stem in stems:
        if lists and stem not in lists and report.note("unlisted", stem) != "split":
            continue
        if stem not in images:
            report.note("image_missing", masks[stem].uri if stem in masks else stem)
        elif stem not in masks:
            report.note("annotation_missing", images[stem].uri)
        else:
            item = item_of(images[stem])
            items.append(item)
            examples[item.image_id] = Annotation(
                image_id=item.image_id, split=lists.get(stem), mask_at=masks[stem].uri
            )
    batch = Batch(scattered(items), examples, ChunkReader(storage, "images", "image"))
    reader = MaskFiles(storage, values)
    return AnnotatedDataset(
        ("mask",), {"mask": classes}, False, lambda _: iter([batch]), reader.read
    )


def _is_png(name: str) -> bool:
    return name.lower().endswith(".png")


def _meaning(options: ImportOptions) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the classes of the masks, and the value that stands for each in a file."""
    classes, values = options.classes, options.values
    if classes is None:
        if options.masks or values:
            raise ConfigError(
                "masks of your own need --classes, in the order of their values (from 0 on, or "
                "those of --values)"
            )
        return PET_CLASSES, PET_VALUES
    if len(classes) > MAX_MASK_CLASSES:
        raise ConfigError(f"{len(classes)} classes: a mask holds at most {MAX_MASK_CLASSES}")
    if values is None:
        values = tuple(range(len(classes))) if options.masks else PET_VALUES
    if len(values) != len(classes) or len(set(values)) < len(values):
        raise ConfigError(
            f"--values {','.join(map(str, values))} must say one value, each another, for each of "
            f"the {len(classes)} classes"
        )
    if max(values) > 255:
        raise ConfigError(f"--values holds {max(values)}; the pixels of a mask are 0 to 255")
    return classes, values
