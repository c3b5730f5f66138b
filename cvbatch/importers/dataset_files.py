"""List the files of a data set, pair them by stem, and read its split lists."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, TypeVar

from cvbatch.core.errors import AccessDeniedError, NotFoundError, SourceError
from cvbatch.core.types import Item
from cvbatch.images.signatures import IMAGE_SUFFIXES
from cvbatch.importers.import_report import ImportReport
from cvbatch.importers.parsing import read_text_lines
from cvbatch.storage import store
from cvbatch.storage.listing import list_files
from cvbatch.storage.store import Storage

T = TypeVar("T")
R = TypeVar("R")
_THREADS = 16
_ITEMS_AT_ONCE = 1024
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_SPLIT_WORDS = "|".join(sorted(SPLIT_FOLDERS, key=len, reverse=True))
_IMAGE_SUFFIXES = tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES)
# The first of these that lists an image is its split, so that no test image is trained on.
_PRECEDENCE = ("test", "validation", "train", "trainval")
_FLAGS = re.compile(r"(?:\s+-?\d+)+\s*$")  # at the end of a line of a split list
_LIST_NAMES = {
    "train": "train",
    "val": "validation",
    "validation": "validation",
    "test": "test",
    "trainval": "trainval",
}


class DatasetFile(NamedTuple):
    """A file of a data set."""

    uri: str
    image_id: str  # path below the folder of the data set
    size_bytes: int


class FileTree(NamedTuple):
    """All files below a folder, sorted."""

    base: str  # URI of the folder; ends with "/"
    files: dict[str, DatasetFile]  # by path below the folder

    def below(self, folder: str) -> dict[str, DatasetFile]:
        """Return the files below a folder of the tree, by path below that folder."""
        prefix = f"{folder}/"
        return {
            name[len(prefix) :]: file
            for name, file in self.files.items()
            if name.startswith(prefix)
        }


def list_tree(
    storage: Storage, uri: str, report: ImportReport, root: str | None = None
) -> FileTree:
    """Return the files below a folder; junk (`cvbatch.storage.junk`) is left out.

    Args:
        storage: lists the folder.
        report: counts what is left out.
        root: folder of the data set. If it contains `uri`, image ids are paths below `root`,
            otherwise paths below `uri`.

    Raises:
        SourceError: the folder does not exist, or access is denied.
    """
    try:
        listing = list_files(storage, uri)
    except (NotFoundError, AccessDeniedError) as error:
        raise SourceError(f"the source cannot be read: {error}") from None
    base, table = listing.base, listing.files
    report.add_skipped(listing.skipped.to_pylist())
    id_base = base
    if root is not None:
        root_base = store.absolute(root).rstrip("/") + "/"
        id_base = root_base if base.startswith(root_base) else base
    entries = sorted(zip(table["uri"].to_pylist(), table["size"].to_pylist(), strict=True))
    files = {
        name[len(base) :]: DatasetFile(name, name[len(id_base) :], size) for name, size in entries
    }
    return FileTree(base, files)


def split_in_name(name: str) -> str | None:
    """Return the split that a file or folder is named after, such as train2017; None: no split."""
    lower = name.lower()
    match = re.search(rf"(?<![a-z])({_SPLIT_WORDS})(?![a-z])", lower) or re.match(
        _SPLIT_WORDS, lower
    )
    return SPLIT_FOLDERS[match[0]] if match else None


def splits_of_folders(stems: Iterable[str]) -> dict[str, str]:
    """Return the split of each image if all of them are in folders such as train and valid."""
    folders = {stem: stem.partition("/")[0].lower() for stem in stems if "/" in stem}
    is_split = bool(folders) and len(folders) == len(set(stems))
    if not is_split or not set(folders.values()) <= SPLIT_FOLDERS.keys():
        return {}
    return {stem: SPLIT_FOLDERS[folder] for stem, folder in folders.items()}


def is_image(name: str) -> bool:
    """Return whether a name has the suffix of an image format."""
    return name.lower().endswith(_IMAGE_SUFFIXES)


def stem_of(name: str) -> str:
    """Return a path without the suffix of its file name."""
    folder, _, last = name.rpartition("/")
    stem = last.rpartition(".")[0] or last
    return f"{folder}/{stem}" if folder else stem


def images_by_stem(
    files: Mapping[str, DatasetFile], report: ImportReport
) -> dict[str, DatasetFile]:
    """Return the images by stem; later images with the same stem are recorded as duplicates."""
    images: dict[str, DatasetFile] = {}
    for name, file in sorted(files.items()):
        if not is_image(name):
            report.num_ignored += 1
        elif stem_of(name) in images:
            report.num_found += 1
            report.record("duplicate", file.uri)
        else:
            images[stem_of(name)] = file
    return images


def to_item(file: DatasetFile) -> Item:
    """Return an image file as an item of a chunk."""
    return Item(file.uri, file.image_id, file.size_bytes)


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Yield each item with the result of the function, in order, a limited number at a time."""
    remaining = iter(items)
    with ThreadPoolExecutor(_THREADS) as pool:
        while batch := list(islice(remaining, _ITEMS_AT_ONCE)):
            yield from zip(batch, pool.map(function, batch), strict=True)


def in_hash_order(items: Iterable[Item]) -> list[Item]:
    """Return images sorted by the hash of their ids, which mixes folders and classes."""
    return sorted(items, key=lambda item: hashlib.sha256(item.image_id.encode()).digest())


def read_split_lists(
    storage: Storage,
    files: Mapping[str, DatasetFile],
    stems: Collection[str],
    report: ImportReport,
) -> dict[str, str]:
    """Return stem → split of the split lists of a data set; {} if it has none.

    `trainval.txt` is ignored if `train.txt` and `val.txt` exist.

    Args:
        storage: reads the lists.
        files: the files of a folder by name; `train.txt`, `val.txt`, `validation.txt`, `test.txt`
            and `trainval.txt` are split lists.
        stems: the stems of the data set's images; names in a list may contain white space.
        report: records the images that are in two lists.
    """
    lists = {
        split: files[f"{name}.txt"] for name, split in _LIST_NAMES.items() if f"{name}.txt" in files
    }
    if "train" in lists and "validation" in lists:
        lists.pop("trainval", None)
    split_of: dict[str, str] = {}
    for split in _PRECEDENCE:
        if split not in lists:
            continue
        for line in read_text_lines(storage, lists[split].uri):
            stem = _listed_stem(line.strip(), stems)
            if not stem:
                continue
            first = split_of.setdefault(stem, split)
            is_subset = split == "trainval" and first != "test"
            if first != split and not is_subset:
                report.record("in_two_splits", f"{stem} in {first} and {split}")
    return split_of


def _listed_stem(line: str, stems: Collection[str]) -> str:
    """Return the stem that a line of a split list names; "": a comment or an empty line.

    After the name may be flags, such as 1 or -1, and other columns. A path may begin with a folder
    that the stems lack. If no stem is known, the name is the line without its flags.
    """
    without_flags = _FLAGS.sub("", line)
    names = dict.fromkeys((line, without_flags, *line.split(maxsplit=1)[:1]))
    candidates = [stem_of(name) if is_image(name) else name for name in names]
    candidates += [stem.rpartition("/")[2] for stem in candidates if "/" in stem]
    known = next((stem for stem in candidates if stem in stems), None)
    if known is None and line.startswith("#"):
        return ""
    return known or (stem_of(without_flags) if is_image(without_flags) else without_flags)
