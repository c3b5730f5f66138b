"""Check an untrusted model file before Keras opens it.

Keras' safe mode checks while it builds the network. Here a file is rejected before anything is
built, unpacked or run, by allowlists: names of archive members, modules of classes, numeric arrays.
Sizes that the file states are compared with the size of the file.
"""

from __future__ import annotations

import io
import json
import math
import stat
import struct
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from cvbatch.core.errors import ModelError
from cvbatch.models.hdf5 import h5py
from cvbatch.models.metadata import CARD_MEMBER
from cvbatch.models.trusted_modules import covers

WEIGHTS_MEMBER = "model.weights.h5"  # of a .keras file
CONFIG_MEMBER = "config.json"  # of a .keras file
METADATA_MEMBER = "metadata.json"
_MEMBERS = {CONFIG_MEMBER, METADATA_MEMBER, WEIGHTS_MEMBER, CARD_MEMBER}
_COMPRESSION_TYPES = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LOCAL_HEADER = struct.Struct("<26xHH")  # lengths of the member's name and of its extra field
_IS_ENCRYPTED = 1  # bit of a member's flags
_MAX_CONFIG_BYTES = 64 << 20
_MAX_EXPANSION = 100  # ratio of decompressed to compressed bytes; Keras does not compress
_TOLERANCE_BYTES = 1 << 20  # added to every size limit
_MAX_OBJECTS = 200_000  # groups and arrays of an HDF5 file
_MAX_LAYERS = 5_000  # of a config; NASNetLarge has 1,041, and Keras builds about 400 per second
_MAX_COMPRESSED_WEIGHTS = 1 << 30  # bytes that are decompressed in memory; Keras does not compress
_MAX_DEPTH = 100  # nesting of HDF5 groups, and of lists and objects in a config
_NUMERIC_KINDS = "biufcV"  # kinds of NumPy dtypes; V: bfloat16, which NumPy does not know

_KERAS_MODULES = (  # and below them; tf_keras: of networks in files of Keras 2
    "builtins", "keras", "tf_keras.src.engine", "tf_keras.src.layers.core.tf_op_layer",
)  # fmt: skip
# Classes of Keras that run code from the file, or read files that it names.
_CODE_CLASSES = {
    "__lambda__": "a Lambda",
    "Lambda": "a Lambda layer",
    "TFSMLayer": "a SavedModel (TFSMLayer)",
    "TorchModuleWrapper": "a pickled PyTorch module (TorchModuleWrapper)",
    "FlaxLayer": "a Flax module (FlaxLayer)",
    "JaxLayer": "a JAX function (JaxLayer)",
}


_MODULES_WITHOUT_LAYERS = (
    None, "builtins", "keras", "keras.constraints", "keras.initializers", "keras.regularizers",
)  # fmt: skip


class UnsafeFileError(ModelError):
    """A model file contains something that is not allowed in a model file."""


def inspect_model_file(path: Path, name: str, trust: Sequence[str] = ()) -> int:
    """Check a .keras, .weights.h5 or .h5 file and return the size of its weights in bytes.

    Args:
        path: local file.
        name: file as the user named it, for messages.
        trust: modules whose classes the network may contain.

    Raises:
        UnsafeFileError: the file is not safe to open.
        OSError, BadZipFile, RuntimeError, ...: it is damaged, or not a model file; one of
            `cvbatch.models.weights.LOAD_ERRORS`.
    """
    try:
        if path.name.endswith(".keras"):
            with zipfile.ZipFile(path) as archive:
                return _check_archive(archive, path.stat().st_size, trust)
        with path.open("rb") as file:
            return _check_weights(file, path.stat().st_size, trust)
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{name} is refused: {error}") from None


def _check_archive(archive: zipfile.ZipFile, file_bytes: int, trust: Sequence[str]) -> int:
    members = archive.infolist()
    names = [member.filename for member in members]
    for member in members:
        _check_member(member, file_bytes)
    if len(set(names)) < len(names):
        duplicate = next(name for name in names if names.count(name) > 1)
        raise UnsafeFileError(f"its archive contains {duplicate!r} twice; save the model again")
    damaged = archive.testzip()  # Keras does not check the checksums
    if damaged is not None:
        raise zipfile.BadZipFile(f"its member {damaged} is damaged")
    inspect_network_config(archive.read(CONFIG_MEMBER), trust)
    if WEIGHTS_MEMBER not in names:
        return 0
    member = archive.getinfo(WEIGHTS_MEMBER)
    if member.compress_type != zipfile.ZIP_STORED:  # seeking in compressed data is too slow
        if member.file_size > _MAX_COMPRESSED_WEIGHTS:
            raise UnsafeFileError(
                f"its weights of {member.file_size:,} bytes are compressed, and the limit is "
                f"{_MAX_COMPRESSED_WEIGHTS:,}; save the model again with model.save('NAME.keras')"
            )
        return _check_weights(io.BytesIO(archive.read(member)), member.file_size)
    with _StoredMember(archive, member) as weights:
        return _check_weights(weights, member.file_size)


class _StoredMember(io.RawIOBase):
    """Seekable reader of an uncompressed archive member.

    zipfile's reader seeks backwards by reading the member again from its start.
    """

    def __init__(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
        archive.open(member).close()  # checks the member's local header
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
        num_bytes = min(len(buffer), max(0, self._size - self._position))
        self._file.seek(self._start + self._position)
        read: int = self._file.readinto(memoryview(buffer)[:num_bytes])
        self._position += read
        return read

    def close(self) -> None:
        self._file.close()
        super().close()


def _check_member(member: zipfile.ZipInfo, file_bytes: int) -> None:
    name = member.filename
    parts = name.rstrip("/").split("/")
    is_asset = parts[0] == "assets" and not {"", ".", ".."} & set(parts) and "\\" not in name
    if name not in _MEMBERS and not is_asset:
        raise UnsafeFileError(
            f"its archive contains {name[:100]!r}, which is not part of a .keras file; save the "
            "model again with model.save('NAME.keras')"
        )
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UnsafeFileError(f"its member {name!r} is a link or a device, not a file")
    if member.compress_type not in _COMPRESSION_TYPES or member.flag_bits & _IS_ENCRYPTED:
        raise UnsafeFileError(f"its member {name!r} is encrypted, or compressed in an unknown way")
    stored = min(member.compress_size, file_bytes)
    limit = stored * (1 if member.compress_type == zipfile.ZIP_STORED else _MAX_EXPANSION)
    if member.file_size > limit + _TOLERANCE_BYTES:
        raise UnsafeFileError(
            f"its member {name!r} claims {member.file_size} bytes, of which {stored} are stored: "
            "it is a bomb, or damaged"
        )
    if name in (CONFIG_MEMBER, METADATA_MEMBER) and member.file_size > _MAX_CONFIG_BYTES:
        raise UnsafeFileError(
            f"its {name} has {member.file_size} bytes; the limit is {_MAX_CONFIG_BYTES}"
        )


def network_config(text: bytes | str) -> Any:
    """Return a network's JSON config without what it was compiled with, which is not loaded.

    Raises:
        UnsafeFileError: it is nested too deeply.
    """
    try:
        config = json.loads(text)
    except RecursionError:
        raise UnsafeFileError("its config is nested too deeply") from None
    for part in json_objects(config):
        if "class_name" in part:
            part.pop("compile_config", None)
    return config


def inspect_network_config(text: bytes | str, trust: Sequence[str]) -> None:
    """Raise UnsafeFileError if a network's JSON config names code that is not trusted.

    It is also refused if it has more layers than Keras builds in reasonable time.
    """
    num_layers = 0
    for part in json_objects(network_config(text)):
        if "class_name" in part:
            _check_class(part, trust)
            num_layers += _is_layer(part)
    if num_layers > _MAX_LAYERS:
        raise UnsafeFileError(
            f"its config has {num_layers:,} layers, and the limit is {_MAX_LAYERS:,}: building so "
            "many would take minutes; save a network with fewer layers"
        )


def _is_layer(config: dict[str, Any]) -> bool:
    """Return whether an object is a layer or operation, not an initializer, dtype or tensor."""
    module = config.get("module")
    return "inbound_nodes" in config or module not in _MODULES_WITHOUT_LAYERS


def json_objects(config: Any) -> Iterator[dict[str, Any]]:
    """Yield every JSON object in a value, at any depth."""
    pending = [(config, 0)]
    while pending:
        value, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise UnsafeFileError(f"its config is nested more than {_MAX_DEPTH} levels deep")
        if isinstance(value, dict):
            yield value
            pending += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, list):
            pending += [(inner, depth + 1) for inner in value]


def _check_class(config: dict[str, Any], trust: Sequence[str]) -> None:
    """Raise UnsafeFileError if a serialised object is not of an allowed class."""
    class_name, module = config["class_name"], config.get("module")
    registered_name = config.get("registered_name")
    if not all(isinstance(name, str | None) for name in (class_name, module, registered_name)):
        raise UnsafeFileError("its config names a class by a value that is not a string")
    for name in (class_name, str(registered_name).rpartition(">")[2]):
        if name in _CODE_CLASSES:
            raise UnsafeFileError(
                f"it holds {_CODE_CLASSES[name]}, which could run any code; replace it by a "
                "registered layer and save the model again (docs/models.md has the lines for it)"
            )
    is_cvbatch = str(registered_name).startswith("cvbatch>") and str(module).startswith("cvbatch.")
    if module is None or is_cvbatch:
        return
    if not covers((*_KERAS_MODULES, *trust), module):
        raise UnsafeFileError(
            f"it needs the class {class_name!r} of {module!r}, which is neither Keras' nor "
            "cvbatch's: code from outside is not run; if you trust that module and it is "
            f"installed, set trust: [{module.split('.src.')[0]}], or build the network again from "
            "Keras layers"
        )


def _check_weights(
    file: IO[bytes] | io.RawIOBase, file_bytes: int, trust: Sequence[str] = ()
) -> int:
    """Return the size of all arrays in an HDF5 file; raise UnsafeFileError for other objects."""
    total = 0
    with h5py.File(file, "r") as root:
        for path, item in _walk(root):
            if isinstance(item, h5py.Dataset):
                total += _check_array(path, item)
                if total > file_bytes * _MAX_EXPANSION + _TOLERANCE_BYTES:
                    raise UnsafeFileError(
                        f"its arrays claim more than {total} bytes, and the file has {file_bytes}: "
                        "it is a bomb, or damaged"
                    )
        if (config := root.attrs.get("model_config")) is not None:  # written by Keras 2
            inspect_network_config(config, trust)
    return total


def _walk(root: h5py.Group) -> Iterator[tuple[str, h5py.Group | h5py.Dataset]]:
    """Yield path and object of all groups and arrays below a group, each object once.

    The type of a link is checked before the object is opened.
    """
    visited: set[int] = set()  # addresses in the file
    pending = [("", root, 0)]
    while pending:
        parent, group, depth = pending.pop()
        for key in group:
            path = f"{parent}/{key}"
            link = group.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise UnsafeFileError(f"its {path[:200]!r} is a link to {_target(link)!r}")
            item = group[key]
            address = h5py.h5o.get_info(item.id).addr
            if address in visited:
                continue
            visited.add(address)
            if len(visited) > _MAX_OBJECTS or depth > _MAX_DEPTH:
                raise UnsafeFileError(
                    f"it holds more than {_MAX_OBJECTS} groups and arrays, or they are nested more "
                    f"than {_MAX_DEPTH} levels deep"
                )
            yield path, item
            if isinstance(item, h5py.Group):
                pending.append((path, item, depth + 1))


def _target(link: Any) -> str:
    return str(getattr(link, "filename", "") or link.path)[:200]


def _check_array(path: str, array: h5py.Dataset) -> int:
    """Return the size of an array in bytes, or of one HDF5 chunk of it if that is larger."""
    if array.external or array.is_virtual:
        raise UnsafeFileError(f"its array {path[:200]!r} is stored in another file")
    if array.dtype.kind not in _NUMERIC_KINDS or array.dtype.fields or array.dtype.itemsize > 16:
        raise UnsafeFileError(
            f"its array {path[:200]!r} holds {str(array.dtype)[:50]}, not numbers"
        )
    shape = array.shape or ()
    return int(max(math.prod(shape), math.prod(array.chunks or ())) * array.dtype.itemsize)
