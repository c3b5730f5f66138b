"""Finds a data set's files, pairs them by name, and reads the lists it keeps of its splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from cvbatch.core.errors import AccessDeniedError, NotFoundError, SourceError
from cvbatch.core.types import Item
from cvbatch.images.signatures import IMAGE_SUFFIXES
from cvbatch.importers.import_report import Report
from cvbatch.importers.parsing import read_lines
from cvbatch.storage import store
from cvbatch.storage.listing import list_files
from cvbatch.storage.store import Storage

_IMAGE_ENDS = tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES)
# Of an image that two lists name, the first split here is taken: a test must not be learned.
_PRECEDENCE = ("test", "validation", "train", "trainval")
_LIST_NAMES = {
    "train": "train",
    "val": "validation",
    "validation": "validation",
    "test": "test",
    "trainval": "trainval",
}


class File(NamedTuple):
    """A file of a data set."""

    uri: str
    image_id: str  # its name below the data set's folder, which is its id if it is an image
    size_bytes: int


class Tree(NamedTuple):
    """All files below a folder, by their names below it, in order."""

    base: str  # ends with "/"
    files: dict[str, File]

    def below(self, folder: str) -> dict[str, File]:
        """Return the files below one folder, by their names below that."""
        start = f"{folder}/"
        return {
            name[len(start) :]: file for name, file in self.files.items() if name.startswith(start)
        }


def list_tree(storage: Storage, uri: str, root: str | None = None) -> Tree:
    """Return the files below a folder; names that begin with "_" or "." are left out.

    root: the data set's folder; ids are names below it where the folder lies in it.

    Raises:
        SourceError: there is no such folder, or it may not be read.
    """
    try:
        base, table = list_files(storage, uri)
    except (NotFoundError, AccessDeniedError) as error:
        raise SourceError(f"the source cannot be read: {error}") from None
    start = base
    if root is not None:
        whole = store.absolute(root).rstrip("/") + "/"
        start = whole if base.startswith(whole) else base
    found = sorted(zip(table["uri"].to_pylist(), table["size"].to_pylist(), strict=True))
    files = {name[len(base) :]: File(name, name[len(start) :], size) for name, size in found}
    return Tree(base, files)


def is_image(name: str) -> bool:
    """Return whether a name ends like an image's."""
    return name.lower().endswith(_IMAGE_ENDS)


def stem_of(name: str) -> str:
    """Return a file's name without its suffix; folders above it stay."""
    folder, _, last = name.rpartition("/")
    stem = last.rpartition(".")[0] or last
    return f"{folder}/{stem}" if folder else stem


def images_by_stem(files: Mapping[str, File], report: Report) -> dict[str, File]:
    """Return the images by stem; of two with one stem the first counts, the other is reported."""
    found: dict[str, File] = {}
    for name, file in sorted(files.items()):
        if not is_image(name):
            report.num_ignored += 1
        elif stem_of(name) in found:
            report.num_found += 1
            report.note("duplicate", file.uri)
        else:
            found[stem_of(name)] = file
    return found


def item_of(file: File) -> Item:
    """Return an image file as what is read."""
    return Item(file.uri, file.image_id, file.size_bytes)


def scattered(items: Iterable[Item]) -> list[Item]:
    """Return images in the order of their ids' hashes: neighbours share no folder or class."""
    return sorted(items, key=lambda item: hashlib.sha256(item.image_id.encode()).digest())


def read_lists(storage: Storage, files: Mapping[str, File], report: Report) -> dict[str, str]:
    """Return stem → split of a data set's own lists, {} where it has none.

    files: a folder's, by name; `train.txt`, `val.txt`, `test.txt` and `trainval.txt` are its lists.
    A `trainval.txt` beside the other two says nothing more.
    """
    lists = {
        split: files[f"{name}.txt"] for name, split in _LIST_NAMES.items() if f"{name}.txt" in files
    }
    if "train" in lists and "validation" in lists:
        lists.pop("trainval", None)
    found: dict[str, str] = {}
    for split in _PRECEDENCE:
        if split not in lists:
            continue
        for line in read_lines(storage, lists[split].uri):
            stem = stem_of(line) if is_image(line) else line
            first = found.setdefault(stem, split)
            is_part = split == "trainval" and first != "test"  # of which train is a part
            if first != split and not is_part:
                report.note("in_two_splits", f"{stem} in {first} and {split}")
    return found
