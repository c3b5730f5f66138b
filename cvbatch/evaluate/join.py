"""Predicted and labelled images are brought together by their ids; of the rows no answer is read.

Three things may tell which truth belongs to a predicted image: its `image_id`; its row, where the
labelled Parquet itself was predicted and the image's id is `<file>#<row>`; or its file's name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cvbatch.config.predict import SCHEMA_VERSION
from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.datasets.reader import files_of
from cvbatch.results.parts import Part
from cvbatch.storage import store

KINDS = ("image_id", "row", "name")
_COLUMNS = ("labels", "boxes", "mask")
_THREADS = 16
_SHOWN = 3


@dataclass(frozen=True)
class GroundTruth:
    """Labelled images, as far as they are known without reading a label."""

    uris: tuple[str, ...]  # of the files
    classes: dict[str, tuple[str, ...]]  # of the columns labels, boxes and mask
    is_multi_label: bool
    image_id: pa.Array  # N, large_string
    file: np.ndarray  # (N,) int32 into uris
    row: np.ndarray  # (N,) int64 in the file
    is_wanted: np.ndarray  # (N,) bool: of a split that is asked for
    identity: str  # SHA-256 of the files' names and sizes


class Piece(NamedTuple):
    """Images of one part with the places of their truths."""

    part_uri: str
    part_row: np.ndarray  # (n,) int64
    truth_uris: tuple[str, ...]
    truth_file: np.ndarray  # (n,) int64 into truth_uris; (0,) without a truth
    truth_row: np.ndarray  # (n,) int64; (0,) without a truth

    def take(self, rows: np.ndarray) -> Piece:  # (k,) int64
        """Return some of the images."""
        has_truth = len(self.truth_uris) > 0
        return self._replace(
            part_row=self.part_row[rows],
            truth_file=self.truth_file[rows] if has_truth else self.truth_file,
            truth_row=self.truth_row[rows] if has_truth else self.truth_row,
        )


class Joined(NamedTuple):
    """Which images are on both sides, and which on one."""

    kind: str  # one of KINDS; "" where there is no truth
    pieces: list[Piece]
    no_truth: pa.Array  # ids of predicted images
    no_prediction: pa.Array  # ids of labelled images
    num_other_splits: int  # predicted images whose truth is of a split that is not asked for

    @property
    def num_images(self) -> int:
        """Return how many images are on both sides."""
        return sum(len(piece.part_row) for piece in self.pieces)


def find_truth(uris: Sequence[str], splits: Sequence[str] | None) -> GroundTruth:
    """Return which images labelled Parquet holds; no image and no label is read.

    Raises:
        SourceError: nothing is found, the files differ in their classes, or a split is not there.
    """
    named = [found for uri in uris for found in files_of(store.absolute(uri))]
    if not named:
        raise SourceError(
            f"truth {', '.join(uris)} holds no labelled Parquet; import the data with cvbatch "
            "import"
        )
    with ThreadPoolExecutor(_THREADS) as pool:
        read = list(pool.map(lambda one: _read(one[0]), named))
    said = read[0][0]
    for (uri, _), (other, _) in zip(named, read, strict=True):
        if other != said:
            raise SourceError(
                f"truth: {uri} and {named[0][0]} differ in their columns or classes; import both "
                "with the same --classes, or evaluate them one by one"
            )
    counts = [table.num_rows for _, table in read]
    split = pa.concat_tables([table for _, table in read])
    missing = sorted(set(splits or ()) - set(pc.unique(split["split"]).to_pylist()))
    if missing:
        there = ", ".join(map(repr, pc.unique(split["split"]).to_pylist())) or "none"
        raise SourceError(f"truth.splits: no image is of split {missing[0]!r}; there are {there}")
    is_wanted = np.ones(split.num_rows, bool)
    if splits:
        is_wanted = pc.is_in(split["split"], pa.array(splits)).to_numpy()
    identity = [[uri.rpartition("/")[2], size] for uri, size in named]
    return GroundTruth(
        uris=tuple(uri for uri, _ in named),
        classes={name: tuple(names) for name, names in said["classes"].items()},
        is_multi_label=bool(said["is_multi_label"]),
        image_id=split["image_id"].combine_chunks(),
        file=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        row=np.concatenate([np.arange(count, dtype=np.int64) for count in counts]),
        is_wanted=is_wanted,
        identity=hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
    )


def _read(uri: str) -> tuple[dict[str, Any], pa.Table]:
    """Return what a file says of its labels, and the ids and splits of its images."""
    try:
        with store.open_input(uri) as source:
            file = pq.ParquetFile(source)
            said = json.loads((file.metadata.metadata or {}).get(b"cvbatch", b"null"))
            if not isinstance(said, dict) or said.get("kind") != "labels":
                raise SourceError(f"{uri} is not labelled data; import it with cvbatch import")
            if said["schema_version"] != SCHEMA_VERSION:
                raise SourceError(
                    f"{uri} has schema version {said['schema_version']}, and this cvbatch reads "
                    f"{SCHEMA_VERSION}; import the data again"
                )
            names = [name for name in _COLUMNS if name in file.schema_arrow.names]
            classes = {name: said["classes"][name] for name in names if said["classes"].get(name)}
            table = file.read(["image_id", "split"])
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        raise SourceError(
            f"{uri} cannot be read as labelled Parquet ({str(error)[:200]}); import the data again"
        ) from None
    ids = table["image_id"].cast(pa.large_string())
    about = {"classes": classes, "is_multi_label": said["is_multi_label"]}
    return about, table.set_column(0, "image_id", ids)


def join(parts: Sequence[Part], truth: GroundTruth, kind: str | None) -> Joined:
    """Return which predicted image has which truth.

    kind: one of KINDS. None: image_id or row, whichever finds common images.

    Raises:
        SourceError: no image is on both sides, or two of one side are told apart by nothing.
        ConfigError: both kinds find some.
    """
    ids = pa.chunked_array([part.image_id for part in parts], pa.large_string()).combine_chunks()
    kind = kind or _common_kind(ids, truth)
    theirs, ours = _truth_keys(truth, kind), _keys(ids, kind)
    for keys, side in ((theirs, "truth"), (ours, "predictions")):
        if pc.count_distinct(keys).as_py() < len(keys):
            twice = pc.value_counts(keys).sort(order="descending", by="counts")[0]["values"]
            raise SourceError(
                f"{side}: {twice} names more than one image; join by another of {', '.join(KINDS)} "
                "(evaluation.join), or evaluate fewer folders at once"
            )
    found = pc.fill_null(pc.index_in(ours, value_set=theirs), -1).to_numpy().astype(np.int64)
    has_truth = found >= 0
    if not has_truth.any():
        raise _nothing_common(ids, truth, kind)
    is_scored = has_truth & truth.is_wanted[found]
    if not is_scored.any():
        raise SourceError(
            "truth.splits: every image that is on both sides is of another split; name the one "
            "that was predicted"
        )
    is_hit = np.zeros(len(truth.row), bool)
    is_hit[found[has_truth]] = True
    return Joined(
        kind,
        _pieces(parts, truth, found, is_scored),
        ids.filter(pa.array(~has_truth)),
        truth.image_id.filter(pa.array(truth.is_wanted & ~is_hit)),
        int((has_truth & ~is_scored).sum()),
    )


def only_predicted(parts: Sequence[Part]) -> Joined:
    """Return all predicted images, where there is no truth to be joined with."""
    none = np.zeros(0, np.int64)
    pieces = [Piece(part.uri, np.arange(len(part.image_id)), (), none, none) for part in parts]
    nothing = pa.array([], pa.large_string())
    return Joined("", pieces, nothing, nothing, 0)


def _pieces(
    parts: Sequence[Part],
    truth: GroundTruth,
    found: np.ndarray,  # (P,)
    is_scored: np.ndarray,  # (P,)
) -> list[Piece]:
    pieces, start = [], 0
    for part in parts:
        own = slice(start, start + len(part.image_id))
        start = own.stop
        rows = np.flatnonzero(is_scored[own])
        if len(rows):
            places = found[own][rows]
            files, file = np.unique(truth.file[places], return_inverse=True)
            uris = tuple(truth.uris[i] for i in files)
            pieces.append(Piece(part.uri, rows, uris, file, truth.row[places]))
    return pieces


def _common_kind(ids: pa.Array, truth: GroundTruth) -> str:
    """Return the kind of key that finds common images."""
    shared = [
        kind
        for kind in ("image_id", "row")
        if pc.any(pc.is_in(_keys(ids, kind), value_set=_truth_keys(truth, kind))).as_py()
    ]
    if len(shared) > 1:
        raise ConfigError(
            "evaluation.join: images are common by their image_id and by their row in the labelled "
            "files; say which of the two is meant"
        )
    if not shared:
        raise _nothing_common(ids, truth, "image_id or row")
    return shared[0]


def _nothing_common(ids: pa.Array, truth: GroundTruth, kind: str) -> SourceError:
    by_name = pc.is_in(_keys(ids, "name"), value_set=_truth_keys(truth, "name"))
    remedy = "evaluate against the labels of the images that were predicted"
    if kind != "name" and pc.any(by_name).as_py():
        remedy = "say evaluation.join: name, as some have the same file name"
    shown = [", ".join(side.slice(0, _SHOWN).to_pylist()) for side in (ids, truth.image_id)]
    return SourceError(
        f"predictions and truth have no image in common by {kind}: predicted are {shown[0]}, ..., "
        f"labelled are {shown[1]}, ...; {remedy}"
    )


def _keys(ids: pa.Array, kind: str) -> pa.Array:
    return ids if kind == "image_id" else pc.replace_substring_regex(ids, r"^.*/", "")


def _truth_keys(truth: GroundTruth, kind: str) -> pa.Array:
    if kind != "row":
        return _keys(truth.image_id, kind)
    names = pa.array([uri.rpartition("/")[2] for uri in truth.uris], pa.large_string())
    numbers = pa.array(truth.row).cast(pa.large_string())
    return pc.binary_join_element_wise(
        names.take(pa.array(truth.file)), numbers, pa.scalar("#", pa.large_string())
    )


def read_piece(
    piece: Piece, answers: Sequence[str], labels: Sequence[str]
) -> tuple[pa.Table, pa.Table]:
    """Return columns of the predicted rows of a piece, and of their truths, in the same order.

    Where there is no truth, the second has no columns.

    Raises:
        SourceError: a file is not what it was when the job began.
    """
    try:
        with store.open_input(piece.part_uri) as source:
            said = pq.ParquetFile(source).read(list(answers)).take(pa.array(piece.part_row))
        if not piece.truth_uris:
            return said, said.select([])
        parts, places = [], []
        for number, uri in enumerate(piece.truth_uris):
            place = np.flatnonzero(piece.truth_file == number)
            parts.append(_rows_of(uri, piece.truth_row[place], labels))
            places.append(place)
        order = np.argsort(np.concatenate(places))
        return said, pa.concat_tables(parts).take(pa.array(order))
    except (pa.ArrowException, OSError, LookupError) as error:
        raise SourceError(
            f"{piece.part_uri} or its truth cannot be read any more ({str(error)[:200]}); put the "
            "files there as they were"
        ) from None


def _rows_of(uri: str, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:  # (n,) → n rows
    """Return some rows of a file; only the row groups they are in are read."""
    with store.open_input(uri) as source:
        file = pq.ParquetFile(source)
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        ends = np.cumsum(sizes)
        group = np.searchsorted(ends, rows, "right")
        used, of_used = np.unique(group, return_inverse=True)
        names = [name for name in columns if name in file.schema_arrow.names]
        table = file.read_row_groups(used.tolist(), names)
        begins = np.concatenate([[0], np.cumsum(np.array(sizes)[used])])[:-1]
        place = rows - (ends - sizes)[group] + begins[of_used]
        return table.take(pa.array(place))
