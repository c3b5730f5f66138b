"""Malicious model files: code, links, bombs and false sizes, made from one small valid network."""

from __future__ import annotations

import base64
import io
import json
import pickle
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

KERNEL = "layers/dense/vars/0"  # path of the kernel, which the functions change
SHAPE = (27, 3)


class Touch:
    """An object that creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def network() -> Any:
    """Return the valid network: input of 3 × 3 pixels, three classes.

    With its names, its files have the same bytes in every process: HDF5 never returns from some
    damaged files, so the damage of a test must not depend on the tests before it.
    """
    import keras

    image, flatten = keras.Input((3, 3, 3), name="image"), keras.layers.Flatten(name="flatten")
    return keras.Sequential([image, flatten, dense(keras)], name="net")


def dense(keras: Any) -> Any:
    return keras.layers.Dense(3, name="dense", kernel_initializer="ones")


def members(valid: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(valid) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


# --- what the config may say


def _function(module: str, name: str, **values: Any) -> dict[str, Any]:
    return {"module": module, "class_name": "function", "config": name, **values}


def bad_activations(canary: Path) -> dict[str, Any]:
    """Return malicious values of a layer's activation: description → value."""
    code = base64.b64encode(b"no code, for nobody is to look").decode()
    value = {"value": [code, None, None]}
    touch = f"touch {canary}"
    return {
        "lambda": {"class_name": "__lambda__", "config": value},
        "system": _function("os", "system", registered_name="system"),
        "exec": _function("builtins", "exec", registered_name="exec"),
        "eval as relu": _function("builtins", "eval", registered_name="relu"),
        "get_file": _function("keras.utils", "get_file", registered_name="get_file"),
        "unsafe": _function("keras.config", "enable_unsafe_deserialization"),
        "load_model": _function("keras.models", "load_model"),
        "popen": {
            "module": "subprocess", "class_name": "Popen", "config": {"args": touch, "shell": True},
            "registered_name": None,
        },
        "ours in name": {
            "module": "os", "class_name": "popen", "config": {"cmd": touch},
            "registered_name": "cvbatch>popen",
        },
        "unknown of ours": {
            "module": "cvbatch.models.custom_layers", "class_name": "os", "config": {},
            "registered_name": "cvbatch>os",
        },
        "a list for a class": {"module": ["os"], "class_name": ["system"], "config": {}},
        "typespec": {
            "class_name": "__typespec__", "spec_name": "system", "registered_name": "system",
            "module": "os", "config": [touch],
        },
    }  # fmt: skip


def bad_layers(canary: Path) -> dict[str, Any]:
    """Return malicious layers: description → config."""
    pickled = base64.b64encode(pickle.dumps(Touch(canary))).decode()

    def layer(kind: str, module: str = "keras.layers", **config: Any) -> dict[str, Any]:
        return {
            "module": module,
            "class_name": kind,
            "registered_name": None,
            "config": {"name": "bad", **config},
        }

    return {
        "Lambda": _lambda(canary),
        "Lambda by its own module": {**_lambda(canary), "module": "keras.src.layers.core"},
        "Lambda by another name": {**_lambda(canary), "registered_name": "keras>Lambda"},
        "SavedModel": layer("TFSMLayer", filepath=str(canary.parent)),
        "PyTorch": layer("TorchModuleWrapper", module={"value": pickled}),
        "JAX": layer("JaxLayer", call_fn=_function("os", "system")),
        "of a module": layer("Popen", "subprocess"),
        "of a package that is imported": layer("Layer", "keras_hub.src.layers"),
        "not a layer": layer("Path", "keras.src.utils.file_utils"),
        "that reads a file": layer("StringLookup", vocabulary="/etc/passwd"),
        "of 4 TB": layer("Dense", units=10**12, activation="linear"),
        "of 100 GB": layer("Dense", units=10**10, activation="linear"),
    }


def _lambda(canary: Path) -> dict[str, Any]:
    """Return the config of a Lambda layer that creates the canary file when it is called."""
    import keras

    code = f"lambda x: (__import__('pathlib').Path({str(canary)!r}).touch(), x)[1]"
    layer = keras.layers.Lambda(eval(code), output_shape=(3,), name="bad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(keras.saving.serialize_keras_object(layer))


def deep_config(num_layers: int, *, is_nested: bool) -> bytes:
    """Return the config of a network with many layers, in one model or in ten nested ones."""
    relu = {"module": "keras.layers", "class_name": "ReLU", "config": {}, "registered_name": None}
    layers = [relu] * (num_layers // 10)
    inner = {"module": "keras", "class_name": "Sequential", "config": {"layers": layers}}
    config = {"layers": [inner] * 10 if is_nested else layers * 10}
    return json.dumps({"module": "keras", "class_name": "Sequential", "config": config}).encode()


def bad_configs(valid: Path, canary: Path) -> dict[str, bytes]:
    """Return malicious model configs: description → JSON."""
    text = members(valid)["config.json"]
    found: dict[str, bytes] = {}
    for name, activation in bad_activations(canary).items():
        config = json.loads(text)
        config["config"]["layers"][-1]["config"]["activation"] = activation
        found[f"activation {name}"] = json.dumps(config).encode()
    for name, layer in bad_layers(canary).items():
        config = json.loads(text)
        config["config"]["layers"].append(layer)
        found[f"layer {name}"] = json.dumps(config).encode()
    deep = b"[" * 100_000 + b"]" * 100_000
    found["deep"] = b'{"class_name": "Sequential", "config": ' + deep + b"}"
    found["rather deep"] = b'{"class_name": "Sequential", "config": ' + b"[" * 300 + b"]" * 300
    found["rather deep"] += b"}"
    found |= {
        "no JSON": b"\xff\xfe\0",
        "a number": b"7",
        "a list": b"[]",
        "empty": b"",
        "{}": b"{}",
    }
    return found


# --- what the archive may be


def bad_archives(valid: Path, canary: Path) -> dict[str, bytes]:
    """Return .keras files with malformed archives: description → bytes."""
    files = members(valid)
    found: dict[str, bytes] = {}
    outside = canary.with_name("outside")
    for name in (
        "../outside", "../../x/outside", str(outside), "assets/../../outside", "a/../../outside",
        "assets//outside", "assets\\..\\outside", "C:\\outside", "weights.pkl", "model.weights.npz",
    ):  # fmt: skip
        found[f"member {name}"] = _archive({**files, name: b"written"})
    link = zipfile.ZipInfo("assets/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    found["a link"] = _archive(files, (link, str(outside.parent).encode()))
    found["config twice"] = _archive(files, (zipfile.ZipInfo("config.json"), b"{}"))
    found["a bomb"] = _archive({**files, "model.weights.h5": bytes(150 << 20)}, packed=True)
    found["a bomb of an asset"] = _archive({**files, "assets/x": bytes(130 << 20)}, packed=True)
    lzma = zipfile.ZipInfo("assets/x")
    lzma.compress_type = zipfile.ZIP_LZMA
    found["LZMA"] = _archive(files, (lzma, b"x" * 99))
    whole = _archive(files)
    found["a claim of 4 GB"] = _with_sizes(whole, 2**32 - 2)
    found["a claim of nothing"] = _with_sizes(whole, 0)
    found["encrypted"] = _with_flag(whole)
    npz = io.BytesIO()
    np.savez(npz, np.array([Touch(canary)], object))  # pickled
    without = {name: data for name, data in files.items() if name != "model.weights.h5"}
    found["pickled weights"] = _archive({**without, "model.weights.npz": npz.getvalue()})
    found["pickle for weights"] = _archive(
        {**files, "model.weights.h5": pickle.dumps(Touch(canary))}
    )
    found["no weights"] = _archive(without)
    found["no config"] = _archive({"model.weights.h5": files["model.weights.h5"]})
    found["pickle"] = pickle.dumps(Touch(canary))
    found["nothing"] = b""
    return found


def _archive(
    files: dict[str, bytes], *more: tuple[zipfile.ZipInfo, bytes], packed: bool = False
) -> bytes:
    file = io.BytesIO()
    packing = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", packing) as archive:
        warnings.simplefilter("ignore")  # that a name is there already
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, packing)
        for member, data in more:
            archive.writestr(member, data)
    return file.getvalue()


def _with_sizes(data: bytes, size: int) -> bytes:
    """Return an archive whose directory has false sizes for all members."""
    result, start = bytearray(data), data.index(b"PK\1\2")
    while result[start : start + 4] == b"PK\1\2":
        result[start + 20 : start + 28] = struct.pack("<II", size, size)
        name, extra, comment = struct.unpack("<HHH", result[start + 28 : start + 34])
        start += 46 + name + extra + comment
    return bytes(result)


def _with_flag(data: bytes) -> bytes:
    """Return an archive whose first member is marked as encrypted."""
    result, start = bytearray(data), data.index(b"PK\1\2")
    result[6] |= 1
    result[start + 8] |= 1
    return bytes(result)


# --- what the weights may be


def bad_weights(canary: Path) -> dict[str, Callable[[h5py.File], None]]:
    """Return functions that make a valid HDF5 weights file malicious: description → function."""
    secret = canary.with_name("secret")
    secret.write_bytes(bytes(400))

    def put(file: h5py.File, **how: Any) -> None:
        parent, name = file[KERNEL].parent, KERNEL.rsplit("/", 1)[1]
        del parent[name]
        parent.create_dataset(name, **how)

    def linked(file: h5py.File, link: Any) -> None:
        del file[KERNEL]
        file[KERNEL] = link

    def virtual(file: h5py.File) -> None:
        layout = h5py.VirtualLayout(SHAPE, np.float32)
        layout[:] = h5py.VirtualSource(str(secret), "x", SHAPE)
        del file[KERNEL]
        file.create_virtual_dataset(KERNEL, layout)

    def deep(file: h5py.File) -> None:
        group = file
        for _ in range(300):
            group = group.create_group("g")

    def group_link(file: h5py.File) -> None:
        del file["layers"]
        file["layers"] = h5py.ExternalLink(str(secret), "/layers")

    texts = np.array([pickle.dumps(Touch(canary)).hex()] * 81, object).reshape(SHAPE)
    return {
        "external link": lambda f: linked(f, h5py.ExternalLink(str(secret), "/x")),
        "external group": group_link,
        "soft link": lambda f: linked(f, h5py.SoftLink("/layers/dense/vars/1")),
        "raw data elsewhere": lambda f: put(
            f, shape=SHAPE, dtype=np.float32, external=[(str(secret), 0, 324)]
        ),
        "virtual": virtual,
        "texts": lambda f: put(f, data=texts, dtype=h5py.string_dtype()),
        "references": lambda f: put(f, shape=SHAPE, dtype=h5py.ref_dtype),
        "opaque": lambda f: put(f, data=np.full(SHAPE, pickle.dumps(3), "V99")),
        "records": lambda f: put(f, shape=SHAPE, dtype=[("a", "f4"), ("b", "f4")]),
        "huge": lambda f: put(f, shape=(2**40, 3), dtype=np.float32, chunks=(1024, 3)),
        "huge chunks": lambda f: put(
            f, shape=SHAPE, maxshape=(None, 3), dtype=np.float32, chunks=(2**27, 3)
        ),
        "packed zeros": lambda f: f.create_dataset(
            "zeros", data=np.zeros(100_000_000, np.uint8), compression="gzip", chunks=(10**6,)
        ),
        "deep": deep,
    }


def harmless(file: h5py.File) -> None:
    """Link a group into itself, which is harmless."""
    file["layers/dense/again"] = file["layers"]
