"""Packages of extras: import one, or get its version; its absence is one sentence."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from types import ModuleType

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cvbatch.core.errors import ModelError

TENSORFLOW = "tensorflow"  # the extra that builds, trains and explains networks
_NETWORK_PACKAGES = ("tensorflow", "keras", "h5py")


def require(module: str, extra: str) -> ModuleType:
    """Return an optional module.

    Args:
        module: name of the module.
        extra: of this package that installs it.

    Raises:
        ModelError: it is not installed, or is damaged.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _not_installed(error.name or module, extra) from None
    except ImportError as error:
        raise ModelError(
            f"{module} is installed but cannot be imported ({error}); install it again with pip "
            f"install --force-reinstall 'cvbatch[{extra}]'"
        ) from error


def required_version(package: str, extra: str) -> str:
    """Return the version of an optional package.

    Raises:
        ModelError: it is not installed.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        raise _not_installed(package, extra) from None


def require_tensorflow() -> None:
    """Check that this process can build networks, without importing TensorFlow.

    Raises:
        ModelError: TensorFlow, Keras or h5py is not installed.
    """
    for package in _NETWORK_PACKAGES:
        required_version(package, TENSORFLOW)


def packages_of(extras: Iterable[str] = ()) -> list[str]:
    """Return the names of the packages that cvbatch requires, with those of some of its extras.

    Extras that an extra includes have to be named too.

    Returns:
        [] if cvbatch is not installed, but runs from a folder.
    """
    try:
        requirements = [Requirement(line) for line in requires("cvbatch") or ()]
    except PackageNotFoundError:
        return []
    environments = [{"extra": extra} for extra in ("", *extras)]
    names: list[str] = [
        canonicalize_name(requirement.name)
        for requirement in requirements
        if canonicalize_name(requirement.name) != "cvbatch"  # an extra that includes another
        and (requirement.marker is None or any(map(requirement.marker.evaluate, environments)))
    ]
    return list(dict.fromkeys(names))


def _not_installed(name: str, extra: str) -> ModelError:
    return ModelError(f"{name} is not installed; install it with pip install 'cvbatch[{extra}]'")
