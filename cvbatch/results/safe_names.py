"""Names for files of an export: those of the images where they can stand, and never a way out.

A name is made of the image's id alone and of whether another image would have the same: no order,
no counter. What two images would share carries a hash of the id; a name that looks as if it
carried one gets one as well, so that none can be made to meet another.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np

from cvbatch.images.signatures import IMAGE_SUFFIXES

_IMAGE_SUFFIX = re.compile(rf"\.(?:{'|'.join(IMAGE_SUFFIXES)})\Z", re.IGNORECASE)
# a folder so called could be in the way of a file, or of what a tool makes of the path
_ODD_FOLDER = re.compile(
    rf"\.({'|'.join((*IMAGE_SUFFIXES, 'txt', 'xml', 'json'))})\Z", re.IGNORECASE
)
_HASHED = re.compile(r"-[0-9a-f]{16}\Z", re.IGNORECASE)
_MAX_BYTES = 180  # of one name: file systems take 255, and a suffix and a hash are to come
_MAX_FOLDERS = 12


def split_name(image_id: str, *, is_inside: bool, is_flat: bool) -> tuple[str, str]:
    """Return the stem below an export's folder, "/" between folders, and the image's suffix.

    is_inside: the image lies in a container, its id has "#" before the key. is_flat: no folders
    and no white space. The suffix is "" where the id has none of an image.
    """
    text = image_id.partition("://")[2] if "://" in image_id else image_id
    text = text.replace("#", "/") if is_inside else text
    found = _IMAGE_SUFFIX.search(text)
    suffix = found[0] if found else ""
    parts = [_clean(part) for part in text.removesuffix(suffix).split("/") if part not in ("", ".")]
    *folders, last = parts or ["image"]
    folders = [_ODD_FOLDER.sub(r"_\1", folder) for folder in folders]
    if len(folders) > _MAX_FOLDERS:
        folders = ["_".join(folders)]
    stem = "/".join([*folders, last])
    if is_flat:
        stem = re.sub(r"[\s/#]", "_", stem).lstrip("._") or "x"
    return "/".join(_shortened(part) for part in stem.split("/")), suffix


def _clean(part: str) -> str:
    """Return one part of a path without what tools stumble over, or would overlook."""
    shown = "".join("_" if sign == "\\" or not sign.isprintable() else sign for sign in part)
    return shown.strip(" ").lstrip("._ ") or "x"


def _shortened(part: str) -> str:
    data = part.encode()
    if len(data) <= _MAX_BYTES:
        return part
    digest = hashlib.sha256(data).hexdigest()[:16]
    return f"{data[: _MAX_BYTES - 17].decode(errors='ignore')}_{digest}"


def unique_stem(stem: str, image_id: str, taken_twice: frozenset[int]) -> str:
    """Return the stem, with a hash of the id where others would have it too."""
    if key_of(stem) not in taken_twice and not _HASHED.search(stem):
        return stem
    return f"{stem}-{hashlib.sha256(image_id.encode()).hexdigest()[:16]}"


def key_of(stem: str) -> int:
    """Return 63 bits that names share which a file system could take for one another."""
    return digest_of(unicodedata.normalize("NFC", stem).casefold())


def digest_of(text: str) -> int:
    """Return 63 bits of a hash."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def repeated(keys: Iterable[np.ndarray]) -> Iterator[int]:  # (N,) int64 each
    """Yield what occurs more than once in all of them."""
    found, counts = np.unique(np.concatenate([np.empty(0, np.int64), *keys]), return_counts=True)
    yield from found[counts > 1].tolist()
