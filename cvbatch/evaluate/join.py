"""Join predicted and labelled images by a key, without reading predictions or labels.

The key is the `image_id`; the row, if the labelled Parquet itself was predicted, so that the image
id is `<file>#<row>`; or the file name.
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

from cvbatch.config.predict import SCHEMA_VERSION
from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.core.tasks import CLASS_COLUMNS
from cvbatch.core.types import ChunkRef
from cvbatch.datasets.reader import list_parquet_files
from cvbatch.datasets.schema import IMPORT_REMEDY, stored_metadata
from cvbatch.results.parts import take_rows
from cvbatch.results.result import Result
from cvbatch.storage import store
from cvbatch.storage.parquet import ParquetFile
from cvbatch.storage.store import Storage

JOIN_KEYS = ("image_id", "row", "name")
_THREADS = 16
_MAX_NAMED = 3  # ids of a side in a message


@dataclass(frozen=True)
class GroundTruth:
    """Ids, splits and classes of labelled images."""

    uris: tuple[str, ...]  # of the files
    classes: dict[str, tuple[str, ...]]  # of the columns labels, boxes and mask
    is_multi_label: bool
    image_id: pa.Array  # N, large_string
    file: np.ndarray  # (N,) int32 into uris
    row: np.ndarray  # (N,) int64 in the file
    is_evaluated: np.ndarray  # (N,) bool: in a split that is evaluated
    identity: str  # SHA-256 of the files' names and sizes


class JoinedPart(NamedTuple):
    """Images of one part of a result, with the locations of their labels."""

    storage: Storage
    ref: ChunkRef
    part_uri: str
    part_row: np.ndarray  # (n,) int64
    truth_uris: tuple[str, ...]
    truth_file: np.ndarray  # (n,) int64 into truth_uris; (0,) without labels
    truth_row: np.ndarray  # (n,) int64; (0,) without labels

    def take(self, rows: np.ndarray) -> JoinedPart:  # (k,) int64
        """Return some of the images."""
        has_truth = len(self.truth_uris) > 0
        return self._replace(
            part_row=self.part_row[rows],
            truth_file=self.truth_file[rows] if has_truth else self.truth_file,
            truth_row=self.truth_row[rows] if has_truth else self.truth_row,
        )


class JoinResult(NamedTuple):
    """Images that are predicted and labelled, and images that are only one of the two."""

    key: str  # one of JOIN_KEYS; "" without labels
    parts: list[JoinedPart]
    no_truth: pa.Array  # ids of predicted images
    no_prediction: pa.Array  # ids of labelled images
    num_other_splits: int  # predicted images in a split that is not evaluated

    @property
    def num_images(self) -> int:
        """Return the number of images that are predicted and labelled."""
        return sum(len(part.part_row) for part in self.parts)


def load_ground_truth(
    storage: Storage, uris: Sequence[str], splits: Sequence[str] | None
) -> GroundTruth:
    """Return ids, splits and classes of labelled Parquet, without its images and labels.

    Args:
        storage: of the files.
        uris: files or folders.
        splits: splits to evaluate; None: all.

    Raises:
        SourceError: there is no labelled Parquet, its files differ in their classes, or no image
            is in one of the splits.
    """
    files = [file for uri in uris for file in list_parquet_files(storage, store.absolute(uri))]
    if not files:
        raise SourceError(f"{', '.join(uris)} contains no labelled Parquet; {IMPORT_REMEDY}")
    with ThreadPoolExecutor(_THREADS) as pool:
        contents = list(pool.map(lambda file: _read_ids(storage, file[0]), files))
    class_tables = contents[0][0]
    for (uri, _), (other, _) in zip(files, contents, strict=True):
        if other != class_tables:
            raise SourceError(
                f"truth: {uri} and {files[0][0]} differ in their columns or classes; import both "
                "with the same --classes, or evaluate them one by one"
            )
    counts = [ids.num_rows for _, ids in contents]
    images = pa.concat_tables([ids for _, ids in contents])
    missing = sorted(set(splits or ()) - set(pc.unique(images["split"]).to_pylist()))
    if missing:
        known = ", ".join(map(repr, pc.unique(images["split"]).to_pylist())) or "none"
        raise SourceError(f"truth.splits: no image is in split {missing[0]!r}; there are {known}")
    is_evaluated = np.ones(images.num_rows, bool)
    if splits:
        is_evaluated = pc.is_in(images["split"], pa.array(splits)).to_numpy()
    identity = [[uri.rpartition("/")[2], size] for uri, size in files]
    return GroundTruth(
        uris=tuple(uri for uri, _ in files),
        classes={name: tuple(names) for name, names in class_tables["classes"].items()},
        is_multi_label=bool(class_tables["is_multi_label"]),
        image_id=images["image_id"].combine_chunks(),
        file=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        row=np.concatenate([np.arange(count, dtype=np.int64) for count in counts]),
        is_evaluated=is_evaluated,
        identity=hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
    )


def _read_ids(storage: Storage, uri: str) -> tuple[dict[str, Any], pa.Table]:
    """Return the class tables of a file, and image_id and split of its images."""
    try:
        with storage.open_input(uri) as source:
            file = ParquetFile(source)
            metadata = stored_metadata(file, uri, needs_images=False)
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
    class_tables = {"classes": classes, "is_multi_label": metadata["is_multi_label"]}
    return class_tables, table.set_column(0, "image_id", ids)


def join(result: Result, truth: GroundTruth, key: str | None) -> JoinResult:
    """Join the images of predictions and labels.

    Args:
        result: the predictions; only image ids are read.
        truth: the labels.
        key: one of JOIN_KEYS; None: image_id or row, whichever finds common images.

    Raises:
        SourceError: no image is predicted and labelled, two images have the same key, or the
            result is damaged.
        ConfigError: key is None, and both image_id and row find common images.
    """
    ids_of_parts = result.image_ids()
    ids = pa.chunked_array(ids_of_parts, pa.large_string()).combine_chunks()
    key = key or _common_key(ids, truth)
    true_keys, keys = _truth_keys(truth, key), _keys(ids, key)
    for side, values in (("truth", true_keys), ("predictions", keys)):
        if pc.count_distinct(values).as_py() < len(values):
            duplicate = pc.value_counts(values).sort(order="descending", by="counts")[0]["values"]
            raise SourceError(
                f"{side}: {duplicate} names more than one image; join by another of "
                f"{', '.join(JOIN_KEYS)} (evaluation.join), or evaluate fewer folders at once"
            )
    index = pc.fill_null(pc.index_in(keys, value_set=true_keys), -1).to_numpy().astype(np.int64)
    has_truth = index >= 0
    if not has_truth.any():
        raise _no_common_image(ids, truth, key)
    is_scored = has_truth & truth.is_evaluated[index]
    if not is_scored.any():
        raise SourceError(
            "truth.splits: all images that are predicted and labelled are in other splits; set the "
            "split that was predicted"
        )
    is_predicted = np.zeros(len(truth.row), bool)
    is_predicted[index[has_truth]] = True
    return JoinResult(
        key,
        _joined_parts(result, ids_of_parts, truth, np.where(is_scored, index, -1)),
        ids.filter(pa.array(~has_truth)),
        truth.image_id.filter(pa.array(truth.is_evaluated & ~is_predicted)),
        int((has_truth & ~is_scored).sum()),
    )


def predictions_only(result: Result) -> JoinResult:
    """Return all predicted images, without labels.

    Raises:
        SourceError: the result is damaged.
    """
    none = np.zeros(0, np.int64)
    parts = [
        JoinedPart(result.storage, ref, result.uri_of(ref), np.arange(len(ids)), (), none, none)
        for ref, ids in zip(result.done, result.image_ids(), strict=True)
    ]
    no_ids = pa.array([], pa.large_string())
    return JoinResult("", parts, no_ids, no_ids, 0)


def _joined_parts(
    result: Result,
    ids_of_parts: Sequence[pa.Array],
    truth: GroundTruth,
    index: np.ndarray,  # (P,) row of each predicted image in the truth; −1: not evaluated
) -> list[JoinedPart]:
    parts, start = [], 0
    for ref, ids in zip(result.done, ids_of_parts, strict=True):
        part_index = index[start : start + len(ids)]
        start += len(ids)
        rows = np.flatnonzero(part_index >= 0)
        if len(rows):
            truth_rows = part_index[rows]
            files, file = np.unique(truth.file[truth_rows], return_inverse=True)
            uris = tuple(truth.uris[i] for i in files)
            parts.append(
                JoinedPart(
                    result.storage, ref, result.uri_of(ref), rows, uris, file, truth.row[truth_rows]
                )
            )
    return parts


def _common_key(ids: pa.Array, truth: GroundTruth) -> str:
    """Return the key that finds common images."""
    shared = [
        key
        for key in ("image_id", "row")
        if pc.any(pc.is_in(_keys(ids, key), value_set=_truth_keys(truth, key))).as_py()
    ]
    if len(shared) > 1:
        raise ConfigError(
            "evaluation.join: images are common by their image_id and by their row in the labelled "
            "files; set one of the two"
        )
    if not shared:
        raise _no_common_image(ids, truth, "image_id or row")
    return shared[0]


def _no_common_image(ids: pa.Array, truth: GroundTruth, key: str) -> SourceError:
    by_name = pc.is_in(_keys(ids, "name"), value_set=_truth_keys(truth, "name"))
    remedy = "evaluate against the labels of the images that were predicted"
    if key != "name" and pc.any(by_name).as_py():
        remedy = "set evaluation.join: name, as some have the same file name"
    shown = [", ".join(side.slice(0, _MAX_NAMED).to_pylist()) for side in (ids, truth.image_id)]
    return SourceError(
        f"predictions and truth have no image in common by {key}: predicted are {shown[0]}, ..., "
        f"labelled are {shown[1]}, ...; {remedy}"
    )


def _keys(ids: pa.Array, key: str) -> pa.Array:
    return ids if key == "image_id" else pc.replace_substring_regex(ids, r"^.*/", "")


def _truth_keys(truth: GroundTruth, key: str) -> pa.Array:
    if key != "row":
        return _keys(truth.image_id, key)
    names = pa.array([uri.rpartition("/")[2] for uri in truth.uris], pa.large_string())
    numbers = pa.array(truth.row).cast(pa.large_string())
    return pc.binary_join_element_wise(
        names.take(pa.array(truth.file)), numbers, pa.scalar("#", pa.large_string())
    )


def read_joined_part(
    part: JoinedPart, columns: Sequence[str], truth_columns: Sequence[str]
) -> tuple[pa.Table, pa.Table]:
    """Return columns of the predictions of a part, and of its labels, in the same order.

    Without labels, the second table has no columns.

    Raises:
        SourceError: a file has changed since the job started.
    """
    predicted = take_rows(part.storage, part.part_uri, part.part_row, columns)
    if not part.truth_uris:
        return predicted, predicted.select([])
    tables, positions = [], []
    for number, uri in enumerate(part.truth_uris):
        position = np.flatnonzero(part.truth_file == number)
        tables.append(take_rows(part.storage, uri, part.truth_row[position], truth_columns))
        positions.append(position)
    order = np.argsort(np.concatenate(positions))
    return predicted, pa.concat_tables(tables, promote_options="default").take(pa.array(order))
