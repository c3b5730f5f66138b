"""Malformed tar and Parquet files: false headers, links, bombs, damage; the same in every run."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import lzma
import pickle
import tarfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.security.images import originals
from tests.security.models import Touch

FLIPS = 150
Packer = Callable[[bytes], bytes]
PACKERS: dict[str, Packer] = {
    "gz": lambda data: gzip.compress(data, mtime=0),
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


def pictures() -> dict[str, bytes]:
    """Return five valid images: name → bytes."""
    files = originals()
    return {name: files[name] for name in sorted(files)[:5]}


def member(name: str, data: bytes = b"", **fields: Any) -> bytes:
    """Return a tar member; fields: attributes of its header."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    for key, value in fields.items():
        setattr(header, key, value)
    blocks = header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    return blocks + data.ljust(-(-len(data) // 512) * 512, b"\0")


def pax(records: dict[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    """Return an extended header with these records, valid or not."""
    text = b""
    for key, value in records.items():
        record = f" {key}={value}\n".encode()
        length = len(record) + len(str(len(record)))
        length += len(str(length)) - len(str(len(record)))
        text += str(length).encode() + record
    return member("pax", text, type=kind)


END = bytes(1024)


@cache
def _valid() -> bytes:
    return b"".join(member(name, data) for name, data in pictures().items())


def tars() -> Iterator[tuple[str, bytes, int]]:
    """Yield malformed tars: name, bytes, and the number of valid images before the damage."""
    valid = _valid()
    for name, spoilt in _spoilt_members().items():
        data = valid + spoilt + valid + END
        yield f"{name}.tar", PACKERS["gz"](data) if len(data) > 1_000_000 else data, 5
    yield "empty.tar", END, 0
    yield "nothing.tar", b"", 0
    yield "text.tar", b"not a tar\n" * 200, 0
    yield "no end.tar", valid, 5
    yield "half an end.tar", valid + bytes(512), 5
    yield "cut.tar", valid[:-700], 4
    for ending, pack in PACKERS.items():
        yield f"whole.tar.{ending}", pack(valid + END), 5
        yield f"cut.tar.{ending}", pack(valid + END)[:-30], 0
        yield f"junk.tar.{ending}", pack(valid)[:12] + b"junk" * 99, 0
        zeros = pack(bytes(20 << 20))  # gigabytes of them are kilobytes packed
        for kind, size in (("image", 60 << 30), ("other", 60 << 30), ("many", 10 << 20)):
            name = "a.jpg" if kind == "image" else "a.txt"
            head = pack(valid + member(name, size=size))
            yield f"bomb of one {kind}.tar.{ending}", head + zeros * 50, 5
        head = pack(valid + member("a.jpg", size=900 << 20, type=tarfile.GNUTYPE_LONGNAME))
        yield f"bomb of a long name.tar.{ending}", head + zeros * 50, 5
        blocks = pack(b"\x01" * 512 * 1000)
        yield f"bomb of noise.tar.{ending}", pack(valid) + blocks * 50, 5
    rng = np.random.default_rng(23)
    for turn in range(FLIPS):
        data = bytearray(valid + END)
        for at in rng.integers(0, len(data), 5):
            data[at] ^= 1 << int(rng.integers(8))
        packed = list(PACKERS.values())[turn % 3](bytes(data)) if turn % 2 else bytes(data)
        yield f"flipped-{turn}.tar", packed, 0


def _spoilt_members() -> dict[str, bytes]:
    kinds = {
        "link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "char": tarfile.CHRTYPE,
        "block": tarfile.BLKTYPE, "fifo": tarfile.FIFOTYPE, "cont": tarfile.CONTTYPE,
        "unknown": b"Z", "volume": b"V", "multi": b"M",
    }  # fmt: skip
    data = pictures()["alpha.png"]
    found = {
        f"type {name}": member("x.jpg", type=kind, linkname="/etc/passwd")
        for name, kind in kinds.items()
    }
    found |= {
        f"name {number}": member(name, data)
        for number, name in enumerate(
            [
                "../../../x.png", "/etc/x.png", "..", "C:\\x.png", "a\nb.png", "a b#c%20d.png",
                "\udcff\udcfe.png", "🙂é.PNG", "A.png", ".png", "-rf.png", "x" * 5_000 + ".png",
                "y" * 90_000 + ".png", "a/" * 3_000 + "a.png", "nul\x01.png",
            ]
        )
    }  # fmt: skip
    found["case"] = member("a.PNG", data) + member("A.png", data) + member("a.png", data)
    found["the same 30,000 times"] = member("same.gif") * 30_000
    for name, size in {"10 GiB": 10 << 30, "8 EiB": (1 << 63) - 1, "negative": -512}.items():
        found[f"size {name}"] = member("x.jpg", size=size) + bytes(3_000)
        found[f"pax size {name}"] = pax({"size": str(size)}) + member("x.jpg", data)
        found[f"long name {name}"] = member("x", size=size, type=tarfile.GNUTYPE_LONGNAME)
    found["a chain of headers"] = pax({"a": "b"}) * 5_000 + member("x.jpg", data)
    found["a chain of names"] = (
        member("x", b"y" * 600, type=tarfile.GNUTYPE_LONGNAME) * 5_000
    ) + member("x.jpg", data)
    found["global headers"] = b"".join(
        pax({f"k{i}": "v" * 100_000}, tarfile.XGLTYPE) + member("x") for i in range(500)
    )
    for key, value in {"size": "many", "mtime": "nan", "path": "", "uid": "-1", "": "x"}.items():
        found[f"pax {key} {value}"] = pax({key: value}) + member("x.jpg", data)
    found["pax of no length"] = member("pax", b"0 path=x\n" * 9, type=tarfile.XHDTYPE) + member("x")
    found["pax of false length"] = member("p", b"99999 path=x\n", type=tarfile.XHDTYPE)
    found["sparse"] = _sparse(0)
    found["sparse, extended"] = _sparse(40_000)
    version = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(9**18)}
    numbers = b"99999999\n" + b"1\n" * 2_000_000
    found["sparse 1.0"] = pax(version) + member("x.jpg", numbers)
    found["sparse 0.1"] = pax({"GNU.sparse.map": "0,1," * 50_000 + "0"}) + member("x.jpg", data)
    found["sparse 0.0"] = pax({"GNU.sparse.numblocks": "x", "GNU.sparse.size": "-4"}) + member("x")
    return found


def _sparse(num_blocks: int) -> bytes:
    """Return a sparse member of one petabyte, whose map continues over many blocks."""
    header = bytearray(member("x.jpg", type=tarfile.GNUTYPE_SPARSE))
    header[386:410] = b"00000000001\0" * 2
    header[483:495] = b"77777777777\0"
    header[482] = 1 if num_blocks else 0
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    block = bytearray(b"00000000001\0" * 42 + bytes(8))
    block[504] = 1
    return bytes(header) + bytes(block) * num_blocks


def parquets(canary: Path) -> Iterator[tuple[str, bytes]]:
    """Yield malformed Parquet files: name, bytes; canary: a file that pickled code would create."""
    data = list(pictures().values())
    whole = {
        codec: _parquet({"image": pa.array(data * 8)}, compression=codec, row_group_size=10)
        for codec in ("none", "snappy", "gzip", "zstd", "brotli", "lz4")
    }
    plain = whole["none"]
    yield "nothing.parquet", b""
    yield "text.parquet", b"PAR1 is no Parquet file by itself\n" * 9
    yield "marks.parquet", b"PAR1" * 40
    for size in (0, 2**31 - 1, 2**32 - 1, 8):
        yield f"footer of {size}.parquet", plain[:-8] + size.to_bytes(4, "little") + b"PAR1"
    yield "cut.parquet", plain[: len(plain) // 2]
    yield "encrypted.parquet", plain[:-4] + b"PARE"
    for name, column in _columns(data).items():
        yield f"column {name}.parquet", _parquet({"image": column})
    yield "no column.parquet", _parquet({"picture": pa.array(data)})
    yield "column twice.parquet", _twice(data)
    yield "no rows.parquet", _parquet({"image": pa.array([], pa.binary())})
    yield "nulls.parquet", _parquet({"image": pa.array([None, data[0], None], pa.binary())})
    yield "all null.parquet", _parquet({"image": pa.array([None] * 9, pa.binary())})
    code = pickle.dumps(Touch(canary))
    field = pa.field("image", pa.binary(), metadata={
        "ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": code,
    })  # fmt: skip
    yield "pickled type.parquet", _parquet(pa.table([pa.array(data)], pa.schema([field])))
    schema = pa.schema([("image", pa.binary())], {"pandas": code, "ARROW:schema": code})
    yield "pickled notes.parquet", _parquet(pa.table([pa.array(data)], schema))
    junk = base64.b64encode(b"\xff" * 99)
    yield (
        "junk schema.parquet",
        _parquet(
            pa.table([pa.array(data)], pa.schema([("image", pa.binary())], {"ARROW:schema": junk})),
            store_schema=False,
        ),
    )
    for name, spoilt in lying_footers(plain).items():
        yield f"footer {name}.parquet", spoilt
    for codec in ("snappy", "gzip", "zstd", "brotli", "lz4"):
        zeros = [bytes(60 << 20), *data]
        yield (
            f"bomb {codec}.parquet",
            _parquet({"image": pa.array(zeros, pa.binary())}, compression=codec),
        )
    many = pa.array([bytes(100_000)] * 600)
    yield "bomb of many.parquet", _parquet({"image": many}, compression="zstd")
    rng = np.random.default_rng(29)
    for turn in range(FLIPS):
        codec = list(whole)[turn % len(whole)]
        damaged = bytearray(whole[codec])
        start = len(damaged) - 800 if turn % 3 == 0 else 0
        for at in rng.integers(start, len(damaged), 4):
            damaged[at] ^= 1 << int(rng.integers(8))
        yield f"flipped-{turn}.parquet", bytes(damaged)


def _parquet(columns: dict[str, pa.Array] | pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    table = pa.table(columns) if isinstance(columns, dict) else columns
    pq.write_table(table, file, **{"compression": "none", **options})
    return file.getvalue()


def _twice(data: list[bytes]) -> bytes:
    schema = pa.schema([("image", pa.binary()), ("image", pa.string())])
    return _parquet(pa.table([pa.array(data), pa.array(["x"] * len(data))], schema))


def _columns(data: list[bytes]) -> dict[str, pa.Array]:
    """Return columns of wrong types, and of unusual types that are allowed."""
    texts = pa.array([one.hex() for one in data])
    return {
        "text": texts,
        "number": pa.array(range(5)),
        "list": pa.array([[one] for one in data]),
        "struct of text": pa.array([{"bytes": one.hex()} for one in data]),
        "struct without": pa.array([{"path": "x"} for _ in data]),
        "struct of struct": pa.array([{"bytes": {"bytes": one}} for one in data]),
        "empty struct of null": pa.array([{"bytes": None}] * 3, pa.struct({"bytes": pa.binary()})),
        "null struct": pa.array([None] * 3, pa.struct({"bytes": pa.binary()})),
        "null": pa.nulls(4),
        "fixed": pa.array([b"12345678"] * 4, pa.binary(8)),
        "dictionary": pa.array(data).dictionary_encode(),
        "map": pa.array([[(b"bytes", one)] for one in data], pa.map_(pa.binary(), pa.binary())),
        "large": pa.array(data, pa.large_binary()),
    }


def lying_footers(plain: bytes) -> dict[str, bytes]:
    """Return the file with other numbers in its footer: rows, sizes, places.

    The footer is Thrift's compact protocol, where a number is a varint of its zigzag; a longer one
    moves what follows, and the footer's length with it.
    """
    size = int.from_bytes(plain[-8:-4], "little")
    body, footer = plain[: -8 - size], plain[-8 - size : -8]
    found = {}
    rows, group = _varint(40), _varint(10)
    lies = {"2^40": 2**40, "2^62": 2**62, "minus 1": -1, "50": 50, "1": 1, "0": 0, "10^6": 10**6}
    for name, lie in lies.items():
        changed = footer.replace(b"\x16" + rows, b"\x16" + _varint(lie), 1)
        found[f"of {name} rows"] = _closed(body, changed)
        # the rows of the first group: where a struct of its columns ends
        changed = changed.replace(b"\x16" + group + b"\x26", b"\x16" + _varint(lie) + b"\x26", 1)
        found[f"of {name} rows in a group too"] = _closed(body, changed)
        changed = footer.replace(b"\x16" + group, b"\x16" + _varint(lie))
        found[f"of {name} values"] = _closed(body, changed)
    metadata = pq.ParquetFile(io.BytesIO(plain)).metadata.row_group(0)
    column = metadata.column(0)
    for word in ("total_compressed_size", "total_uncompressed_size", "data_page_offset"):
        true = _varint(getattr(column, word))
        for name, lie in {"2 GiB": 2**31, "2^62": 2**62, "minus 9": -9, "0": 0}.items():
            found[f"of {name} for {word}"] = _closed(body, footer.replace(true, _varint(lie)))
    return {name: data for name, data in found.items() if data != plain}


def _varint(number: int) -> bytes:
    left = (number << 1) ^ (number >> 63) if number < 0 else number << 1
    left &= (1 << 64) - 1
    out = b""
    while left > 127:
        out += bytes([left & 127 | 128])
        left >>= 7
    return out + bytes([left])


def _closed(body: bytes, footer: bytes) -> bytes:
    return body + footer + len(footer).to_bytes(4, "little") + b"PAR1"
