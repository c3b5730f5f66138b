"""Read the images of an untrusted tar from front to back; nothing is extracted to a disk."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, BinaryIO, NamedTuple, cast

from cvbatch.core.types import Failure
from cvbatch.images.signatures import IMAGE_SUFFIXES

_MAX_HEADER_BYTES = 1 << 17  # of a long name or an extended header
_MAX_GLOBAL_HEADERS = 100  # values that apply to all members; tarfile stores them all
_MAX_NAME = 4096  # characters of a member's name; longer ones lose their start
_MAX_EXPANSION = 200  # bytes that one byte of a compressed tar may expand to
_ALWAYS_ALLOWED_BYTES = 1 << 30  # decompressed, for a tar of any size
_READ_BYTES = 1 << 18
_HEADER_TYPES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_NO_TYPE = b"?"  # tarfile skips the bytes of a member of an unknown type
_TAR_ERRORS = (
    tarfile.TarError,
    OSError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    UnicodeError,
    ValueError,
    LookupError,
    OverflowError,
    RecursionError,
)
_DOTTED_SUFFIXES = tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES)
# tarfile would decompress 256 KiB of input at once, however large the output is.
_UNPACKERS: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", lambda stream: gzip.GzipFile(fileobj=stream)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
)


class Member(NamedTuple):
    """One image of a tar; the name is "" for the failure of the tar's unreadable rest."""

    name: str
    data: bytes
    failure: Failure | None = None


def read_tar(stream: BinaryIO, max_bytes: int) -> Iterator[Member]:
    """Yield the members with an image's suffix, in order, then a Failure if the tar is truncated.

    Args:
        stream: A tar, plain or compressed, read forwards once.
        max_bytes: Of one member; a larger one is skipped unread and yielded as a Failure.
    """
    end = stream.seek(0, io.SEEK_END) * _MAX_EXPANSION + _ALWAYS_ALLOWED_BYTES
    stream.seek(0)
    try:
        with tarfile.open(
            fileobj=_unpacked(stream), mode="r|", tarinfo=_StrictHeader, bufsize=_READ_BYTES
        ) as tar:
            while (header := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # otherwise tarfile stores every header
                if not 0 <= header.size <= end - header.offset_data:
                    raise tarfile.ReadError(
                        f"a header claims {header.size} bytes, and the tar may come to {end}"
                    )
                if len(tar.pax_headers) > _MAX_GLOBAL_HEADERS:
                    raise tarfile.ReadError("it has too many global headers")
                if header.name.lower().endswith(_DOTTED_SUFFIXES) and not header.isdir():
                    yield _member(tar, header, max_bytes)
    except _TAR_ERRORS as error:
        why = f"the tar cannot be read to its end: {str(error)[:200] or type(error).__name__}"
        yield Member("", b"", Failure("read", "truncated", why))


def _unpacked(stream: BinaryIO) -> IO[bytes]:
    """Return the decompressed stream of a tar; little of it is in memory at a time."""
    start = stream.read(8)
    stream.seek(0)
    for mark, unpacker in _UNPACKERS:
        if start.startswith(mark):
            return cast(IO[bytes], unpacker(stream))
    return stream


def _member(tar: tarfile.TarFile, header: tarfile.TarInfo, max_bytes: int) -> Member:
    name = header.name.encode("utf-8", "replace").decode()[-_MAX_NAME:]
    if not header.isfile():
        why = "the member is a link, a device or sparse, not a plain file"
        return Member(name, b"", Failure("read", "unsupported", why))
    if header.size > max_bytes:
        why = f"{header.size} bytes; the limit is {max_bytes}"
        return Member(name, b"", Failure("read", "too_large", why))
    data = cast(BinaryIO, tar.extractfile(header)).read()
    return Member(name, data)


class _StrictHeader(tarfile.TarInfo):
    """A header that raises an error if it is damaged; tarfile would treat it as the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _StrictHeader:
        """Return the next member's header.

        Raises:
            tarfile.ReadError: It is damaged. tarfile's own error would end the tar silently.
        """
        try:
            return super().fromtarfile(tar)
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"a header is damaged ({error})") from None

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictHeader:
        """Return the header of one block.

        Raises:
            tarfile.ReadError: The block is not a header, or an unsupported one.
        """
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # two blocks of zeros: the end of the tar
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError):  # type: ignore[attr-defined]
            raise tarfile.ReadError("it ends without the mark of its end") from None
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"a header is damaged ({error})") from None
        if header.type in _HEADER_TYPES and header.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {header.size} bytes")
        if header.type == tarfile.GNUTYPE_SPARSE:
            header.type = _NO_TYPE
        return header

    def _proc_gnusparse_10(self, *_: Any) -> None:
        """Refuse the map of a sparse member, which is stored before its bytes, of any length."""
        raise tarfile.ReadError("a member is sparse (GNU 1.0), which is not read")
