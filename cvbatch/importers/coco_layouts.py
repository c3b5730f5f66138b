"""Find the annotation files and images of a COCO data set in the layouts of several tools."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from cvbatch.core.errors import AccessDeniedError, ConfigError, NotFoundError, SourceError
from cvbatch.importers.dataset_files import (
    SPLIT_FOLDERS,
    FileTree,
    is_image,
    list_tree,
    split_in_name,
)
from cvbatch.importers.image_lookup import ImageLookup
from cvbatch.importers.options import ImportOptions
from cvbatch.storage import store
from cvbatch.storage.listing import list_files
from cvbatch.storage.store import Storage


class Layout(NamedTuple):
    """Where a tool writes annotation files and images, below the folder of the data set.

    Args:
        tools: the tools.
        folders: folders that are searched for annotation files.
        file: regular expression of their names; its group, or else the folder, names the split.
        images: folders of the images of a file; the first that has files is used.
    """

    tools: str
    folders: tuple[str, ...]
    file: str
    images: tuple[str, ...]


LAYOUTS = (
    Layout(
        "COCO, CVAT",
        ("annotations",),
        r"instances_([^/]+)\.json",
        ("{name}", "images/{name}", "images"),
    ),
    Layout("Roboflow", ("", *SPLIT_FOLDERS), r"_annotations\.coco\.json", ("{folder}",)),
    Layout("FiftyOne", ("", *SPLIT_FOLDERS), r"labels\.json", ("{folder}/data",)),
)


class Document(NamedTuple):
    """An annotation file, its split, and its images."""

    uri: str
    split: str | None
    name: str  # of the split or the subset, such as train2017; "": it has none
    images: ImageLookup | None  # None: labels are imported without images
    images_uri: str  # folder of the images; "": without images


def find_documents(source: str, options: ImportOptions) -> list[Document]:
    """Return the annotation files of a data set.

    Args:
        source: the folder of the data set, or one JSON file.
        options: `annotations` names files of another layout, `images` another folder of images.

    Raises:
        SourceError: there is no annotation file, or no image.
        ConfigError: a single file has no images beside it, and --images is missing.
    """
    if source.lower().endswith(".json"):
        return [_single_document(source, options)]
    if options.annotations:
        documents = []
        for given_split, path in options.annotations:
            uri = path if "://" in path or path.startswith("/") else store.join(source, path)
            name = path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
            split = given_split or split_in_name(name)
            documents.append(_document(uri, split, name, (name, "images"), source, options))
        return documents
    documents = list(_in_layouts(source, options))
    if not documents:
        raise SourceError(
            f"{source} contains no annotations/instances_*.json, _annotations.coco.json or "
            "labels.json; use the folder of the data set, name its files with --annotations, or "
            "use a JSON file as SRC"
        )
    return documents


def _in_layouts(source: str, options: ImportOptions) -> Iterator[Document]:
    storage = options.storage
    for layout in LAYOUTS:
        for folder in layout.folders:
            uri = store.join(source, folder) if folder else source
            for file in _names_in(storage, uri):
                match = re.fullmatch(layout.file, file)
                if match is None:
                    continue
                name = match[1] if match.groups() else folder
                folders = tuple(
                    part.format(name=name, folder=folder).strip("/") for part in layout.images
                )
                split = split_in_name(name)
                yield _document(store.join(uri, file), split, name, folders, source, options)


def _names_in(storage: Storage, folder: str) -> list[str]:
    try:
        return sorted(storage.list_names(folder))
    except (NotFoundError, AccessDeniedError) as error:
        raise SourceError(f"the source cannot be read: {error}") from None


def _single_document(uri: str, options: ImportOptions) -> Document:
    folder, _, file = uri.rpartition("/")
    split = split_in_name(file.rsplit(".", 1)[0])
    if not options.has_images:
        return Document(uri, split, "", None, "")
    if options.images is not None:
        return _with_images(uri, split, "", _tree(options.storage, options.images, uri))
    tree = _tree_or_none(options.storage, folder, folder)
    if tree is None or not any(is_image(name) for name in tree.files):
        raise ConfigError(
            f"{uri} is one file without images beside it: set --images DIR, use the folder of the "
            "data set as SRC, or import labels alone with --no-images"
        )
    return _with_images(uri, split, "", tree)


def _document(
    uri: str,
    split: str | None,
    name: str,
    folders: tuple[str, ...],
    source: str,
    options: ImportOptions,
) -> Document:
    if not options.has_images:
        return Document(uri, split, name, None, "")
    storage = options.storage
    if options.images is not None:
        return _with_images(uri, split, name, _tree(storage, options.images, source))
    for folder in (*folders, ""):
        tree = _tree_or_none(storage, store.join(source, folder) if folder else source, source)
        if tree is not None and (folder or any(is_image(path) for path in tree.files)):
            return _with_images(uri, split, name, tree)
    listed = ", ".join(folder for folder in folders if folder)
    raise SourceError(
        f"{source} has no folder {listed} with files; set --images DIR, or import labels alone "
        "with --no-images"
    )


def _with_images(uri: str, split: str | None, name: str, tree: FileTree) -> Document:
    return Document(uri, split, name, ImageLookup(tree.files), tree.base)


def _tree(storage: Storage, folder: str, root: str) -> FileTree:
    return list_tree(storage, folder, root)


def _tree_or_none(storage: Storage, folder: str, root: str) -> FileTree | None:
    """Return the files of a folder; None if it does not exist or is empty."""
    try:
        if not list_files(storage, folder).files.num_rows:
            return None
    except NotFoundError:
        return None
    return list_tree(storage, folder, root)
