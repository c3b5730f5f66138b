"""Parse class folders: the class of an image is the name of its folder."""

from __future__ import annotations

from cvbatch.core.errors import SourceError
from cvbatch.importers.annotations import AnnotatedDataset, Annotation, one_batch
from cvbatch.importers.class_table import ClassTable
from cvbatch.importers.dataset_files import (
    SPLIT_FOLDERS,
    DatasetFile,
    is_image,
    list_tree,
    to_item,
)
from cvbatch.importers.import_report import ImportReport
from cvbatch.importers.options import ImportOptions


def read_folders(source: str, options: ImportOptions, report: ImportReport) -> AnnotatedDataset:
    """Return the labels of `SRC/class/...` or `SRC/train/class/...`.

    Folders below a class folder belong to that class. The top folders are splits if all of them
    are named like splits and at least one contains folders; otherwise they are classes.

    Raises:
        SourceError: the folder does not exist, or only some of its folders are splits.
    """
    files = list_tree(options.storage, source, report).files
    images = {name: file for name, file in files.items() if is_image(name)}
    report.num_ignored += len(files) - len(images)
    report.num_found += len(images)
    has_splits = _has_splits(images, source)
    classified: dict[str, tuple[str, DatasetFile]] = {}
    for name, file in images.items():
        folders = name.split("/")[:-1]
        if len(folders) <= has_splits:
            report.record("annotation_missing", file.uri)
        else:
            classified[name] = (folders[has_splits], file)
    table = ClassTable.of({folder for folder, _ in classified.values()}, options.classes)
    annotations = {}
    for name, (folder, file) in classified.items():
        declared = SPLIT_FOLDERS[name.split("/", 1)[0].lower()] if has_splits else None
        annotations[file.image_id] = Annotation(
            image_id=file.image_id,
            split=None if options.split else declared,
            labels=[(int(table.ids([folder])[0]), 1.0)],
        )
    items = (to_item(file) for _, file in classified.values())
    return AnnotatedDataset(
        ("labels",), {"labels": table.names}, False, one_batch(options.storage, items, annotations)
    )


def _has_splits(names: dict[str, DatasetFile], source: str) -> bool:
    """Return whether the top folders are splits; folders that contain only images are classes."""
    top_folders = {name.split("/", 1)[0] for name in names if "/" in name}
    splits = {folder for folder in top_folders if folder.lower() in SPLIT_FOLDERS}
    is_nested = any(name.count("/") > 1 for name in names if name.split("/", 1)[0] in splits)
    if not splits or not is_nested:
        return False
    if splits != top_folders:
        raise SourceError(
            f"{source} mixes splits, such as {min(splits)!r}, with other folders, such as "
            f"{min(top_folders - splits)!r}; move these into a split, or import one of them alone"
        )
    return True
