"""Join predicted and labelled images by their ids, without reading predictions or labels.

The key is one of three: the `image_id`; the row, where the labelled Parquet itself was predicted
and the image's id is `<file>#<row>`; or the file's name.
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
from cvbatch.core.tasks import CLASS_COLUMNS
from cvbatch.core.types import ChunkRef
from cvbatch.datasets.reader import files_of
from cvbatch.results.parts import take_rows
from cvbatch.results.result import Result
from cvbatch.storage import store

JOIN_KEYS = ("image_id", "row", "name")
_THREADS = 16
_SHOWN = 3


@dataclass(frozen=True)
class GroundTruth:
    """Ids, splits and classes of labelled images."""

    uris: tuple[str, ...]  # of the files
    classes: dict[str, tuple[str, ...]]  # of the columns labels, boxes and mask
    is_multi_label: bool
    image_id: pa.Array  # N, large_string
    file: np.ndarray  # (N,) int32 into uris
    row: np.ndarray  # (N,) int64 in the file
    is_wanted: np.ndarray  # (N,) bool: of a split that is evaluated
    identity: str  # SHA-256 of the files' names and sizes


class JoinedPart(NamedTuple):
    """Images of one part of a result, with the places of their labels."""

    ref: ChunkRef
    part_uri: str
    part_row: np.ndarray  # (n,) int64
    truth_uris: tuple[str, ...]
    truth_file: np.ndarray  # (n,) int64 into truth_uris; (0,) without a truth
    truth_row: np.ndarray  # (n,) int64; (0,) without a truth

    def take(self, rows: np.ndarray) -> JoinedPart:  # (k,) int64
        """Return some of the images."""
        has_truth = len(self.truth_uris) > 0
        return self._replace(
            part_row=self.part_row[rows],
            truth_file=self.truth_file[rows] if has_truth else self.truth_file,
            truth_row=self.truth_row[rows] if has_truth else self.truth_row,
        )


class JoinResult(NamedTuple):
    """The images that are both predicted and labelled, and those that are only one of it."""

    kind: str  # one of KINDS; "" where there is no truth
    parts: list[JoinedPart]
    no_truth: pa.Array  # ids of predicted images
    no_prediction: pa.Array  # ids of labelled images
    num_other_splits: int  # predicted images whose labels are of a split that is not evaluated

    @property
    def num_images(self) -> int:
        """Return how many images are on both sides."""
        return sum(len(piece.part_row) for piece in self.parts)


def load_ground_truth(uris: Sequence[str], splits: Sequence[str] | None) -> GroundTruth:
    """Return the images of labelled Parquet; no image and no label is read.

    Args:
        uris: files or folders.
        splits: that are evaluated; None: all.

    Raises:
        SourceError: there is no such file, the files differ in their classes, or no image is of a
            split.
    """
    named = [file for uri in uris for file in files_of(store.absolute(uri))]
    if not named:
        raise SourceError(
            f"truth {', '.join(uris)} holds no labelled Parquet; import the data with cvbatch "
            "import"
        )
    with ThreadPoolExecutor(_THREADS) as pool:
        read = list(pool.map(lambda one: _read(one[0]), named))
    about = read[0][0]
    for (uri, _), (other, _) in zip(named, read, strict=True):
        if other != about:
            raise SourceError(
                f"truth: {uri} and {named[0][0]} differ in their columns or classes; import both "
                "with the same --classes, or evaluate them one by one"
            )
    counts = [table.num_rows for _, table in read]
    split = pa.concat_tables([table for _, table in read])
    missing = sorted(set(splits or ()) - set(pc.unique(split["split"]).to_pylist()))
    if missing:
        known = ", ".join(map(repr, pc.unique(split["split"]).to_pylist())) or "none"
        raise SourceError(f"truth.splits: no image is of split {missing[0]!r}; there are {known}")
    is_wanted = np.ones(split.num_rows, bool)
    if splits:
        is_wanted = pc.is_in(split["split"], pa.array(splits)).to_numpy()
    identity = [[uri.rpartition("/")[2], size] for uri, size in named]
    return GroundTruth(
        uris=tuple(uri for uri, _ in named),
        classes={name: tuple(names) for name, names in about["classes"].items()},
        is_multi_label=bool(about["is_multi_label"]),
        image_id=split["image_id"].combine_chunks(),
        file=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        row=np.concatenate([np.arange(count, dtype=np.int64) for count in counts]),
        is_wanted=is_wanted,
        identity=hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
    )


def _read(uri: str) -> tuple[dict[str, Any], pa.Table]:
    """Return a file's class tables, and the ids and splits of its images."""
    try:
        with store.open_input(uri) as source:
            file = pq.ParquetFile(source)
            metadata = json.loads((file.metadata.metadata or {}).get(b"cvbatch", b"null"))
            if not isinstance(metadata, dict) or metadata.get("kind") != "labels":
                raise SourceError(f"{uri} is not labelled data; import it with cvbatch import")
            if metadata["schema_version"] != SCHEMA_VERSION:
                raise SourceError(
                    f"{uri} has schema version {metadata['schema_version']}, and this cvbatch "
                    f"reads {SCHEMA_VERSION}; import the data again"
                )
            names = [name for name in CLASS_COLUMNS if name in file.schema_arrow.names]
            classes = {
                name: metadata["classes"][name] for name in names if metadata["classes"].get(name)
            }
            table = file.read(["image_id", "split"])
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        raise SourceError(
            f"{uri} cannot be read as labelled Parquet ({str(error)[:200]}); import the data again"
        ) from None
    ids = table["image_id"].cast(pa.large_string())
    about = {"classes": classes, "is_multi_label": metadata["is_multi_label"]}
    return about, table.set_column(0, "image_id", ids)


def join(result: Result, truth: GroundTruth, kind: str | None) -> JoinResult:
    """Return which predicted image has which labels.

    Args:
        result: the predictions; of their rows only the image ids are read.
        truth: the labels.
        kind: one of KINDS; None: image_id or row, the one by which images are common.

    Raises:
        SourceError: no image is on both sides, two of one side have the same key, or the result
            is damaged.
        ConfigError: images are common by both kinds.
    """
    ids_of_parts = result.image_ids()
    ids = pa.chunked_array(ids_of_parts, pa.large_string()).combine_chunks()
    kind = kind or _common_kind(ids, truth)
    true_keys, keys = _truth_keys(truth, kind), _keys(ids, kind)
    for side, own in (("truth", true_keys), ("predictions", keys)):
        if pc.count_distinct(own).as_py() < len(own):
            twice = pc.value_counts(own).sort(order="descending", by="counts")[0]["values"]
            raise SourceError(
                f"{side}: {twice} names more than one image; join by another of "
                f"{', '.join(JOIN_KEYS)} (evaluation.join), or evaluate fewer folders at once"
            )
    places = pc.fill_null(pc.index_in(keys, value_set=true_keys), -1).to_numpy().astype(np.int64)
    has_truth = places >= 0
    if not has_truth.any():
        raise _nothing_common(ids, truth, kind)
    is_scored = has_truth & truth.is_wanted[places]
    if not is_scored.any():
        raise SourceError(
            "truth.splits: every image that is on both sides is of another split; name the one "
            "that was predicted"
        )
    is_predicted = np.zeros(len(truth.row), bool)
    is_predicted[places[has_truth]] = True
    return JoinResult(
        kind,
        _pieces(result, ids_of_parts, truth, np.where(is_scored, places, -1)),
        ids.filter(pa.array(~has_truth)),
        truth.image_id.filter(pa.array(truth.is_wanted & ~is_predicted)),
        int((has_truth & ~is_scored).sum()),
    )


def predictions_only(result: Result) -> JoinResult:
    """Return all predicted images, where there are no labels.

    Raises:
        SourceError: the result is damaged.
    """
    none = np.zeros(0, np.int64)
    pieces = [
        JoinedPart(ref, result.uri_of(ref), np.arange(len(ids)), (), none, none)
        for ref, ids in zip(result.done, result.image_ids(), strict=True)
    ]
    no_ids = pa.array([], pa.large_string())
    return JoinResult("", pieces, no_ids, no_ids, 0)


def _pieces(
    result: Result,
    ids_of_parts: Sequence[pa.Array],
    truth: GroundTruth,
    places: np.ndarray,  # (P,) of each predicted image in the truth; -1: not scored
) -> list[JoinedPart]:
    pieces, start = [], 0
    for ref, ids in zip(result.done, ids_of_parts, strict=True):
        own = places[start : start + len(ids)]
        start += len(ids)
        rows = np.flatnonzero(own >= 0)
        if len(rows):
            files, file = np.unique(truth.file[own[rows]], return_inverse=True)
            uris = tuple(truth.uris[i] for i in files)
            pieces.append(
                JoinedPart(ref, result.uri_of(ref), rows, uris, file, truth.row[own[rows]])
            )
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


def read_joined_part(
    piece: JoinedPart, columns: Sequence[str], truth_columns: Sequence[str]
) -> tuple[pa.Table, pa.Table]:
    """Return columns of the predicted rows of a piece, and of their labels, in the same order.

    Where there are no labels, the second table has no columns.

    Raises:
        SourceError: a file is not what it was when the job began.
    """
    predicted = take_rows(piece.part_uri, piece.part_row, columns)
    if not piece.truth_uris:
        return predicted, predicted.select([])
    tables, places = [], []
    for number, uri in enumerate(piece.truth_uris):
        place = np.flatnonzero(piece.truth_file == number)
        tables.append(take_rows(uri, piece.truth_row[place], truth_columns))
        places.append(place)
    order = np.argsort(np.concatenate(places))
    return predicted, pa.concat_tables(tables).take(pa.array(order))
