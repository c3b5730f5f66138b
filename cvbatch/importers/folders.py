"""Class folders: an image's class is the name of the folder it lies in."""

from __future__ import annotations

from cvbatch.core.errors import SourceError
from cvbatch.importers.annotations import AnnotatedDataset, Annotation, Batch
from cvbatch.importers.class_table import ClassTable
from cvbatch.importers.dataset_files import File, is_image, item_of, list_tree, scattered
from cvbatch.importers.import_report import Report
from cvbatch.importers.options import ImportOptions
from cvbatch.sources.readers import ChunkReader

_SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


def read_folders(source: str, options: ImportOptions, report: Report) -> AnnotatedDataset:
    """Return what `SRC/class/...` or `SRC/train/class/...` says of its images.

    Folders below a class's are part of it. Where all top folders are named like splits and hold
    folders, those are the classes.

    Raises:
        SourceError: there is no such folder, or some of its folders are splits and others not.
    """
    files = list_tree(options.storage, source).files
    images = {name: file for name, file in files.items() if is_image(name)}
    report.num_ignored += len(files) - len(images)
    report.num_found += len(images)
    has_splits = _has_splits(images, source)
    classified: dict[str, tuple[str, File]] = {}
    for name, file in images.items():
        folders = name.split("/")[:-1]
        if len(folders) <= has_splits:
            report.note("annotation_missing", file.uri)
        else:
            classified[name] = (folders[has_splits], file)
    table = ClassTable.of({folder for folder, _ in classified.values()}, options.classes)
    examples = {}
    for name, (folder, file) in classified.items():
        own = _SPLIT_FOLDERS[name.split("/", 1)[0].lower()] if has_splits else None
        examples[file.image_id] = Annotation(
            image_id=file.image_id,
            split=None if options.split else own,
            labels=[(int(table.ids([folder])[0]), 1.0)],
        )
    items = scattered(item_of(file) for _, file in classified.values())
    batch = Batch(items, examples, ChunkReader(options.storage, "images", "image"))
    return AnnotatedDataset(("labels",), {"labels": table.names}, False, lambda _: iter([batch]))


def _has_splits(names: dict[str, File], source: str) -> bool:
    """Say whether the top folders are splits; those that hold images alone are classes."""
    tops = {name.split("/", 1)[0] for name in names if "/" in name}
    splits = {top for top in tops if top.lower() in _SPLIT_FOLDERS}
    is_deep = any(name.count("/") > 1 for name in names if name.split("/", 1)[0] in splits)
    if not splits or not is_deep:
        return False
    if splits != tops:
        raise SourceError(
            f"{source} mixes splits, such as {min(splits)!r}, with other folders, such as "
            f"{min(tops - splits)!r}; move these into a split, or import one of them alone"
        )
    return True
