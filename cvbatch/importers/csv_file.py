"""Parse a CSV file with a column of image paths and a column of classes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.core.suggestions import hint
from cvbatch.core.types import Item
from cvbatch.importers.annotations import AnnotatedBatch, AnnotatedDataset, Annotation
from cvbatch.importers.class_table import ClassTable
from cvbatch.importers.dataset_files import SPLIT_FOLDERS, in_hash_order, list_tree, to_item
from cvbatch.importers.image_lookup import ImageLookup, path_parts
from cvbatch.importers.import_report import ImportReport
from cvbatch.importers.options import ImportOptions
from cvbatch.importers.parsing import MAX_LIST_BYTES, is_unicode, read_text, shorten
from cvbatch.sources.readers import ChunkReader

IMAGE_COLUMNS = ("image", "file_name", "filename", "image_path", "path", "file", "image_id", "img")
CLASS_COLUMNS = ("class", "label", "labels", "classes", "category", "class_name", "target")
SPLIT_COLUMNS = ("split", "set", "subset")
_DELIMITERS = (",", ";", "\t", "|")
_MAX_FIELD_CHARS = 1 << 20


class _Row(NamedTuple):
    where: str
    name: str
    classes: tuple[str, ...]
    split: str | None


def read_csv(source: str, options: ImportOptions, report: ImportReport) -> AnnotatedDataset:
    """Return the classes in a CSV file whose first line names the columns.

    Paths are relative to the file, or to --images. A column `split` is optional.

    Raises:
        SourceError: the file cannot be read or lacks a column.
        ConfigError: an option names no column.
    """
    lookup = None
    if options.has_images:
        folder = options.images or source.rpartition("/")[0]
        lookup = ImageLookup(list_tree(options.storage, folder, report))
    items: dict[str, Item] = {}
    classes_of: dict[str, tuple[str, ...]] = {}
    split_of: dict[str, str | None] = {}
    for row in _rows(source, options, report):
        item = _find(row, lookup, report)
        if item is None:
            report.num_found += 1
            continue
        first = classes_of.get(item.image_id)
        if first is not None and options.separator is None:
            report.num_found += 1
            report.record("duplicate", f"{row.where}: {row.name} is also {', '.join(first)}")
            continue
        report.num_found += first is None
        items[item.image_id] = item
        classes_of[item.image_id] = tuple(dict.fromkeys([*(first or ()), *row.classes]))
        split_of.setdefault(item.image_id, row.split)
    names = {name for names in classes_of.values() for name in names}
    table = ClassTable.of(names, options.classes)
    annotations = {
        image_id: Annotation(
            image_id=image_id,
            split=None if options.split else split_of[image_id],
            labels=[(int(i), 1.0) for i in sorted(table.ids(names).tolist())],
        )
        for image_id, names in classes_of.items()
    }
    batch = AnnotatedBatch(
        in_hash_order(items.values()), annotations, ChunkReader(options.storage, "images", "image")
    )
    return AnnotatedDataset(
        ("labels",),
        {"labels": table.names},
        options.separator is not None,
        lambda _: iter([batch]),
        unknown_label_kind="label_unknown",
    )


def _find(row: _Row, lookup: ImageLookup | None, report: ImportReport) -> Item | None:
    """Return the image of a row; None if it is dropped, which is recorded."""
    if not path_parts(row.name) or not is_unicode(row.name):
        report.record("image_invalid", f"{row.where}: the image is {shorten(ascii(row.name))}")
        return None
    if lookup is None:
        return Item("", "/".join(path_parts(row.name)), 0)
    match = lookup.find(row.name)
    if match.issue:
        found = f", found {match.file.uri}" if match.file else ""
        action = report.record(match.issue, f"{row.where}: {row.name}{found}")
        if match.file is None or action != "keep":
            return None
    return None if match.file is None else to_item(match.file)


def _rows(source: str, options: ImportOptions, report: ImportReport) -> Iterator[_Row]:
    text = read_text(options.storage, source, MAX_LIST_BYTES)
    first = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)
    csv.field_size_limit(_MAX_FIELD_CHARS)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        header = [name.strip() for name in next(lines, [])]
        image = _column(source, header, options.image_column, IMAGE_COLUMNS, "--image-column")
        label = _column(source, header, options.class_column, CLASS_COLUMNS, "--class-column")
        split = _optional_column(header, SPLIT_COLUMNS)
        for cells in lines:
            where = f"{source}, line {lines.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            cells += [""] * (len(header) - len(cells))
            classes = _classes(cells[label], options.separator)
            if not classes and options.separator is None:
                report.num_found += 1
                example = f"{where}: {shorten(cells[image])} has no class"
                report.record("annotation_missing", example)
                continue
            declared = cells[split].strip().lower() if split is not None else ""
            yield _Row(where, cells[image].strip(), classes, SPLIT_FOLDERS.get(declared))
    except csv.Error as error:
        raise SourceError(f"{source}, line {lines.line_num}: {error}; fix the line") from None


def _classes(cell: str, separator: str | None) -> tuple[str, ...]:
    parts = [cell] if separator is None else cell.split(separator)
    return tuple(part.strip() for part in parts if part.strip())


def _column(
    source: str, header: Sequence[str], specified: str | None, known: Sequence[str], flag: str
) -> int:
    """Return the position of a column: the specified one, or the first of the known names."""
    if specified is not None:
        if specified not in header:
            raise ConfigError(
                f"{flag} {specified!r} is no column of {source}; {hint(specified, header)}"
            )
        return header.index(specified)
    position = _optional_column(header, known)
    if position is None:
        raise SourceError(
            f"{source} has the columns {shorten(', '.join(header))}, none of which is called "
            f"{', '.join(known[:3])}, ...; set {flag}"
        )
    return position


def _optional_column(header: Sequence[str], known: Sequence[str]) -> int | None:
    lower = [name.lower() for name in header]
    return next((lower.index(name) for name in known if name in lower), None)
