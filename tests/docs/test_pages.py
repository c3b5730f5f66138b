"""Links, commands and job files of all pages are valid."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from cvbatch.cli.arguments import build_parser
from cvbatch.cli.job_files import JOB_KINDS
from cvbatch.config.loader import parse
from tests.docs.markdown import PAGES, ROOT, anchors, blocks, commands, links, read

NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
_NEEDED = {
    "predict": {"source": "i", "sink": "o"},
    "train": {
        "source": "i", "sink": "o", "model": {"task": "classification", "model": "net.keras"},
    },
    "evaluate": {"truth": "t", "sink": "o"},
    "explain": {"source": "i", "sink": "o"},
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_to_a_file_and_a_heading(name: str) -> None:
    for link in links(read(name)):
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), f"{link} does not exist"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{link} has no heading"


def test_the_readme_links_every_page() -> None:
    targets = {(ROOT / link.partition("#")[0]).resolve() for link in links(read("README.md"))}
    assert set(PAGES) - targets == {ROOT / "README.md"}


def test_every_command_has_these_options() -> None:
    parser = build_parser()
    used = set()
    for name in NAMES:
        for words in commands(read(name)):
            if Path(words[0]).name == "cvbatch":
                used.add(parser.parse_args(words[1:]).command)
    assert used >= {"predict", "train", "evaluate", "explain", "report", "import", "export"}


def test_every_extra_exists() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    named = {
        extra
        for name in NAMES
        for extras in re.findall(r"(?:cvbatch|PATH|\.)\[([a-z,]+)\]", read(name))
        for extra in extras.split(",")
    }
    assert {"tensorflow", "onnx"} <= named <= set(project["optional-dependencies"])


def kind_of(job: dict[str, Any]) -> str:
    """Return the kind of a job file, or of a part of it."""
    keys = {"models": "predict", "predictions": "evaluate", "training": "train"}
    return next((kind for key, kind in keys.items() if key in job), "explain")


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(read(name), "yaml")])
def test_every_job_file_is_valid(name: str) -> None:
    for text in blocks(read(name), "yaml"):
        job = yaml.safe_load(text.replace("5f0c…e1", "a" * 64))
        kind = kind_of(job)
        for model in job.get("models", ()):
            if isinstance(model, dict) and "outputs" not in model:
                model.setdefault("task", "classification")
        if job.get("models") == ["MobileNetV2"]:  # `complete_model` adds task and weights
            job["models"] = [{"task": "classification", "model": "net.keras"}]
        assert parse(JOB_KINDS[kind], {**_NEEDED[kind], **job})
