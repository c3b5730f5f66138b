"""Kinds of files that are not images, by suffix, and files that only their first bytes tell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cvbatch.core.errors import StoreError
from cvbatch.core.types import Failure
from cvbatch.images.signatures import detect_format
from cvbatch.sources.base import read_failure
from cvbatch.storage.store import Storage

UNKNOWN, NO_SUFFIX = "unknown_suffix", "no_suffix"  # the first bytes tell
METADATA = "metadata"  # tables and lists beside the images of a data set
NOT_SELECTED = "not_selected"  # members that `source.members` leaves out
SNIFFED_BYTES = 512
_THREADS = 32
_NOT_IMAGES = ("PDF", "PostScript", "SVG")  # signatures of documents


class FileKind(NamedTuple):
    """A kind of file.

    Attributes:
        suffixes: Separated by spaces, lower case, without the dot.
        is_picture: Whether `source.unreadable: fail` makes such files failed rows.
    """

    suffixes: str
    is_picture: bool = False


# No suffix of IMAGE_SUFFIXES is here. Suffixes of tars, zips and Parquet are: they count by these
# kinds where another format is read.
FILE_KINDS: dict[str, FileKind] = {
    "raw_photograph": FileKind(
        "3fr ari arw bay cap cr2 cr3 crw dcr dcs dng drf eip erf fff gpr iiq k25 kdc mdc mef "
        "mos mrw nef nrw orf pef ptx pxn r3d raf raw rw2 rwl rwz sr2 srf srw x3f",
        is_picture=True,
    ),
    "video": FileKind(
        "3g2 3gp asf avi braw divx f4v flv insv lrv m2ts m2v m4v mkv mod mov mp4 mpeg mpg mts "
        "mxf ogv rm rmvb thm tod ts vob webm wmv",
        is_picture=True,
    ),
    "unsupported_image": FileKind(
        "ai bpg cur dcm dds dib dicom emf eps exr fit fits fts hdr icns ico insp jls jpm jxr "
        "mpo nii pbm pcx pgm pnm ppm psb psd qoi svg svs tga wdp wmf xbm xcf xpm",
        is_picture=True,
    ),
    "audio": FileKind(
        "aac aif aiff flac m4a mid mp3 ogg opus wav wma",
    ),
    "document": FileKind(
        "doc docx epub key odp ods odt pages pdf ppt pptx ps rtf xls xlsx",
    ),
    "archive": FileKind(
        "7z bz2 cab dmg gz iso lz4 rar tar tgz xz z zip zst",
    ),
    "text": FileKind(
        "aae cfg conf css csv geojson htm html ini json jsonl lock log md names ndjson rst "
        "srt toml tsv txt vtt xml xmp xsd yaml yml",
    ),
    "array_or_model": FileKind(
        "arrow ckpt db feather h5 hdf5 idx joblib keras mat mdb npy npz onnx parquet pb "
        "pickle pkl pt pth safetensors sqlite tflite tfrecord tfrecords",
    ),
    "program": FileKind(
        "bat c cpp dll exe h ipynb jar java js m mjs py pyc r rb rs sh so",
    ),
    "temporary": FileKind(
        "aria2 bak crdownload lnk old part partial swp tmp url",
    ),
}
_SUFFIX = re.compile(r"[^/]\.(?P<suffix>[A-Za-z0-9_~+-]{1,16})$")  # Python and RE2
_KIND_OF = {suffix: kind for kind, info in FILE_KINDS.items() for suffix in info.suffixes.split()}
_SUFFIXES = pa.array(list(_KIND_OF), pa.large_string())
_KINDS = pa.array([*_KIND_OF.values(), UNKNOWN, NO_SUFFIX], pa.string())
PICTURE_KINDS = tuple(kind for kind, info in FILE_KINDS.items() if info.is_picture)
# A raw photograph is a TIFF whose first image is a preview: its pixels must not be decoded.
NEVER_DECODED = ("raw_photograph", "video")


def kinds_of(names: pa.ChunkedArray) -> pa.ChunkedArray:  # (N,) large_string → (N,) string
    """Return the kind of each file, which is not an image, by its suffix."""
    found = pc.extract_regex(names, _SUFFIX.pattern)
    suffix = pc.utf8_lower(pc.struct_field(found, "suffix"))
    unknown = pc.if_else(pc.is_valid(suffix), len(_KIND_OF), len(_KIND_OF) + 1)
    index = pc.coalesce(pc.index_in(suffix, _SUFFIXES), pc.cast(unknown, pa.int32()))
    return pc.take(_KINDS, index)


def kind_of(name: str) -> str:
    """Return the kind of one file, which is not an image, by its suffix."""
    match = _SUFFIX.search(name)
    return _KIND_OF.get(match["suffix"].lower(), UNKNOWN) if match else NO_SUFFIX


def not_decoded(kind: str) -> Failure:
    """Return the failure of a file whose kind is never decoded."""
    why = f"a {kind.replace('_', ' ')} is not read; convert it to TIFF or JPEG"
    return Failure("read", "unsupported", why)


def is_image_data(data: bytes) -> bool:
    """Return whether a file begins like an image."""
    name = detect_format(data)
    return name is not None and name not in _NOT_IMAGES


def are_images(storage: Storage, uris: Sequence[str]) -> list[bool]:
    """Return for each file whether its first bytes are those of an image.

    A file that cannot be read counts as an image, so that it becomes a failed row.

    Raises:
        StoreError: The store does not respond.
    """

    def is_image(uri: str) -> bool:
        try:
            with closing(storage.open_input(uri)) as file:
                return is_image_data(file.read(SNIFFED_BYTES))
        except StoreError as error:
            read_failure(error)  # raises an error that is not about this file
            return True

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(is_image, uris))
