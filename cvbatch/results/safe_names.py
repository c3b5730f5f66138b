"""Safe, unique file names for exported images, derived from untrusted image ids.

A name depends only on the image's id and on whether another image has the same name, not on the
order. Names that collide get a hash of the id; a name that ends like such a hash gets one too, so
that no id can be chosen to collide with another name. No name leaves the export's folder.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np

from cvbatch.images.signatures import IMAGE_SUFFIXES

_IMAGE_SUFFIX = re.compile(rf"\.(?:{'|'.join(IMAGE_SUFFIXES)})\Z", re.IGNORECASE)
# A folder with such a suffix could collide with a file, or be taken for one by other tools.
_FOLDER_WITH_SUFFIX = re.compile(
    rf"\.({'|'.join((*IMAGE_SUFFIXES, 'txt', 'xml', 'json'))})\Z", re.IGNORECASE
)
_HASHED = re.compile(r"-[0-9a-f]{16}\Z", re.IGNORECASE)
_MAX_BYTES = 180  # of one name; file systems allow 255, and a hash and a suffix are appended
_MAX_FOLDERS = 12


def split_name(image_id: str, *, is_inside: bool, is_flat: bool) -> tuple[str, str]:
    """Return the path of an image below the export's folder, as stem and suffix.

    Args:
        image_id: any string.
        is_inside: the image is in a container; its id has "#" before the key.
        is_flat: no folders and no white space in the name.

    Returns:
        Stem, with "/" between folders, and suffix with its dot; "" if the id has no suffix of an
        image format.
    """
    text = image_id.partition("://")[2] if "://" in image_id else image_id
    text = text.replace("#", "/") if is_inside else text
    match = _IMAGE_SUFFIX.search(text)
    suffix = match[0] if match else ""
    parts = [_clean(part) for part in text.removesuffix(suffix).split("/") if part not in ("", ".")]
    *folders, last = parts or ["image"]
    folders = [_FOLDER_WITH_SUFFIX.sub(r"_\1", folder) for folder in folders]
    if len(folders) > _MAX_FOLDERS:
        folders = ["_".join(folders)]
    stem = "/".join([*folders, last])
    if is_flat:
        stem = re.sub(r"[\s/#]", "_", stem).lstrip("._") or "x"
    return "/".join(_shortened(part) for part in stem.split("/")), suffix


def _clean(part: str) -> str:
    """Return a path component without backslashes, control characters and leading dots."""
    printable = "".join("_" if char == "\\" or not char.isprintable() else char for char in part)
    return printable.strip(" ").lstrip("._ ") or "x"


def _shortened(part: str) -> str:
    data = part.encode()
    if len(data) <= _MAX_BYTES:
        return part
    digest = hashlib.sha256(data).hexdigest()[:16]
    return f"{data[: _MAX_BYTES - 17].decode(errors='ignore')}_{digest}"


def unique_stem(stem: str, image_id: str, collisions: frozenset[int]) -> str:
    """Return the stem, with a hash of the id if its `key_of` is in `collisions`."""
    if key_of(stem) not in collisions and not _HASHED.search(stem):
        return stem
    return f"{stem}-{hashlib.sha256(image_id.encode()).hexdigest()[:16]}"


def key_of(stem: str) -> int:
    """Return a 63-bit key, equal for names that a file system could treat as the same."""
    return digest_of(unicodedata.normalize("NFC", stem).casefold())


def digest_of(text: str) -> int:
    """Return a 63-bit hash."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def repeated(keys: Iterable[np.ndarray]) -> Iterator[int]:  # (N,) int64 each
    """Yield the keys that occur more than once in all arrays together."""
    unique, counts = np.unique(np.concatenate([np.empty(0, np.int64), *keys]), return_counts=True)
    yield from unique[counts > 1].tolist()
