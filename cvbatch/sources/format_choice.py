"""Choose the input format of a folder: by suffix, and by the layouts that other tools write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cvbatch.core.errors import SourceError
from cvbatch.sources.file_kinds import METADATA
from cvbatch.sources.formats import INPUT_FORMATS

_PART = r"/part-[0-9a-f]{16}\.parquet\z"  # of the result of `cvbatch predict`
Masks = dict[str, pa.ChunkedArray]  # format → (N,) bool: files with one of its suffixes


class Layout(NamedTuple):
    """A mixture of formats of which one is read.

    Attributes:
        formats: Formats that are present.
        chosen: Format that is read.
        kind: How the other files are counted.
        tool: What it looks like, and what writes it.
        applies: Function of (URIs, masks): whether the mixture is of this layout.
    """

    formats: frozenset[str]
    chosen: str
    kind: str
    tool: str
    applies: Callable[[pa.ChunkedArray, Masks], bool]


def has_suffix(uris: pa.ChunkedArray, suffixes: Sequence[str]) -> pa.ChunkedArray:  # (N,) bool
    """Return which names end with a dot and one of the suffixes, in upper or lower case."""
    ends = "|".join(suffix.replace(".", r"\.") for suffix in suffixes)
    return pc.match_substring_regex(uris, rf"(?i)\.(?:{ends})\z")


def masks_of(uris: pa.ChunkedArray) -> Masks:
    """Return for each format that `auto` may choose which files have its suffix."""
    known = {key: value for key, value in INPUT_FORMATS.items() if value.suffixes}
    return {key: has_suffix(uris, value.suffixes) for key, value in known.items()}


def choose_format(uris: pa.ChunkedArray, masks: Masks, source: str) -> tuple[str, str]:
    """Return the format of the files, and the kind of the files of other formats.

    Args:
        uris: Of all files.
        masks: Of `masks_of`.
        source: Names the source in messages.

    Raises:
        SourceError: No file is of a format, or they are of several and no layout is known.
    """
    counts = Counter({key: pc.sum(mask).as_py() or 0 for key, mask in masks.items()})
    present = [key for key, count in counts.items() if count]
    if len(present) == 1:
        return present[0], METADATA
    for layout in LAYOUTS:
        if layout.formats == set(present) and layout.applies(uris, masks):
            return layout.chosen, layout.kind
    mixture = ", ".join(f"{counts[key]} of format {key}" for key in present)
    suffix = INPUT_FORMATS[counts.most_common(1)[0][0]].suffixes[0]
    raise SourceError(
        f"the source {source} mixes {mixture}; select files of one format in source.uri, such as "
        f"**/*.{suffix}, or set source.format"
    )


def _stems(uris: pa.ChunkedArray) -> pa.Array:
    """Return the paths without the first dot of the file name and what follows."""
    return pc.replace_substring_regex(uris, r"(?s)\.[^/]*\z", "").unique()


def _results_of_cvbatch(uris: pa.ChunkedArray, masks: Masks) -> bool:
    is_part = pc.match_substring_regex(uris.filter(masks["parquet"]), _PART)
    return bool(pc.all(is_part).as_py())


def _parquet_per_tar(uris: pa.ChunkedArray, masks: Masks) -> bool:
    tables, tars = (_stems(uris.filter(masks[key])) for key in ("parquet", "webdataset"))
    return bool(pc.all(pc.is_in(tables, tars)).as_py())


def _parquet_per_folder(uris: pa.ChunkedArray, masks: Masks) -> bool:
    """Return whether each Parquet file describes a folder: 00000.parquet, or */metadata.parquet."""
    tables = uris.filter(masks["parquet"])
    is_metadata = pc.match_substring_regex(tables, r"/metadata\.parquet\z")
    folders = pc.replace_substring_regex(uris.filter(masks["images"]), r"(?s)/[^/]*\z", "").unique()
    stems = pc.replace_substring_regex(tables, r"(?i)\.parquet\z", "")
    return bool(pc.all(pc.or_(is_metadata, pc.is_in(stems, folders))).as_py())


def _more_than_zips(uris: pa.ChunkedArray, masks: Masks) -> bool:
    """Return whether the zips are fewer than the other files: archives beside a data set."""
    num_zips = pc.sum(masks["zip"]).as_py()
    return bool(sum(pc.sum(mask).as_py() for mask in masks.values()) > 2 * num_zips)


# The first one that applies counts.
LAYOUTS: tuple[Layout, ...] = (
    Layout(
        frozenset({"images", "parquet"}),
        "images",
        METADATA,
        "`cvbatch predict` with a sink below the images",
        _results_of_cvbatch,
    ),
    Layout(
        frozenset({"webdataset", "parquet"}),
        "webdataset",
        METADATA,
        "img2dataset (webdataset): a Parquet file beside each tar",
        _parquet_per_tar,
    ),
    Layout(
        frozenset({"images", "parquet"}),
        "images",
        METADATA,
        "img2dataset (files), Hugging Face (imagefolder): a Parquet file for each folder",
        _parquet_per_folder,
    ),
    *(
        Layout(
            frozenset({key, "zip"}),
            key,
            "archive",
            f"files of format {key} and fewer zips",
            _more_than_zips,
        )
        for key in ("images", "parquet", "webdataset")
    ),
)
