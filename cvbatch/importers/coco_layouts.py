"""Find the annotation files and images of a COCO data set in the layouts of several tools."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cvbatch.core.errors import AccessDeniedError, ConfigError, NotFoundError, SourceError
from cvbatch.importers.dataset_files import (
    SPLIT_FOLDERS,
    is_image,
    list_tree,
    split_in_name,
)
from cvbatch.importers.image_lookup import ImageLookup
from cvbatch.importers.import_report import ImportReport
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


def find_documents(source: str, options: ImportOptions, report: ImportReport) -> list[Document]:
    """Return the annotation files of a data set.

    Args:
        source: the folder of the data set, or one JSON file.
        options: `annotations` names files of another layout, `images` another folder of images.
        report: counts files that are left out.

    Raises:
        SourceError: there is no annotation file, or no image.
        ConfigError: a single file has no images beside it, and --images is missing.
    """
    search = _ImageSearch(source, options, report)
    if source.lower().endswith(".json"):
        return [search.beside(source)]
    if options.annotations:
        documents = []
        for given_split, path in options.annotations:
            uri = path if "://" in path or path.startswith("/") else store.join(source, path)
            name = path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
            split = given_split or split_in_name(name)
            documents.append(search.document(uri, split, name, (name, "images")))
        return documents
    for layout in LAYOUTS:
        if documents := list(_in_layout(layout, source, options.storage, search)):
            return documents
    raise SourceError(
        f"{source} contains no annotations/instances_*.json, _annotations.coco.json or "
        "labels.json; use the folder of the data set, name its files with --annotations, or use a "
        "JSON file as SRC"
    )


def _in_layout(
    layout: Layout, source: str, storage: Storage, search: _ImageSearch
) -> Iterator[Document]:
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
            yield search.document(store.join(uri, file), split_in_name(name), name, folders)


def _names_in(storage: Storage, folder: str) -> list[str]:
    try:
        return sorted(storage.list_names(folder))
    except (NotFoundError, AccessDeniedError) as error:
        raise SourceError(f"the source cannot be read: {error}") from None


@dataclass(frozen=True)
class _ImageSearch:
    """Finds the images of the annotation files of one data set."""

    source: str
    options: ImportOptions
    report: ImportReport

    def document(self, uri: str, split: str | None, name: str, folders: Sequence[str]) -> Document:
        """Return an annotation file with its images, which are in the first folder with files.

        The last resort are all images below the source.
        """
        if not self.options.has_images:
            return Document(uri, split, name, None, "")
        if self.options.images is not None:
            return self._with_images(uri, split, name, self.options.images)
        for folder in (*folders, ""):
            images_uri = store.join(self.source, folder) if folder else self.source
            if self._has_files(images_uri, needs_image=not folder):
                return self._with_images(uri, split, name, images_uri)
        listed = ", ".join(folder for folder in folders if folder)
        raise SourceError(
            f"{self.source} has no folder {listed} with files; set --images DIR, or import labels "
            "alone with --no-images"
        )

    def beside(self, uri: str) -> Document:
        """Return a single annotation file, with the images below its folder or --images."""
        folder, _, file = uri.rpartition("/")
        split = split_in_name(file.rsplit(".", 1)[0])
        if not self.options.has_images:
            return Document(uri, split, "", None, "")
        if self.options.images is None and not self._has_files(folder, needs_image=True):
            raise ConfigError(
                f"{uri} is one file without images beside it: set --images DIR, use the folder of "
                "the data set as SRC, or import labels alone with --no-images"
            )
        return self._with_images(uri, split, "", self.options.images or folder)

    def _with_images(self, uri: str, split: str | None, name: str, images_uri: str) -> Document:
        tree = list_tree(self.options.storage, images_uri, self.report, self.source)
        return Document(uri, split, name, ImageLookup(tree), tree.base)

    def _has_files(self, folder: str, *, needs_image: bool) -> bool:
        try:
            files = list_files(self.options.storage, folder).files
        except NotFoundError:
            return False
        return any(map(is_image, files["uri"].to_pylist())) if needs_image else files.num_rows > 0
