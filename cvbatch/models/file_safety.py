"""A model file is looked over before Keras opens it: it may come from anyone.

Keras' safe mode refuses code, and checks as it goes along. Here a file is refused as a whole, by
what may stand in one: members by name, classes by the module they come from, arrays of numbers.
Whatever it claims to hold is held against its own size first. Nothing is built, unpacked or run.
"""

from __future__ import annotations

import io
import json
import math
import stat
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import h5py

from cvbatch.core.errors import ModelError
from cvbatch.models.metadata import CARD_MEMBER

WEIGHTS_MEMBER = "model.weights.h5"  # of a .keras file
_CONFIG_MEMBER = "config.json"
_MEMBERS = {_CONFIG_MEMBER, "metadata.json", WEIGHTS_MEMBER, CARD_MEMBER}
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LOCAL_HEADER = struct.Struct("<26xHH")  # before a member's bytes: how long its name is, its extras
_IS_ENCRYPTED = 1  # among a member's flags
_MAX_CONFIG_BYTES = 64 << 20
_MAX_EXPANSION = 100  # of what is compressed; Keras compresses nothing
_SPARE_BYTES = 1 << 20  # that may expand more
_MAX_OBJECTS = 200_000  # groups and arrays of an .h5 file
_MAX_DEPTH = 100  # of its groups, and of the lists and objects of a config
_NUMBERS = "biufcV"  # kinds of NumPy types; V: bfloat16, which NumPy does not know

# Classes that are Keras' own and yet run what a file brings along, or read what it names.
_CODE = {
    "__lambda__": "a Lambda",
    "Lambda": "a Lambda layer",
    "TFSMLayer": "a SavedModel (TFSMLayer)",
    "TorchModuleWrapper": "a pickled PyTorch module (TorchModuleWrapper)",
    "FlaxLayer": "a Flax module (FlaxLayer)",
    "JaxLayer": "a JAX function (JaxLayer)",
}


class UnsafeFileError(ModelError):
    """A model file holds what no model file should."""


def inspect_model_file(path: Path, name: str) -> int:
    """Return the bytes of all weights in a .keras, .weights.h5 or .h5 file that may be opened.

    name: what the user knows the file as.

    Raises:
        UnsafeFileError: it may not.
        OSError, BadZipFile, RuntimeError, ...: it is damaged, or of another kind; those of
            `LOAD_ERRORS`.
    """
    try:
        if path.name.endswith(".keras"):
            with zipfile.ZipFile(path) as archive:
                return _vet_archive(archive, path.stat().st_size)
        with path.open("rb") as file:
            return _vet_weights(file, path.stat().st_size)
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{name} is refused: {error}") from None


def _vet_archive(archive: zipfile.ZipFile, file_bytes: int) -> int:
    members = archive.infolist()
    names = [member.filename for member in members]
    for member in members:
        _vet_member(member, file_bytes)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UnsafeFileError(f"its archive holds {twice!r} twice; save the model again")
    damaged = archive.testzip()  # Keras reads past check sums
    if damaged is not None:
        raise zipfile.BadZipFile(f"its member {damaged} is damaged")
    _vet_config(archive.read(_CONFIG_MEMBER))
    if WEIGHTS_MEMBER not in names:
        return 0
    held = archive.getinfo(WEIGHTS_MEMBER)
    if held.compress_type != zipfile.ZIP_STORED:  # going back and forth in it would take for ever
        return _vet_weights(io.BytesIO(archive.read(held)), held.file_size)
    with _Stored(archive, held) as weights:
        return _vet_weights(weights, held.file_size)


class _Stored(io.RawIOBase):
    """A member as it lies in its archive, not packed.

    zipfile's own reader goes back by reading the member again from its start.
    """

    def __init__(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
        archive.open(member).close()  # which checks the header before the bytes
        self._file = Path(str(archive.filename)).open("rb")  # noqa: SIM115
        self._file.seek(member.header_offset)
        name_bytes, extra_bytes = _LOCAL_HEADER.unpack(self._file.read(_LOCAL_HEADER.size))
        self._start = self._file.tell() + name_bytes + extra_bytes
        self._size, self._position = member.file_size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        wanted = min(len(buffer), max(0, self._size - self._position))
        self._file.seek(self._start + self._position)
        read: int = self._file.readinto(memoryview(buffer)[:wanted])
        self._position += read
        return read

    def close(self) -> None:
        self._file.close()
        super().close()


def _vet_member(member: zipfile.ZipInfo, file_bytes: int) -> None:
    name = member.filename
    parts = name.rstrip("/").split("/")
    is_asset = parts[0] == "assets" and not {"", ".", ".."} & set(parts) and "\\" not in name
    if name not in _MEMBERS and not is_asset:
        raise UnsafeFileError(
            f"its archive holds {name[:100]!r}, which is not of a .keras file; save the model "
            "again with model.save('NAME.keras')"
        )
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UnsafeFileError(f"its member {name!r} is a link or a device, not a file")
    if member.compress_type not in _PACKINGS or member.flag_bits & _IS_ENCRYPTED:
        raise UnsafeFileError(f"its member {name!r} is encrypted, or packed as Keras packs nothing")
    stored = min(member.compress_size, file_bytes)
    limit = stored * (1 if member.compress_type == zipfile.ZIP_STORED else _MAX_EXPANSION)
    if member.file_size > limit + _SPARE_BYTES:
        raise UnsafeFileError(
            f"its member {name!r} claims {member.file_size} bytes, of which {stored} are stored: "
            "a bomb, or damaged"
        )
    if name == _CONFIG_MEMBER and member.file_size > _MAX_CONFIG_BYTES:
        raise UnsafeFileError(
            f"its {name} has {member.file_size} bytes; the limit is {_MAX_CONFIG_BYTES}"
        )


def _vet_config(text: bytes | str) -> None:
    """Raise UnsafeFileError where a network's description asks for code from outside Keras."""
    try:
        config = json.loads(text)
    except RecursionError:
        raise UnsafeFileError("its config is nested too deep") from None
    for part in _objects(config):
        if "class_name" in part:
            _vet_class(part)


def _objects(config: Any) -> Iterator[dict[str, Any]]:
    """Yield every JSON object in a value, at any depth."""
    waiting = [(config, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise UnsafeFileError(f"its config is nested more than {_MAX_DEPTH} deep")
        if isinstance(value, dict):
            yield value
            waiting += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, list):
            waiting += [(inner, depth + 1) for inner in value]


def _vet_class(said: dict[str, Any]) -> None:
    kind, module, known_as = said["class_name"], said.get("module"), said.get("registered_name")
    if not all(isinstance(one, str | None) for one in (kind, module, known_as)):
        raise UnsafeFileError("its config names a class by what is no text")
    for one in (kind, str(known_as).rpartition(">")[2]):
        if one in _CODE:
            raise UnsafeFileError(
                f"it holds {_CODE[one]}, which could run any code; build it again from Keras' own "
                "layers, or from one registered with keras.saving.register_keras_serializable"
            )
    is_own = str(known_as).startswith("cvbatch>") and str(module).startswith("cvbatch.")
    if not is_own and module not in (None, "builtins", "keras") and module[:6] != "keras.":
        raise UnsafeFileError(
            f"it needs the class {kind!r} of {module!r}, which is neither Keras' nor cvbatch's: "
            "code from outside is not run; build the network again from Keras' own layers"
        )


def _vet_weights(file: IO[bytes] | io.RawIOBase, file_bytes: int) -> int:
    """Return the bytes of all arrays in an HDF5 file; raise UnsafeFileError for what is no array.

    Links are told from what they link to before anything is opened.
    """
    total = 0
    with h5py.File(file, "r") as root:
        for where, found in _walk(root):
            if isinstance(found, h5py.Dataset):
                total += _vet_array(where, found)
                if total > file_bytes * _MAX_EXPANSION + _SPARE_BYTES:
                    raise UnsafeFileError(
                        f"its arrays claim more than {total} bytes, and the file has {file_bytes}: "
                        "a bomb, or damaged"
                    )
        if (config := root.attrs.get("model_config")) is not None:  # as Keras 2 put it there
            _vet_config(config)
    return total


def _walk(root: h5py.Group) -> Iterator[tuple[str, h5py.Group | h5py.Dataset]]:
    """Yield all groups and arrays below a group, each once, however they are linked."""
    seen: set[int] = set()
    waiting = [("", root, 0)]
    while waiting:
        where, group, depth = waiting.pop()
        for key in group:
            path = f"{where}/{key}"
            link = group.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise UnsafeFileError(f"its {path[:200]!r} is a link to {_target(link)!r}")
            found = group[key]
            address = h5py.h5o.get_info(found.id).addr
            if address in seen:
                continue
            seen.add(address)
            if len(seen) > _MAX_OBJECTS or depth > _MAX_DEPTH:
                raise UnsafeFileError(
                    f"it holds more than {_MAX_OBJECTS} arrays, or more than {_MAX_DEPTH} deep"
                )
            yield path, found
            if isinstance(found, h5py.Group):
                waiting.append((path, found, depth + 1))


def _target(link: Any) -> str:
    return str(getattr(link, "filename", "") or link.path)[:200]


def _vet_array(where: str, array: h5py.Dataset) -> int:
    """Return the bytes of an array, or of one of its pieces where that is more."""
    if array.external or array.is_virtual:
        raise UnsafeFileError(f"its array {where[:200]!r} lies in another file")
    if array.dtype.kind not in _NUMBERS or array.dtype.fields or array.dtype.itemsize > 16:
        raise UnsafeFileError(
            f"its array {where[:200]!r} holds {str(array.dtype)[:50]}, not numbers"
        )
    shape = array.shape or ()
    return int(max(math.prod(shape), math.prod(array.chunks or ())) * array.dtype.itemsize)
