"""Reader of HEIC and HEIF: libheif.

The file's own rotation and mirroring are part of the format: libheif applies them, and the EXIF
orientation beside them is ignored, as the specification demands.
"""

from __future__ import annotations

import numpy as np

from cvbatch.images.color_profiles import profile_of_primaries
from cvbatch.images.failures import ImageError, check_pixels
from cvbatch.images.options import Limits
from cvbatch.images.readers import Header, Reader
from cvbatch.images.samples import ColorSpace, Samples, split_channels

_MODE_SPACES: dict[str, ColorSpace] = {"L": "grey", "I": "grey", "RGB": "rgb", "RGBA": "rgb"}


def _open(data: bytes, limits: Limits) -> Header:
    try:
        import pillow_heif
    except ModuleNotFoundError:
        message = "HEIF is read by the package pillow-heif, which is missing; install it"
        raise ImageError("unsupported", message) from None

    # Threads reserve address space, which the isolated decoder limits.
    pillow_heif.options.DECODE_THREADS = 1
    image = pillow_heif.open_heif(data, convert_hdr_to_8bit=False, hdr_to_16bit=False)
    width, height = image.size
    check_pixels(width, height, limits)
    profile = image.info.get("icc_profile")
    if not profile and (nclx := image.info.get("nclx_profile")):
        profile = profile_of_primaries(nclx["color_primaries"], nclx["transfer_characteristics"])
    return Header("HEIF", data, image, width, height, profile=profile or None)


def _read(header: Header, limits: Limits, _: int) -> Samples:
    image = header.image
    color_space = _MODE_SPACES.get(image.mode.partition(";")[0])
    if color_space is None:
        raise ImageError("unsupported", f"HEIF of mode {image.mode} is not read")
    # A copy: the memory of the image is freed with it, even while an array of it is in use.
    values = np.array(image)
    bits = int(image.info.get("bit_depth", 8)) if values.dtype.itemsize > 1 else 8
    return Samples(split_channels(values, color_space), bits, color_space)


HEIF_READER = Reader(_open, _read)
