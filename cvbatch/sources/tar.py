"""Read the images of an untrusted tar from front to back; nothing is extracted to a disk."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, BinaryIO, cast

import pyarrow as pa

from cvbatch.core.ignored import Ignored
from cvbatch.core.types import Failure, SourceOptions
from cvbatch.sources.members import Member, checked, choose

_MAX_HEADER_BYTES = 1 << 17  # of a long name or an extended header
_MAX_GLOBAL_HEADERS = 100  # values that apply to all members; tarfile stores them all
_MAX_ZERO_BLOCKS = 1 << 15  # of 512 bytes, between two tars of one file; tar pads to 10 KiB
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


def _zstd(stream: BinaryIO) -> Any:
    return pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")


# tarfile would decompress 256 KiB of input at once, however large the output is.
_UNPACKERS: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", lambda stream: gzip.GzipFile(fileobj=stream)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
    (b"\x28\xb5\x2f\xfd", _zstd),
)


class _BoundedStream:
    """A decompressed stream that raises an error after a number of bytes."""

    def __init__(self, stream: Any, limit: int) -> None:
        self._stream, self._left, self._limit = stream, limit, limit

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes.

        Raises:
            tarfile.ReadError: The stream is longer than the limit.
        """
        data: bytes = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise tarfile.ReadError(f"it decompresses to more than {self._limit} bytes")
        return data


def read_tar(
    stream: BinaryIO,
    max_bytes: int,
    options: SourceOptions | None = None,
    ignored: Ignored | None = None,
) -> Iterator[Member]:
    """Yield the images, in order, then a Failure if the tar is truncated.

    Several tars in one file (`cat a.tar b.tar`) are read as one.

    Args:
        stream: A tar, plain or compressed, read forwards once.
        max_bytes: Of one member; a larger one is skipped unread and yielded as a Failure.
        options: Choose the members; None: the defaults.
        ignored: Receives the members that are not read.
    """
    options = options or SourceOptions()
    counted = Ignored() if ignored is None else ignored
    end = stream.seek(0, io.SEEK_END) * _MAX_EXPANSION + _ALWAYS_ALLOWED_BYTES
    stream.seek(0)
    try:
        bounded = _BoundedStream(_unpacked(stream), end)
        with tarfile.open(
            fileobj=cast(IO[bytes], bounded),
            mode="r|",
            tarinfo=_StrictHeader,
            bufsize=_READ_BYTES,
            ignore_zeros=True,  # the end of a tar may be followed by another tar
        ) as tar:
            while (header := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # otherwise tarfile stores every header
                if not 0 <= header.size <= end - header.offset_data:
                    raise tarfile.ReadError(
                        f"a header claims {header.size} bytes, and the tar may come to {end}"
                    )
                if len(tar.pax_headers) > _MAX_GLOBAL_HEADERS:
                    raise tarfile.ReadError("it has too many global headers")
                if not header.isdir():
                    member = _member(tar, header, max_bytes, options, counted)
                    if member is not None:
                        yield member
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


def _member(
    tar: tarfile.TarFile,
    header: tarfile.TarInfo,
    max_bytes: int,
    options: SourceOptions,
    ignored: Ignored,
) -> Member | None:
    """Return an image, or None and count the member if it is not one."""
    name = header.name.encode("utf-8", "replace").decode()[-_MAX_NAME:]
    choice = choose(header.name, options)
    if choice.action == "ignore" or (choice.action == "sniff" and not header.isfile()):
        ignored.add(choice.kind, [name])
        return None
    if not header.isfile():
        why = "the member is a link, a device or sparse, not a plain file"
        return Member(name, b"", Failure("read", "unsupported", why))
    if header.size > max_bytes:
        if choice.action == "sniff":
            ignored.add(choice.kind, [name])
            return None
        why = f"{header.size} bytes; the limit is {max_bytes}"
        return Member(name, b"", Failure("read", "too_large", why))
    data = b""
    if choice.action != "refuse":
        data = cast(BinaryIO, tar.extractfile(header)).read()
    return checked(Member(name, data), choice, ignored)


class _EndOfFile(tarfile.ReadError):
    """The file ends where a header must follow, or zeros."""


class _StrictHeader(tarfile.TarInfo):
    """A header that raises an error if it is damaged; tarfile would treat it as the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _StrictHeader:
        """Return the next member's header.

        Raises:
            tarfile.ReadError: It is damaged. tarfile's own error would end the tar silently.
        """
        try:
            header = super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            num_blocks = getattr(tar, "cvbatch_zero_blocks", 0) + 1
            tar.cvbatch_zero_blocks = num_blocks  # type: ignore[attr-defined]
            if num_blocks > _MAX_ZERO_BLOCKS:
                raise tarfile.ReadError(f"more than {num_blocks} blocks of zeros end it") from None
            raise
        except _EndOfFile:
            if getattr(tar, "cvbatch_zero_blocks", 0):
                raise tarfile.EmptyHeaderError("end of file") from None  # type: ignore[attr-defined]
            raise
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"a header is damaged ({error})") from None
        tar.cvbatch_zero_blocks = 0  # type: ignore[attr-defined]
        return header

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictHeader:
        """Return the header of one block.

        Raises:
            tarfile.ReadError: The block is not a header, or an unsupported one.
        """
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # a block of zeros: the end of the tar, if another one follows
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError):  # type: ignore[attr-defined]
            raise _EndOfFile("it ends without the mark of its end") from None
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
