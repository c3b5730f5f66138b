"""Reader of TIFF: tifffile reads the tags, imagecodecs decodes strips or tiles of the first page.

Everything that a file declares is compared with the limits first: tags, pixels, bytes of the
decoded page, sizes of tiles and of images inside tiles. All strips and tiles must be in the file.
Only a sparse file that declares GDAL_NODATA may leave some out; they have that value.

libtiff decodes what tifffile does not: YCbCr with subsampling outside JPEG, old JPEG, LogLuv.
"""

from __future__ import annotations

import logging
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from cvbatch.images.failures import READER_ERRORS, ImageError, check_pixels, too_large
from cvbatch.images.options import Limits
from cvbatch.images.readers import Header, Reader, orientation_or_upright
from cvbatch.images.samples import Samples
from cvbatch.images.signatures import count_tiff_tags, is_complete
from cvbatch.images.tiff_color import samples_of_page
from cvbatch.images.tiff_segments import check_embedded_images

if TYPE_CHECKING:
    from tifffile import TiffPage

_MAX_TAGS = 4096  # parsing each takes time; encoders write about twenty
_MAX_BYTES_PER_PIXEL = 8  # of the decoded page: RGBA of 16 bits
_MAX_SEGMENTS = 1 << 20  # strips or tiles
_ORIENTATION, _PROFILE, _DNG_VERSION, _NODATA, _SUB_IFDS = 274, 34675, 50706, 42113, 330
_NONE, _OLD_JPEG, _JPEG, _LOG_LUV = 1, 6, 7, (34676, 34677)
_OWN_DECODERS = (_NONE, 2, 3, 4, _OLD_JPEG, _JPEG)  # not in the table of tifffile
_YCBCR, _RAW_SENSOR = 6, (32803, 34892)
_INTEGERS = (
    "imagewidth", "imagelength", "imagedepth", "compression", "photometric", "samplesperpixel",
    "planarconfig", "rowsperstrip", "tilewidth", "tilelength", "predictor",
)  # fmt: skip
_PARSED_LATER = ("lsm", "scanimage", "ndpi", "stk")  # formats whose other pages tifffile would read


def _open(data: bytes, limits: Limits) -> Header:
    if (count := count_tiff_tags(data)) > _MAX_TAGS:
        message = f"the TIFF has {count} tags; more than {_MAX_TAGS} are not read"
        raise ImageError("corrupt", message)
    if not is_complete("TIFF", data):
        raise ImageError("truncated", "the TIFF ends early: its tags are not in the file")
    page = _first_page(data)
    for name in _INTEGERS:
        if not isinstance(value := getattr(page, name), int):
            raise ImageError("corrupt", f"the TIFF is damaged: {name} is {value!r}, not a number")
    width, height = page.imagewidth, page.imagelength
    if width < 1 or height < 1:
        raise ImageError("corrupt", f"the TIFF is damaged: it declares {width} x {height} pixels")
    check_pixels(width, height, limits)
    if page.is_tiled:
        check_pixels(page.tilewidth, page.tilelength, limits)
    profile = page.tags.valueof(_PROFILE)
    return Header(
        "TIFF",
        data,
        page,
        width,
        height,
        orientation=orientation_or_upright(page.tags.valueof(_ORIENTATION)),
        profile=bytes(profile) if isinstance(profile, bytes) else None,
    )


def _first_page(data: bytes) -> TiffPage:
    import tifffile

    # Damage becomes a failed row with the URI of its file; tifffile's log lines have no URI.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    flags: dict[str, Any] = {f"is_{name}": False for name in _PARSED_LATER}
    page = tifffile.TiffFile(BytesIO(data), name="image", **flags).pages.first
    if not isinstance(page, tifffile.TiffPage):
        raise ImageError("corrupt", "the TIFF is damaged: it has no page")
    return page


def _read(header: Header, limits: Limits, _: int) -> Samples:
    page: TiffPage = header.image
    _check_kind(page, header.data)
    _check_bytes(page, limits)
    sizes = _complete_byte_counts(page, header.data)
    if sizes is not page.databytecounts:
        page.databytecounts = sizes
    check_embedded_images(page, header.data, limits)
    if page.compression in _LOG_LUV:
        return _read_with_libtiff(header.data)
    if page.photometric == _YCBCR and page.compression not in (_OLD_JPEG, _JPEG):
        return _read_ycbcr(page, header.data)
    try:
        values = page.asarray(maxworkers=1)
    except READER_ERRORS:
        if page.compression != _OLD_JPEG:
            raise
        return _read_with_libtiff(header.data)
    return samples_of_page(page, values)


def _check_kind(page: TiffPage, data: bytes) -> None:
    tags = page.tags
    if _DNG_VERSION in tags or data[8:10] == b"CR" or page.photometric in _RAW_SENSOR:
        raise ImageError("unsupported", "raw photographs are not read; convert it to JPEG or TIFF")
    if page.subfiletype & 1 and _SUB_IFDS in tags:
        message = "the first page of the TIFF is a thumbnail of another one, as in raw photographs"
        raise ImageError("unsupported", f"{message}; convert it to JPEG or TIFF")
    if page.imagedepth != 1:
        message = f"a TIFF with {page.imagedepth} slices is a volume; save one slice as an image"
        raise ImageError("unsupported", message)
    if not _is_known_compression(page.compression):
        raise ImageError("unsupported", f"TIFF with compression {page.compression} is not read")
    if page.dtype is None:
        message = f"{page.bitspersample}-bit samples of format {page.sampleformat} are not read"
        raise ImageError("unsupported", message)


def _is_known_compression(compression: int) -> bool:
    import tifffile

    if compression in _OWN_DECODERS or compression in _LOG_LUV:
        return True
    return compression in tifffile.TIFF.DECOMPRESSORS


def _check_bytes(page: TiffPage, limits: Limits) -> None:
    sample_bytes = np.dtype(page.dtype).itemsize
    limit = limits.max_pixels * _MAX_BYTES_PER_PIXEL
    sides = [page.imagewidth * page.imagelength * page.samplesperpixel]
    if page.is_tiled:
        sides.append(page.tilewidth * page.tilelength * page.tiledepth * page.samplesperpixel)
    if (num_bytes := max(sides) * sample_bytes) > limit:
        size = f"{page.samplesperpixel} samples per pixel, {num_bytes} bytes"
        raise too_large(size, limit, "source.max_pixels")
    if (count := _num_segments(page)) > _MAX_SEGMENTS:
        message = f"{count} strips or tiles; more than {_MAX_SEGMENTS} are not read"
        raise ImageError("too_large", message)


def _num_segments(page: TiffPage) -> int:
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    width, height = int(page.imagewidth), int(page.imagelength)
    if page.is_tiled:
        return int(planes * -(-width // page.tilewidth) * -(-height // page.tilelength))
    return int(planes * -(-height // max(1, page.rowsperstrip)))


def _complete_byte_counts(page: TiffPage, data: bytes) -> Any:
    """Return the byte counts of all strips or tiles, after checking that they are in the file.

    A single strip may have no byte count, as in libtiff: then it extends to the end of the file.
    """
    count = _num_segments(page)
    offsets, sizes = page.dataoffsets, page.databytecounts
    if count == 1 and len(offsets) == 1 and offsets[0] and not (len(sizes) and sizes[0]):
        sizes = (max(0, len(data) - offsets[0]),)
    present = [i for i in range(min(count, len(offsets), len(sizes))) if offsets[i] and sizes[i]]
    if len(present) < count and not (_NODATA in page.tags and present):
        raise ImageError(
            "truncated", f"the TIFF lacks {count - len(present)} of its {count} strips or tiles"
        )
    is_plain = page.compression == _NONE and page.photometric != _YCBCR
    expected = partial(_uncompressed_bytes, page) if is_plain else None
    for i in present:
        size = expected(i) if expected else sizes[i]
        if offsets[i] + size > len(data) or size > sizes[i]:
            raise ImageError("truncated", "the TIFF ends early: a strip or tile is not in the file")
    return sizes


def _uncompressed_bytes(page: TiffPage, index: int) -> int:
    """Return the bytes of an uncompressed strip or tile; the last strip has fewer rows."""
    bits = page.bitspersample if isinstance(page.bitspersample, int) else sum(page.bitspersample)
    samples = page.samplesperpixel if page.planarconfig == 1 else 1
    if not isinstance(page.bitspersample, int):
        samples = 1
    columns = page.tilewidth if page.is_tiled else page.imagewidth
    rows = page.tilelength
    if not page.is_tiled:
        rows = max(1, page.rowsperstrip)
        start = index % -(-page.imagelength // rows) * rows
        rows = min(rows, page.imagelength - start)
    return int(rows * -(-columns * samples * bits // 8))


def _read_ycbcr(page: TiffPage, data: bytes) -> Samples:
    """Decode YCbCr outside JPEG, whose subsampling and reference values libtiff handles."""
    try:
        return _read_with_libtiff(data)
    except READER_ERRORS:
        if page.is_subsampled or page.dtype != np.uint8 or page.planarconfig != 1:
            raise
    values = np.ascontiguousarray(page.asarray(maxworkers=1)[..., :3])
    return Samples(np.asarray(Image.fromarray(values, "YCbCr").convert("RGB")))


def _read_with_libtiff(data: bytes) -> Samples:
    """Decode the first page to RGBA of 8 bits as libtiff does."""
    import imagecodecs

    return Samples(imagecodecs.tiff_decode(data, index=0, asrgb=True)[..., :3])


TIFF_READER = Reader(_open, _read)
