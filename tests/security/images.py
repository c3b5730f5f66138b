"""Thousands of malformed image files, the same in every run."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO

import cv2
import imagecodecs
import numpy as np
import pillow_heif
import tifffile
from PIL import Image

HEIGHT, WIDTH = 12, 15
FLIPS_PER_FILE = 70
PIXEL_LIMIT = 2_000_000  # the bombs are made for this limit; the default of a job is higher

Files = Iterator[tuple[str, bytes]]


def _photo() -> Image.Image:
    blobs = np.random.default_rng(5).integers(0, 256, (3, 4, 3), np.uint8)
    return Image.fromarray(cv2.resize(blobs, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))


def _encode(image: Image.Image, format: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def _planar_tiff() -> bytes:
    file = BytesIO()
    planes = np.random.default_rng(7).integers(0, 2**16, (3, HEIGHT, WIDTH), np.uint16)
    options = {"photometric": "rgb", "planarconfig": "separate", "compression": "zstd"}
    tifffile.imwrite(file, planes, rowsperstrip=5, metadata=None, **options)
    return file.getvalue()


def _heic(image: Image.Image) -> bytes:
    file = BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=80)
    return file.getvalue()


def originals() -> dict[str, bytes]:
    """Return a small valid file of every supported kind: name → bytes."""
    rgb, deep = _photo(), np.random.default_rng(6).integers(0, 2**16, (HEIGHT, WIDTH), np.uint16)
    grey, palette, bits, cmyk = (rgb.convert(mode) for mode in ("L", "P", "1", "CMYK"))
    alpha = rgb.copy()
    alpha.putalpha(grey)
    film = {"save_all": True, "append_images": [rgb.rotate(180), rgb.rotate(90)]}
    exif = Image.Exif()
    exif[274], exif[271] = 6, "a camera"
    files = {
        "plain.jpg": _encode(rgb, "JPEG"),
        "progressive.jpg": _encode(rgb, "JPEG", progressive=True),
        "grey.jpg": _encode(grey, "JPEG"),
        "cmyk.jpg": _encode(cmyk, "JPEG"),
        "restarts.jpg": _encode(rgb, "JPEG", restart_marker_blocks=1),
        "turned.jpg": _encode(rgb, "JPEG", exif=exif),
        "two.jpg": _encode(rgb, "MPO", **film),
        "plain.png": _encode(rgb, "PNG"),
        "alpha.png": _encode(alpha, "PNG"),
        "palette.png": _encode(palette, "PNG", transparency=3),
        "bits.png": _encode(bits, "PNG"),
        "16-bit.png": _encode(Image.fromarray(deep), "PNG"),
        "animated.png": _encode(rgb, "PNG", **film),
        "interlaced.png": _interlaced(np.asarray(rgb)),
        "lossy.webp": _encode(rgb, "WEBP"),
        "lossless.webp": _encode(rgb, "WEBP", lossless=True),
        "alpha.webp": _encode(alpha, "WEBP"),
        "animated.webp": _encode(rgb, "WEBP", **film),
        "turned.webp": _encode(rgb, "WEBP", exif=exif),
        "plain.gif": _encode(palette, "GIF"),
        "interlaced.gif": _encode(palette, "GIF", interlace=1),
        "animated.gif": _encode(palette, "GIF", **film),
        "plain.bmp": _encode(rgb, "BMP"),
        "palette.bmp": _encode(palette, "BMP"),
        "bits.bmp": _encode(bits, "BMP"),
        "runs.bmp": _runs_bmp(),
        "plain.tif": _encode(rgb, "TIFF"),
        "big.tif": _encode(grey, "TIFF", big_tiff=True),
        "16-bit.tif": _encode(Image.fromarray(deep), "TIFF"),
        "cmyk.tif": _encode(cmyk, "TIFF"),
    }
    for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        files[f"{name}.tif"] = _encode(rgb, "TIFF", compression=name)
    files["planar.tif"] = _planar_tiff()
    files["plain.avif"] = _encode(rgb, "AVIF", speed=10)
    files["plain.jp2"] = _encode(rgb, "JPEG2000")
    files["16-bit.j2k"] = imagecodecs.jpeg2k_encode(deep, level=0, codecformat="j2k")
    files["lossy.jxl"] = imagecodecs.jpegxl_encode(np.asarray(rgb), distance=1.0)
    files["deep.jxl"] = imagecodecs.jpegxl_encode(deep, lossless=True, usecontainer=False)
    files["plain.heic"] = _heic(rgb)
    files["group4.tif"] = _encode(bits, "TIFF", compression="group4")
    files["group3.tif"] = _encode(bits, "TIFF", compression="group3")
    return files


def _interlaced(rgb: np.ndarray) -> bytes:  # (H, W, 3) uint8
    """Return an interlaced PNG (Adam7), which Pillow reads but cannot write."""
    passes = (
        (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
        (1, 0, 2, 1),
    )  # fmt: skip
    lines = b""
    for top, left, down, across in passes:
        part = rgb[top::down, left::across]
        if part.size:
            lines += b"".join(b"\0" + row.tobytes() for row in part)
    return png(rgb.shape[1], rgb.shape[0], 8, 2, zlib.compress(lines), interlace=1)


def png(
    width: int, height: int, depth: int, kind: int, packed: bytes, *, interlace: int = 0,
    extra: bytes = b"",
) -> bytes:  # fmt: skip
    """Return a PNG with these header fields; extra: chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlace)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a PNG chunk with a valid checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _runs_bmp() -> bytes:
    """Return an 8-bit BMP with run-length encoding (RLE8)."""
    rows = b"".join(bytes([WIDTH, shade, 0, 0]) for shade in range(HEIGHT))[:-2] + b"\0\1"
    palette = b"".join(bytes([shade, shade, 255 - shade, 0]) for shade in range(256))
    info = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, 8, 1, len(rows), 0, 0, 256, 0)
    start = 14 + len(info) + len(palette)
    return struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start) + info + palette + rows


def cut_files(files: dict[str, bytes]) -> Files:
    """Yield every file truncated at every tenth byte."""
    for name, data in files.items():
        for length in range(0, len(data), 10):
            yield f"cut/{length}-{name}", data[:length]


def flipped_files(files: dict[str, bytes]) -> Files:
    """Yield every file with a few bits flipped, half of them near the start."""
    rng = np.random.default_rng(17)
    for name, data in files.items():
        for turn in range(FLIPS_PER_FILE):
            damaged = bytearray(data)
            end = min(len(data), 120) if turn % 2 else len(data)
            for at in rng.integers(0, end, rng.integers(1, 5)):
                damaged[at] ^= 1 << int(rng.integers(8))
            yield f"flipped/{turn}-{name}", bytes(damaged)


SIZES = [(0, 0), (0, 9), (9, 0), (1, 65_535), (65_535, 1), (65_535, 65_535), (16_383, 16_383)]
LARGER = [(2**31 - 1, 2**31 - 1), (2**31, 7), (2**32 - 1, 2**32 - 1), (1, 2**24), (2**24, 1)]


def lying_files(files: dict[str, bytes]) -> Files:
    """Yield files whose header has a false size."""
    for width, height in SIZES + LARGER:
        size = f"{width}x{height}"
        for kind, depth in ((0, 1), (2, 8), (6, 16), (3, 8)):
            for interlace in (0, 1):
                packed = zlib.compress(bytes(500))
                data = png(width, height, depth, kind, packed, interlace=interlace)
                yield f"lying/{size}-{kind}-{interlace}.png", data
        for name in ("plain.bmp", "palette.bmp", "runs.bmp"):
            data = bytearray(files[name])
            data[18:26] = struct.pack("<II", width % 2**32, height % 2**32)
            yield f"lying/{size}-{name}", bytes(data)
        for name in ("plain.tif", "tiff_lzw.tif", "jpeg.tif", "group4.tif", "packbits.tif"):
            tags = {256: width % 2**32, 257: height % 2**32}
            yield f"lying/{size}-{name}", with_tags(files[name], tags)
            yield f"lying/{size}-tiles-{name}", with_tags(files[name], {278: height % 2**32})
    for name in ("plain.tif", "tiff_lzw.tif"):
        for tag, kind in itertools.product((256, 258, 259, 262, 273, 277, 278, 279), range(1, 18)):
            yield f"lying/tag-{tag}-of-type-{kind}-{name}", with_type(files[name], tag, kind)
    for width, height in SIZES:
        size = f"{width}x{height}"
        for name in ("plain.jpg", "progressive.jpg", "grey.jpg", "cmyk.jpg"):
            yield f"lying/{size}-{name}", jpeg_that_claims(files[name], width, height)
        for name in ("plain.gif", "animated.gif"):
            data = bytearray(files[name])
            data[6:10] = struct.pack("<HH", width, height)
            yield f"lying/{size}-screen-{name}", bytes(data)
            frame = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1))
            data[frame + 5 : frame + 9] = struct.pack("<HH", width, height)
            yield f"lying/{size}-frame-{name}", bytes(data)
        for name in ("alpha.webp", "animated.webp", "turned.webp"):
            data = bytearray(files[name])
            data[24:30] = (max(width, 1) - 1).to_bytes(3, "little") + (max(height, 1) - 1).to_bytes(
                3, "little"
            )
            yield f"lying/{size}-{name}", bytes(data)
        yield f"lying/{size}-lossless.webp", lossless_webp(width, height)


def jpeg_that_claims(data: bytes, width: int, height: int) -> bytes:
    """Return a JPEG with another size in its frame header."""
    start = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


def lossless_webp(width: int, height: int, extended: bool = False) -> bytes:
    """Return a WebP of one colour, with any size up to 16,384, in a few bytes.

    Every code has one symbol only, so a pixel takes no bit. extended: it claims transparency.
    """
    bits = ((max(width, 1) - 1) & 16_383) | ((max(height, 1) - 1) & 16_383) << 14
    stream, at = bits, 32
    for value, length in [(0, 3)] + [(1, 1), (0, 1), (1, 1), (7, 8)] * 5:
        # no transform, no cache, one group of codes; each: simple, one symbol, of 8 bits
        stream |= value << at
        at += length
    body = b"\x2f" + stream.to_bytes(at // 8 + 9, "little")
    body += b"\0" * (len(body) % 2)
    chunks = b"VP8L" + struct.pack("<I", len(body)) + body
    if extended:
        size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        chunks = b"VP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + size + chunks
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def with_tags(data: bytes, tags: dict[int, int]) -> bytes:
    """Return a little-endian TIFF with these tags (LONG) replaced or added."""
    start = struct.unpack("<I", data[4:8])[0]
    count = struct.unpack("<H", data[start : start + 2])[0]
    entries = [data[start + 2 + 12 * i : start + 14 + 12 * i] for i in range(count)]
    kept = [entry for entry in entries if struct.unpack("<H", entry[:2])[0] not in tags]
    new = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    table = b"".join(sorted(kept + new, key=lambda entry: struct.unpack("<H", entry[:2])[0]))
    moved = len(data) + len(data) % 2
    whole = data.ljust(moved, b"\0") + struct.pack("<H", len(kept + new)) + table + bytes(4)
    return whole[:4] + struct.pack("<I", moved) + whole[8:]


def with_type(data: bytes, tag: int, kind: int) -> bytes:
    """Return a little-endian TIFF in which one tag has a false type."""
    start = struct.unpack("<I", data[4:8])[0] + 2
    while struct.unpack("<H", data[start : start + 2])[0] != tag:
        start += 12
    return data[: start + 2] + struct.pack("<H", kind) + data[start + 4 :]


def bomb_files(files: dict[str, bytes]) -> Files:
    """Yield small files of huge images: just below the limit, just above, and far above."""
    for side in (1_400, 1_500, 13_000, 16_383):
        line = (side * 6 + 1) * side  # of 16 bits, the largest that fits one pixel
        if side < 13_000:
            yield f"bomb/{side}-16.png", png(side, side, 16, 2, zlib.compress(bytes(line), 9))
            blank = Image.new("P", (side, side))
            yield f"bomb/{side}.gif", _encode(blank, "GIF")
            yield f"bomb/{side}.jpg", _encode(blank.convert("L"), "JPEG", quality=5)
            yield (
                f"bomb/{side}-progressive.jpg",
                _encode(blank.convert("RGB"), "JPEG", quality=5, progressive=True),
            )
            for name in ("tiff_lzw", "tiff_adobe_deflate", "group4", "packbits"):
                mode = "1" if name == "group4" else "RGB"
                yield (
                    f"bomb/{side}-{name}.tif",
                    _encode(Image.new(mode, (side, side)), "TIFF", compression=name),
                )
        yield f"bomb/{side}.webp", lossless_webp(side, side)
        yield f"bomb/{side}-extended.webp", lossless_webp(side, side, extended=True)
        tiles = {322: side, 323: side, 324: 8, 325: 100}
        yield f"bomb/{side}-tiles.tif", with_tags(files["plain.tif"], tiles)
        yield f"bomb/{side}-tiles-lzw.tif", with_tags(files["tiff_lzw.tif"], tiles)
        yield f"bomb/{side}-samples.tif", with_tags(files["plain.tif"], {277: side})
    zeros = zlib.compress(bytes(50_000_000), 9)
    for kind, head in ((b"iCCP", b"x\0\0"), (b"zTXt", b"x\0\0"), (b"iTXt", b"x\0\1\0\0\0")):
        extra = chunk(kind, head + zeros)
        packed = zlib.compress(bytes((WIDTH * 3 + 1) * HEIGHT))
        yield f"bomb/{kind.decode()}.png", png(WIDTH, HEIGHT, 8, 2, packed, extra=extra)
    yield "bomb/long.png", png(9, 9, 8, 2, zeros)  # more pixels than the header says
    yield "bomb/scans.jpg", _many_scans(files["progressive.jpg"], 20_000)
    yield "bomb/tables.jpg", files["plain.jpg"][:2] + _table(files["plain.jpg"]) * 20_000
    yield "bomb/comments.jpg", files["plain.jpg"][:2] + b"\xff\xfe\0\2" * 200_000
    yield "bomb/frames.gif", _many_frames(files["plain.gif"], 20_000)
    yield "bomb/tags.tif", _many_tags(files["plain.tif"])
    yield "bomb/tags-big.tif", _many_big_tags()
    yield "bomb/own-tail.tif", files["plain.tif"][:4] + struct.pack("<I", 8) + bytes(40)
    for format, name in (("WEBP", "frames.webp"), ("PNG", "frames.png")):
        film = [Image.new("L", (3, 3), shade % 256) for shade in range(1_500)]
        yield f"bomb/{name}", _encode(film[0], format, save_all=True, append_images=film[1:])


def _many_scans(data: bytes, count: int) -> bytes:
    """Return a progressive JPEG just below the size limit, with a huge number of scans."""
    start = data.rindex(b"\xff\xda")
    size = int((PIXEL_LIMIT - 1) ** 0.5) & ~15
    whole = data[:start] + data[start:-2] * count + data[-2:]
    return jpeg_that_claims(whole, size, size)


def _table(data: bytes) -> bytes:
    start = data.index(b"\xff\xdb")
    return data[start : start + 2 + struct.unpack(">H", data[start + 2 : start + 4])[0]]


def _many_frames(data: bytes, count: int) -> bytes:
    frame = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1))
    return data[:-1] + data[frame:-1] * count + b";"


def _many_tags(data: bytes) -> bytes:
    """Return a TIFF with 65,535 tags, each a long list at the same offset."""
    start = struct.unpack("<I", data[4:8])[0]
    count = struct.unpack("<H", data[start : start + 2])[0]
    own = data[start + 2 : start + 2 + 12 * count]
    more = b"".join(struct.pack("<HHII", 700 + i, 1, 60_000, 8) for i in range(60_000))
    moved = len(data) + len(data) % 2
    table = struct.pack("<H", count + 60_000) + own + more + bytes(4)
    return data[:4] + struct.pack("<I", moved) + data[8:].ljust(moved - 8, b"\0") + table


def _many_big_tags() -> bytes:
    """Return a BigTIFF with more than 65,535 unused tags."""
    tag = struct.pack("<HHQQ", 700, 1, 2**40, 16)
    return b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 100_000) + tag * 100_000 + bytes(8)


def wrong_files(files: dict[str, bytes]) -> Files:
    """Yield files that differ from their name: empty, text, other formats, other extensions."""
    whole = list(files.items())
    for index, (name, data) in enumerate(whole):
        other = whole[(index + 7) % len(whole)][0].rpartition(".")[2]
        yield f"wrong/{name}.{other}", data
        yield f"wrong/head-{name}", data[:40] + whole[(index + 7) % len(whole)][1]
        yield f"wrong/tail-{name}", data + b"\0" * 999 + b"PK\5\6" + bytes(18)
    for ending in ("jpg", "png", "webp", "gif", "bmp", "tif"):
        yield f"wrong/empty.{ending}", b""
        yield f"wrong/text.{ending}", "Das ist kein Bild, ça alors 🙂\n".encode() * 40
        yield f"wrong/zeros.{ending}", bytes(2_000)
        yield f"wrong/page.{ending}", b"<!DOCTYPE html><title>404</title>"
        yield f"wrong/vector.{ending}", b'<?xml version="1.0"?><svg><!ENTITY a "&a;&a;"></svg>'
        yield f"wrong/program.{ending}", b"\x7fELF" + bytes(500)
        yield f"wrong/script.{ending}", b"%!PS\n(%pipe%touch /tmp/canary) (w) file\n"


def malformed_files() -> Files:
    """Yield all malformed files, each with a unique name."""
    files = originals()
    for part in (cut_files, flipped_files, lying_files, bomb_files, wrong_files):
        yield from part(files)
