"""The images of a tar read from front to back, without trust: nothing is extracted or lost."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, cast

from cvbatch.data.units import SUFFIXES
from cvbatch.types import Failure

_MAX_HEADER_BYTES = 1 << 20  # of a long name or an extended header
_MAX_MEMBER_BYTES = 1 << 36  # tarfile would pass over more for hours, whatever the tar's length
_READ_BYTES = 1 << 18
_HEADER_TYPES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_TAR_FAULTS = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, UnicodeError, ValueError)
_IMAGE_ENDS = tuple(f".{suffix}" for suffix in SUFFIXES["images"])


class Member(NamedTuple):
    """One image of a tar; the name is "" for what is said of the tar's unreadable rest."""

    name: str
    data: bytes
    failure: Failure | None = None


def read_tar(stream: BinaryIO, max_bytes: int) -> Iterator[Member]:
    """Yield the members with an image's suffix, in order; then a Failure if the tar breaks off.

    stream: a tar, plain or compressed, read forwards once. A member larger than `max_bytes` is
    passed over unread.
    """
    try:
        with tarfile.open(
            fileobj=stream, mode="r|*", tarinfo=_StrictHeader, bufsize=_READ_BYTES
        ) as tar:
            while (header := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else it keeps every header
                if not 0 <= header.size <= _MAX_MEMBER_BYTES:
                    raise tarfile.ReadError(f"a header claims {header.size} bytes")
                if header.name.lower().endswith(_IMAGE_ENDS) and not header.isdir():
                    yield _member(tar, header, max_bytes)
    except _TAR_FAULTS as error:
        why = f"the tar cannot be read to its end: {error or type(error).__name__}"
        yield Member("", b"", Failure("read", "truncated", why))


def _member(tar: tarfile.TarFile, header: tarfile.TarInfo, max_bytes: int) -> Member:
    name = header.name.encode("utf-8", "replace").decode()
    if not header.isfile():
        why = "the member is a link or a device, not a file"
        return Member(name, b"", Failure("read", "unsupported", why))
    if header.size > max_bytes:
        why = f"{header.size} bytes; the limit is {max_bytes}"
        return Member(name, b"", Failure("read", "too_large", why))
    data = cast(BinaryIO, tar.extractfile(header)).read()
    return Member(name, data)


class _StrictHeader(tarfile.TarInfo):
    """A header that does not pass for the end of the tar when it is missing or broken."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictHeader:
        """Return the header of one block. Raises tarfile.ReadError where it is not one."""
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # two blocks of zeros: the proper end
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError):  # type: ignore[attr-defined]
            raise tarfile.ReadError("it ends without the mark of its end") from None
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"a header is damaged ({error})") from None
        if header.type in _HEADER_TYPES and header.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {header.size} bytes")
        return header
