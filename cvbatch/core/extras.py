"""Packages of extras: import one, or get its version; its absence is one sentence."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from cvbatch.core.errors import ModelError


def require(module: str, extra: str) -> ModuleType:
    """Return an optional module.

    Args:
        module: name of the module.
        extra: of this package that installs it.

    Raises:
        ModelError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise _not_installed(module, extra) from None


def required_version(package: str, extra: str) -> str:
    """Return the version of an optional package.

    Raises:
        ModelError: it is not installed.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        raise _not_installed(package, extra) from None


def _not_installed(name: str, extra: str) -> ModelError:
    return ModelError(f"{name} is not installed; install it with pip install 'cvbatch[{extra}]'")
