"""Installed modules that a job trusts (`trust:`): their versions, and their Keras classes.

The code of a model file is never run. A module that the job names is code of the user's
environment: its classes may be built from a file.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Iterable, Sequence
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cvbatch.core.errors import ModelError


def covers(trusted: Iterable[str], module: str) -> bool:
    """Return whether a module is one of the trusted ones, or below one of them."""
    return any(module == name or module.startswith(f"{name}.") for name in trusted)


def versions(trusted: Sequence[str]) -> dict[str, str]:
    """Return the version of each module, for fingerprints. Imports none of them.

    Returns:
        Name → distributions with their versions, or the SHA-256 of the sources of a package that
        belongs to no distribution.

    Raises:
        ModelError: a module is not installed.
    """
    distributions = packages_distributions() if trusted else {}
    found = {}
    for name in trusted:
        package = name.split(".")[0]
        names = sorted(set(distributions.get(package, ())))
        found[name] = " ".join(f"{one} {version(one)}" for one in names) or _source_hash(package)
    return found


def _source_hash(package: str) -> str:
    spec = find_spec(package)
    if spec is None:
        raise _missing(package, "no such module")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = [
        (file.relative_to(folder), file) for folder in folders for file in folder.rglob("*.py")
    ]
    digest = hashlib.sha256()
    for name, file in sorted(files) or [(Path(package), Path(str(spec.origin)))]:
        digest.update(f"{name}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def import_classes(trusted: Sequence[str]) -> dict[str, Any]:
    """Import the modules, which registers their classes, in this process.

    Returns:
        The Keras classes that the modules define, by their plain names, for files whose classes
        were not registered.

    Raises:
        ModelError: a module cannot be imported.
    """
    from cvbatch.models.frameworks import keras

    classes = {}
    for name in trusted:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise _missing(name, str(error)) from error
        for key, value in vars(module).items():
            is_layer = inspect.isclass(value) and issubclass(value, keras.Layer)
            if is_layer and covers(trusted, value.__module__):
                classes[key] = value
    return classes


def _missing(name: str, reason: str) -> ModelError:
    return ModelError(
        f"trust: the module {name!r} cannot be imported ({reason}); install its package in the "
        "environment of cvbatch, on all nodes of a cluster, or correct the name"
    )
