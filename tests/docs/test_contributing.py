"""Every path, table and make target that CONTRIBUTING.md names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PATHS = [code for code in re.findall(r"`([^`]+)`", PAGE) if "/" in code or code.endswith(".md")]
CODE = [path for path in PATHS if "/P/" not in path]  # P stands for any package
TARGETS = sorted(set(re.findall(r"`make ([a-z-]+)`", PAGE)))


def names_of(path: Path) -> set[str]:
    """Return the names that a module assigns at its top level."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets += [node.target] if isinstance(node, ast.AnnAssign) else []
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_the_page_names_files_and_make_targets() -> None:
    assert len(CODE) > 30
    assert "test-fast" in TARGETS


@pytest.mark.parametrize("code", sorted(set(CODE)))
def test_every_path_exists_and_has_its_table(code: str) -> None:
    name, _, table = code.partition(":")
    paths = list(ROOT.glob(name))
    assert paths, f"{name} does not exist"
    if table:
        assert table in names_of(paths[0]), f"{name} has no {table}"


@pytest.mark.parametrize("target", TARGETS)
def test_every_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
