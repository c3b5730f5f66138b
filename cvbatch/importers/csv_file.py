"""Parse a CSV file with a column of image paths and a column of classes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.core.suggestions import hint
from cvbatch.core.types import Item
from cvbatch.importers.annotations import AnnotatedDataset, Annotation, one_batch
from cvbatch.importers.class_table import ClassTable
from cvbatch.importers.dataset_files import SPLIT_FOLDERS, list_tree, to_item
from cvbatch.importers.image_lookup import ImageLookup, path_parts
from cvbatch.importers.import_report import ImportReport
from cvbatch.importers.options import ImportOptions
from cvbatch.importers.parsing import MAX_LIST_BYTES, is_unicode, read_text, shorten

IMAGE_COLUMNS = (
    "image", "file_name", "filename", "image_path", "path", "file", "image_name", "image_id", "img",
    "id",
)  # fmt: skip
CLASS_COLUMNS = (
    "class", "label", "labels", "classes", "category", "class_name", "label_name", "target",
)  # fmt: skip
SPLIT_COLUMNS = ("split", "set", "subset")
_DELIMITERS = (",", ";", "\t", "|")
_MAX_FIELD_CHARS = 1 << 20


class _Row(NamedTuple):
    where: str
    name: str
    classes: tuple[str, ...]
    split: str | None


class _Columns(NamedTuple):
    """Positions of the columns."""

    image: int
    label: int | None  # None: each class has a column of 0 and 1
    split: int | None
    classes: dict[str, int]  # name → column; {} if there is a column of classes


def read_csv(source: str, options: ImportOptions, report: ImportReport) -> AnnotatedDataset:
    """Return the classes in a CSV file whose first line names the columns.

    Paths are relative to the file, or to --images. The classes are in one column, or each has a
    column of 0 and 1. A column `split` is optional.

    Raises:
        SourceError: the file cannot be read or lacks a column.
        ConfigError: an option names no column.
    """
    lookup = None
    if options.has_images:
        folder = options.images or source.rpartition("/")[0]
        lookup = ImageLookup(list_tree(options.storage, folder, report))
    lines = _lines(source, options)
    columns = _find_columns(source, [name.strip() for name in next(lines)[1]], options)
    rows: dict[str, tuple[Item, _Row]] = {}  # by image id
    for row in _rows(lines, columns, options, report):
        item = _find(row, lookup, report)
        if item is None:
            report.num_found += 1
            continue
        if item.image_id not in rows:
            report.num_found += 1
            rows[item.image_id] = item, row
        elif options.separator is None:
            report.num_found += 1
            report.record("duplicate", f"{row.where}: {row.name}")
        else:
            classes = dict.fromkeys([*rows[item.image_id][1].classes, *row.classes])
            rows[item.image_id] = item, row._replace(classes=tuple(classes))
    names = {name for _, row in rows.values() for name in row.classes}
    table = ClassTable.of(list(columns.classes) or names, options.classes)
    annotations = {
        image_id: Annotation(
            image_id=image_id,
            split=None if options.split else row.split,
            labels=[(int(i), 1.0) for i in sorted(table.ids(row.classes).tolist())],
        )
        for image_id, (_, row) in rows.items()
    }
    return AnnotatedDataset(
        ("labels",),
        {"labels": table.names},
        options.separator is not None or columns.label is None,
        one_batch(options.storage, (item for item, _ in rows.values()), annotations),
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


def _lines(source: str, options: ImportOptions) -> Iterator[tuple[str, list[str]]]:
    """Yield the place and the cells of each line that is not empty; the header first."""
    text = read_text(options.storage, source, MAX_LIST_BYTES)
    delimiter = max(_DELIMITERS, key=text.partition("\n")[0].count)
    csv.field_size_limit(_MAX_FIELD_CHARS)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    is_header = True
    try:
        for cells in lines:
            if is_header or any(cell.strip() for cell in cells):
                yield f"{source}, line {lines.line_num}", cells
            is_header = False
    except csv.Error as error:
        raise SourceError(f"{source}, line {lines.line_num}: {error}; fix the line") from None
    if is_header:
        yield source, []


def _find_columns(source: str, header: Sequence[str], options: ImportOptions) -> _Columns:
    image = _column(source, header, options.image_column, IMAGE_COLUMNS, "--image-column")
    split = _optional_column(header, SPLIT_COLUMNS)
    others = {name: i for i, name in enumerate(header) if i not in (image, split)}
    position = _optional_column(header, CLASS_COLUMNS)
    if options.class_column is None and position is None and len(others) > 1:
        return _Columns(image, None, split, others)
    label = _column(source, header, options.class_column, CLASS_COLUMNS, "--class-column")
    return _Columns(image, label, split, {})


def _rows(
    lines: Iterator[tuple[str, list[str]]],
    columns: _Columns,
    options: ImportOptions,
    report: ImportReport,
) -> Iterator[_Row]:
    width = 1 + max(columns.image, columns.label or 0, columns.split or 0)
    width = max(width, *(position + 1 for position in columns.classes.values()), 0)
    for where, line in lines:
        cells = [cell.strip() for cell in line] + [""] * (width - len(line))
        if columns.label is None:
            classes = _marked(cells, columns.classes, where)
        else:
            classes = _classes(cells[columns.label], options.separator)
            if not classes and options.separator is None:
                report.num_found += 1
                example = f"{where}: {shorten(cells[columns.image])} has no class"
                report.record("annotation_missing", example)
                continue
        declared = "" if columns.split is None else cells[columns.split].lower()
        yield _Row(where, cells[columns.image], classes, SPLIT_FOLDERS.get(declared))


def _marked(cells: Sequence[str], classes: Mapping[str, int], where: str) -> tuple[str, ...]:
    """Return the names of the columns that are 1.

    Raises:
        SourceError: a value is neither 0 nor 1.
    """
    for name, position in classes.items():
        if cells[position] not in ("0", "1"):
            raise SourceError(
                f"{where}: no column is called {', '.join(CLASS_COLUMNS[:3])}, ..., so each class "
                f"must have a column of 0 and 1, but {name!r} is {shorten(repr(cells[position]))}; "
                "set --class-column"
            )
    return tuple(name for name, position in classes.items() if cells[position] == "1")


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
