"""Optional packages: what is missing is named with the extra that installs it."""

from __future__ import annotations

import sys
from importlib import metadata

import pytest

from cvbatch.core import extras
from cvbatch.core.errors import ModelError


def test_an_installed_module_is_returned():
    assert extras.require("json", "onnx") is sys.modules["json"]


def test_a_missing_module_names_its_extra():
    message = r"^no_such_module is not installed; install it with pip install 'cvbatch\[onnx\]'$"
    with pytest.raises(ModelError, match=message):
        extras.require("no_such_module", "onnx")
    with pytest.raises(ModelError, match=r"^no-such-package is not installed; .*\[hub\]'$"):
        extras.required_version("no-such-package", "hub")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_dependency", r"^no_such_dependency is not installed; install it with "),
        ("raise ImportError('libx.so is missing')", r"^broken_module is .*\(libx\.so is missing\)"),
    ],
)
def test_a_module_that_cannot_be_imported_is_not_called_missing(
    tmp_path, monkeypatch, code, message
):
    (tmp_path / "broken_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=message):
        extras.require("broken_module", "onnx")


REQUIREMENTS = [
    "numpy~=2.4",
    "types-PyYAML ; python_version < '3'",
    'Some_Package[x]>=1; extra == "tensorflow"',
    'cvbatch[tensorflow]; extra == "gpu"',
    'other ; extra == "gpu"',
]


def test_packages_of_extras(monkeypatch):
    monkeypatch.setattr(extras, "requires", lambda name: REQUIREMENTS)
    assert extras.packages_of() == ["numpy"]
    assert extras.packages_of(["tensorflow"]) == ["numpy", "some-package"]
    assert extras.packages_of(["gpu"]) == ["numpy", "other"]


def test_cvbatch_that_runs_from_a_folder_has_no_packages(monkeypatch):
    def not_installed(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", not_installed)
    assert extras.packages_of(["tensorflow"]) == []
