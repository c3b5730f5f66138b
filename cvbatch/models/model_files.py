"""Fetch the model files and folders of a job and check their SHA-256."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from cvbatch.core.errors import ModelError, StoreError
from cvbatch.core.model_formats import HUB_SCHEME, PRESET_FILE, format_of
from cvbatch.storage import store
from cvbatch.storage.store import Storage

_SUBFOLDERS = ("", "variables", "assets")  # of a SavedModel or of a preset
_MAX_FILES = 1000
_MAX_PRESET_BYTES = 64 << 20


def fetch(storage: Storage, uri: str) -> Path:
    """Return the path of a local copy of a model file.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        return storage.fetch(uri)
    except StoreError as error:
        raise ModelError(f"the model file cannot be read: {error}") from None


def _fetch_all(storage: Storage, uri: str) -> dict[str, Path]:
    """Return name → local path of a model file, or of the files of a model folder."""
    if not format_of(uri).is_folder:
        source = fetch(storage, uri)
        return {source.name: source}
    folder = _folder_of(uri)
    try:
        names = [
            f"{part}/{name}" if part else name
            for part in _SUBFOLDERS
            for name in storage.list_names(store.join(folder, part) if part else folder)
        ]
        if not names:
            raise ModelError(
                f"model folder {store.missing_path(uri) or f'{uri} is empty; check the path'}"
            )
        if len(names) > _MAX_FILES:
            raise ModelError(
                f"model folder {uri} has {len(names)} files; a SavedModel or preset has fewer than "
                f"{_MAX_FILES}: set model to the folder of one model"
            )
        return {name: storage.fetch(store.join(folder, name)) for name in sorted(names)}
    except StoreError as error:
        raise ModelError(f"model folder {uri} cannot be read: {error}") from None


def read_preset(storage: Storage, uri: str) -> bytes:
    """Return the config of a KerasHub preset's task; b"" if the folder has none, or a huge one.

    Raises:
        ModelError: the folder cannot be read.
    """
    folder = _folder_of(uri)
    try:
        size = storage.list_names(folder).get(PRESET_FILE, 0)
        is_read = 0 < size <= _MAX_PRESET_BYTES
        return storage.fetch(store.join(folder, PRESET_FILE)).read_bytes() if is_read else b""
    except StoreError as error:
        raise ModelError(f"model folder {uri} cannot be read: {error}") from None


def _folder_of(uri: str) -> str:
    return preset_folder(uri) if uri.startswith(HUB_SCHEME) else uri


def preset_folder(model: str) -> str:
    """Return the folder of a KerasHub preset in the caches of kagglehub or of the Hugging Face Hub.

    Args:
        model: "keras_hub://" and the name of the preset.

    Raises:
        ModelError: the preset is in neither cache; nothing is downloaded.
    """
    name = model.removeprefix(HUB_SCHEME).strip("/")
    home = Path.home() / ".cache"
    kaggle = Path(os.environ.get("KAGGLEHUB_CACHE") or home / "kagglehub")
    hugging_face = Path(os.environ.get("HF_HOME") or home / "huggingface") / "hub"
    found = [
        *kaggle.glob(f"models/keras/*/keras/{name}/*/config.json"),
        *hugging_face.glob(f"models--keras--{name}/snapshots/*/config.json"),
    ]
    if not found or "/" in name:
        raise ModelError(
            f"the KerasHub preset {name!r} is neither in {kaggle} nor in {hugging_face}, and a job "
            'downloads nothing; download it once with `python -c "import keras_hub; '
            f"keras_hub.models.Task.from_preset('{name}')\"`, or set model to its folder"
        )
    return str(max(found, key=lambda file: file.stat().st_mtime).parent)


def model_sha256(storage: Storage, uri: str) -> str:
    """Return the SHA-256 of a model file or folder, in hex.

    That of a folder is the SHA-256 of the lines that `sha256sum` prints for its files, sorted by
    name: `(cd DIR; find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum)`.

    Raises:
        ModelError: it cannot be read.
    """
    return _sha256_of(uri, _fetch_all(storage, uri))


def _sha256_of(uri: str, files: Mapping[str, Path]) -> str:
    if not format_of(uri).is_folder:
        (file,) = files.values()
        return sha256(file)
    lines = [f"{sha256(path)}  {name}\n" for name, path in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def download(storage: Storage, uri: str, folder: Path, expected: str | None) -> Path:
    """Copy a model file or folder into a private folder, where no other process can change it.

    Args:
        uri: model file or folder.
        folder: private to this process.
        expected: SHA-256 of the file or folder, in hex; None: any.

    Raises:
        ModelError: it cannot be read or copied, or has another SHA-256.
    """
    copies = _copy(uri, _fetch_all(storage, uri), folder)
    if expected is not None:
        check(uri, _sha256_of(uri, copies), expected)
    return folder if format_of(uri).is_folder else next(iter(copies.values()))


def download_beside(storage: Storage, uri: str, name: str, folder: Path) -> Path:
    """Copy another file of a model file's folder into a private folder.

    Raises:
        ModelError: it cannot be read or copied.
    """
    source = fetch(storage, sibling(uri, name))
    return _copy(uri, {name: source}, folder)[name]


def _copy(uri: str, sources: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    copies = {name: folder / name for name in sources}
    try:
        for name, source in sources.items():
            copies[name].parent.mkdir(exist_ok=True)
            shutil.copyfile(source, copies[name])
    except OSError as error:
        raise ModelError(f"model {uri} cannot be copied: {error}; free disk space") from None
    return copies


def check(uri: str, actual: str, expected: str | None) -> None:
    """Raise ModelError if the SHA-256 of a model file is not the expected one; None: any."""
    if expected is not None and actual != expected:
        raise ModelError(
            f"model file {uri} has the SHA-256 {actual}, not {expected}: it is not the file pinned "
            "by sha256 in the job file, or it changed while the job started; correct model or "
            "sha256"
        )


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sibling(uri: str, name: str) -> str:
    """Return the URI of another file in the folder of a file."""
    folder, slash, _ = uri.rpartition("/")
    return f"{folder}{slash}{name}"
