"""Find the images, splits and classes of a YOLO data set: data.yaml, lists, or folders alone.

Source: docs.ultralytics.com/datasets/detect; docs.cvat.ai, format YOLO.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml

from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.importers.dataset_files import (
    SPLIT_FOLDERS,
    DatasetFile,
    FileTree,
    is_image,
    list_tree,
    stem_of,
)
from cvbatch.importers.image_lookup import ImageLookup, path_parts
from cvbatch.importers.import_report import ImportReport
from cvbatch.importers.options import ImportOptions
from cvbatch.importers.parsing import (
    MAX_XML_BYTES,
    non_empty_text,
    read_text,
    read_text_lines,
    shorten,
    to_key,
)
from cvbatch.storage.store import Storage

_YAML_NAMES = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")
_SPLIT_KEYS = {"train": "train", "val": "validation", "valid": "validation", "test": "test"}
_LISTS = {f"{key}.txt": split for key, split in _SPLIT_KEYS.items()}
_NAME_FILES = ("obj.names", "classes.txt", "labels/classes.txt", "data/obj.names")
# The first of these that has an image is its split, so that no test image is trained on.
_PRECEDENCE = ("test", "validation", "train", None)


class YoloImage(NamedTuple):
    """An image, its split and its label file."""

    file: DatasetFile
    split: str | None
    label: DatasetFile | None  # None: the image has no objects


class YoloLayout(NamedTuple):
    """The images and the class names of a data set."""

    images: list[YoloImage]
    names: tuple[str, ...] | None  # by class number; None: not declared
    has_keypoints: bool  # rows have keypoints after the box


def find_yolo(source: str, options: ImportOptions, report: ImportReport) -> YoloLayout:
    """Return the images of a YOLO data set with their label files.

    Args:
        source: the folder of the data set, or its YAML file.
        options: `images` is the folder that `path` in the YAML file names.
        report: counts images and issues.

    Raises:
        SourceError: there is no image or no label file, or the YAML file is not valid.
        ConfigError: an entry of the YAML file names no folder or list.
    """
    storage = options.storage
    is_yaml = source.lower().endswith((".yaml", ".yml"))
    folder = source.rpartition("/")[0] if is_yaml else source
    tree = list_tree(storage, options.images or folder, report)
    yaml_uri = source if is_yaml else _find_yaml(tree, list_tree(storage, folder, report))
    document = _read_yaml(storage, yaml_uri) if yaml_uri else {}
    names = _names(document, yaml_uri) or _names_of_files(storage, tree)
    images = {name: file for name, file in tree.files.items() if is_image(name)}
    if not images:
        raise SourceError(f"{tree.base} has no images; use the folder with images/ and labels/")
    split_of: dict[str | None, list[DatasetFile]]
    if any(document.get(key) for key in _SPLIT_KEYS):
        split_of = _splits_of_yaml(storage, tree, document, yaml_uri, report)
    else:
        split_of = _splits_of_lists(storage, tree, report)
    labelled = _with_labels(tree, split_of, report)
    if not any(image.label for image in labelled):
        raise SourceError(
            f"{tree.base} has no label file for any of {len(labelled):,} images; YOLO expects "
            "the labels of images/a.jpg in labels/a.txt"
        )
    return YoloLayout(labelled, names, "kpt_shape" in document)


def _find_yaml(tree: FileTree, yaml_tree: FileTree) -> str:
    for candidate in (yaml_tree, tree):
        for name in _YAML_NAMES:
            if name in candidate.files:
                return candidate.files[name].uri
        others = [n for n in candidate.files if "/" not in n and n.endswith((".yaml", ".yml"))]
        if len(others) == 1:
            return candidate.files[others[0]].uri
    return ""


def _read_yaml(storage: Storage, uri: str) -> dict[str, Any]:
    try:
        document = yaml.safe_load(read_text(storage, uri, MAX_XML_BYTES))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SourceError(f"{uri} is not YAML ({shorten(str(error))}); fix it") from None
    if not isinstance(document, dict):
        raise SourceError(f"{uri} is not a YOLO data set: it has no keys such as train and names")
    return document


def _names(document: Mapping[str, Any], uri: str) -> tuple[str, ...] | None:
    """Return the class names by number, from a list or a mapping."""
    names = document.get("names")
    if names is None:
        return None
    if isinstance(names, list):
        names = dict(enumerate(names))
    keys = [to_key(key) for key in names] if isinstance(names, dict) else []
    if not keys or set(keys) != set(range(len(keys))):
        raise SourceError(
            f"{uri}: names is {shorten(repr(names))}; it must be a list, or a mapping from 0, 1, "
            "2, ... to names"
        )
    by_number = dict(zip(keys, names.values(), strict=True))
    return _distinct((str(by_number[i]) for i in range(len(keys))), uri)


def _names_of_files(storage: Storage, tree: FileTree) -> tuple[str, ...] | None:
    for name in _NAME_FILES:
        if name in tree.files:
            uri = tree.files[name].uri
            lines = (line.strip() for line in read_text_lines(storage, uri))
            return _distinct((line for line in lines if line), uri)
    return None


def _distinct(names: Iterator[str], uri: str) -> tuple[str, ...]:
    result: dict[str, None] = {}
    for number, name in enumerate(names):
        text = non_empty_text(name, f"{uri}: name of class {number}")
        if text in result:
            raise SourceError(f"{uri}: two classes are called {text!r}; rename one of them")
        result[text] = None
    return tuple(result)


def _splits_of_yaml(
    storage: Storage, tree: FileTree, document: Mapping[str, Any], uri: str, report: ImportReport
) -> dict[str | None, list[DatasetFile]]:
    """Return the images of each split."""
    base = document.get("path")
    split_of: dict[str | None, list[DatasetFile]] = {}
    missing: list[str] = []
    for key, split in _SPLIT_KEYS.items():
        entries = document.get(key) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            found = _find_entry(tree, str(base or ""), str(entry))
            if found is None:
                missing.append(f"{key}: {shorten(str(entry))}")
            else:
                split_of.setdefault(split, []).extend(_images_of(storage, tree, found, report))
    if not split_of:
        raise ConfigError(
            f"{uri}: {missing[0]!r} is neither a folder nor a .txt list below {tree.base}; set "
            "--images to the folder that `path` should name"
        )
    for entry in missing:
        report.record("split_missing", f"{uri}: {entry}")
    # YOLO requires a validation split, so many files repeat that of the training.
    train = {file.uri for file in split_of.get("train", ())}
    for name in [name for name in split_of if name != "train"]:
        if {file.uri for file in split_of[name]} == train:
            del split_of[name]
            report.record("split_repeated", f"{uri}: {name}")
    return split_of


def _find_entry(tree: FileTree, base: str, entry: str) -> str | None:
    """Return the folder ("" is all) or the list that an entry names, by the end of its path.

    At least two parts of a longer entry must exist, so that `train/images` is not any `images`.
    """
    parts = path_parts(entry)
    if not parts:
        return ""
    full = [*path_parts(base), *parts]
    for start in range(len(full) - min(2, len(parts)) + 1):
        path = "/".join(full[start:])
        if path in tree.files or any(name.startswith(f"{path}/") for name in tree.files):
            return path
    return None


def _images_of(
    storage: Storage, tree: FileTree, path: str, report: ImportReport
) -> Iterator[DatasetFile]:
    """Yield the images of a folder or a list."""
    if path not in tree.files:
        below = tree.below(path) if path else tree.files
        yield from (file for name, file in below.items() if is_image(name))
        return
    lookup = ImageLookup(tree)
    folder = path.rpartition("/")[0]
    for line in read_text_lines(storage, tree.files[path].uri):
        name = line.strip()
        if not name:
            continue
        local = "/".join([*([folder] if folder else []), *path_parts(name)])
        match = lookup.find(local if local in tree.files else name)
        if match.issue:
            action = report.record(match.issue, f"{tree.files[path].uri}: {name}")
            if match.file is None or action != "keep":
                report.num_found += 1
                continue
        if match.file is not None:
            yield match.file


def _splits_of_lists(
    storage: Storage, tree: FileTree, report: ImportReport
) -> dict[str | None, list[DatasetFile]]:
    """Return the images of each split from train.txt, ... or else from the names of folders."""
    split_of: dict[str | None, list[DatasetFile]] = {}
    for name, split in _LISTS.items():
        if name in tree.files:
            images = list(_images_of(storage, tree, name, report))
            split_of.setdefault(split, []).extend(images)
    if split_of:
        return split_of
    for name, file in tree.files.items():
        if is_image(name):
            folders = [part.lower() for part in name.split("/")[:-1]]
            names = [SPLIT_FOLDERS[part] for part in folders if part in SPLIT_FOLDERS]
            split_of.setdefault(names[0] if names else None, []).append(file)
    return split_of


def _with_labels(
    tree: FileTree, split_of: Mapping[str | None, list[DatasetFile]], report: ImportReport
) -> list[YoloImage]:
    """Return the images with their label files; those in no split, and files without an image."""
    path_of = {file.uri: name for name, file in tree.files.items()}
    used: dict[str, str | None] = {}  # path of an image → split
    for split in _PRECEDENCE:
        for file in split_of.get(split, ()):
            name = path_of[file.uri]
            first = used.setdefault(name, split)
            if first != split:
                report.record("in_two_splits", f"{file.uri} in {first} and {split}")
    images, labels = [], set()
    for name in sorted(name for name in tree.files if is_image(name)):
        file = tree.files[name]
        report.num_found += 1
        label = next((path for path in _label_paths(name) if path in tree.files), None)
        if name not in used:
            if report.record("unlisted", file.uri) != "split":
                continue
            used[name] = None
        if label in labels:
            report.record("duplicate", file.uri)
            continue
        if label is not None:
            labels.add(label)
        images.append(YoloImage(file, used[name], tree.files[label] if label else None))
    _count_labels_without_image(tree, report)
    return images


def _label_paths(image: str) -> list[str]:
    """Return where the labels of an image may be: the last folder `images` becomes `labels`."""
    stem = stem_of(image)
    parts = stem.split("/")
    positions = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    replaced = [[*parts[:i], "labels", *parts[i + 1 :]] for i in positions[-1:]]
    return [f"{'/'.join(path)}.txt" for path in replaced] + [f"{stem}.txt"]


def _count_labels_without_image(tree: FileTree, report: ImportReport) -> None:
    with_image = {path for name in tree.files if is_image(name) for path in _label_paths(name)}
    for name, file in sorted(tree.files.items()):
        is_label = "labels" in name.split("/")[:-1] and name.endswith(".txt")
        if is_label and name not in with_image and not name.endswith("/classes.txt"):
            report.num_found += 1
            report.record("image_missing", file.uri)
