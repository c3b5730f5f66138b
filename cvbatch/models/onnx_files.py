"""Check and read an untrusted ONNX file.

Weights in other files are read only from the folder of the model. The content that leaves this
module contains all weights, so that onnxruntime opens no other file.

Source: https://github.com/onnx/onnx/blob/main/docs/ExternalData.md
"""

from __future__ import annotations

import ast
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cvbatch.core.errors import ModelError
from cvbatch.core.extras import require
from cvbatch.models.file_graphs import FileGraph, Node

MAX_BYTES = 2**31 - 2**20  # a protobuf message has at most 2 GiB
_MAX_DEPTH = 20  # of nested graphs
_EXTERNAL = 1  # TensorProto.DataLocation


def read(path: Path, name: str) -> Any:  # onnx.ModelProto
    """Parse an ONNX file without its data files.

    Args:
        path: local file.
        name: file as the user named it, for messages.

    Raises:
        ModelError: the package onnx is not installed, or the file is too large, or not ONNX.
    """
    onnx = require("onnx", "onnx")
    if path.stat().st_size > MAX_BYTES:
        raise ModelError(f"{name} is refused: it has more than {MAX_BYTES:,} bytes")
    try:
        model = onnx.load_model(path, load_external_data=False)
    except Exception:  # noqa: BLE001 - protobuf's exceptions depend on its implementation
        raise ModelError(
            f"{name} cannot be loaded: it is not an ONNX file, or is truncated; copy it again"
        ) from None
    if not model.graph.node:
        raise ModelError(f"{name} is not an ONNX model: it has no operations")
    return model


def data_files(model: Any, name: str) -> tuple[str, ...]:
    """Return the names of the data files of a model, sorted.

    Raises:
        ModelError: a data file is not in the folder of the model.
    """
    names = {_entries(tensor).get("location", "") for tensor in _external_tensors(model)}
    for file in names:
        if Path(file).name != file or "\\" in file or ":" in file or file in ("", "."):
            raise ModelError(
                f"{name} is refused: its weights are in {file[:200]!r}, and a data file must be in "
                "the folder of the model; export it with torch.onnx.export(..., "
                "external_data=False)"
            )
    return tuple(sorted(names))


def include_data(model: Any, files: dict[str, Path], name: str) -> None:
    """Copy the weights of data files into the model.

    Args:
        model: onnx.ModelProto, changed in place.
        files: local path of each of `data_files`.
        name: file as the user named it, for messages.

    Raises:
        ModelError: a data file is too short, or model and weights are too large.
    """
    total = 0
    for tensor in _external_tensors(model):
        entries = _entries(tensor)
        path = files[entries["location"]]
        offset = _number(entries.get("offset", "0"))
        length = _number(entries.get("length", str(path.stat().st_size - offset)))
        total += length
        if min(offset, length) < 0 or offset + length > path.stat().st_size or total > MAX_BYTES:
            raise ModelError(
                f"{name} is refused: its tensor {tensor.name[:200]!r} is not in "
                f"{entries['location']!r}, which is truncated or belongs to another model, or all "
                f"weights have more than {MAX_BYTES:,} bytes"
            )
        with path.open("rb") as file:
            file.seek(offset)
            tensor.raw_data = file.read(length)
        tensor.ClearField("external_data")
        tensor.data_location = 0


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 19 else -1


def content_digest(digest: str, data: dict[str, str]) -> str:
    """Return the SHA-256 of a model and its data files: of the model's own without data files.

    Args:
        digest: SHA-256 of the .onnx file.
        data: SHA-256 of each data file.
    """
    if not data:
        return digest
    return hashlib.sha256(f"{digest}{sorted(data.items())}".encode()).hexdigest()


def class_names(model: Any) -> tuple[str, ...] | None:
    """Return the class names that Ultralytics' exporter stores; None without them."""
    text = next((entry.value for entry in model.metadata_props if entry.key == "names"), "")
    try:
        names = ast.literal_eval(text) if len(text) < 1 << 20 else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(names, dict) or list(names) != list(range(len(names))) or not names:
        return None
    return tuple(map(str, names.values()))


def graph_of(model: Any) -> FileGraph:
    """Return the operations of a model."""
    nodes = (Node(n.op_type, tuple(n.input), tuple(n.output)) for n in model.graph.node)
    sizes = (math.prod(tensor.dims) for tensor in model.graph.initializer)
    return FileGraph(tuple(nodes), sum(sizes))


def constant(model: Any, name: str) -> Any | None:  # np.ndarray
    """Return the values of a constant of the main graph; None if it is not a constant."""
    onnx = require("onnx", "onnx")
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return onnx.numpy_helper.to_array(tensor)
    for node in model.graph.node:
        if node.op_type == "Constant" and name in node.output and node.attribute[0].name == "value":
            return onnx.numpy_helper.to_array(node.attribute[0].t)
    return None


def _entries(tensor: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _external_tensors(model: Any) -> Iterator[Any]:
    """Yield every tensor of a model whose values are in another file, in nested graphs too."""
    functions = [node for function in model.functions for node in function.node]
    training = [g for info in model.training_info for g in (info.initialization, info.algorithm)]
    for tensor in _tensors([model.graph, *training], functions, 0):
        if tensor.data_location == _EXTERNAL or tensor.external_data:
            yield tensor


def _tensors(graphs: list[Any], nodes: list[Any], depth: int) -> Iterator[Any]:
    if depth > _MAX_DEPTH:
        raise ModelError(
            f"the graphs of an ONNX file are nested more than {_MAX_DEPTH} levels deep"
        )
    sparse = [tensor for graph in graphs for tensor in graph.sparse_initializer]
    for graph in graphs:
        yield from graph.initializer
    inner: list[Any] = []
    for node in [*nodes, *(node for graph in graphs for node in graph.node)]:
        for attribute in node.attribute:
            yield from [*attribute.tensors, *_set(attribute, "t")]
            sparse += [*attribute.sparse_tensors, *_set(attribute, "sparse_tensor")]
            inner += [*attribute.graphs, *_set(attribute, "g")]
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)
    if inner:
        yield from _tensors(inner, [], depth + 1)


def _set(attribute: Any, field: str) -> list[Any]:
    """Return the value of a field that may not be set, as a list."""
    return [getattr(attribute, field)] if attribute.HasField(field) else []
