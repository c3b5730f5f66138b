"""The commands of the README and of the tutorial run, as written, in an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cvbatch.cli.main import main
from tests.docs.markdown import ROOT, blocks, read

TUTORIAL = read("docs/tutorial.md")
README = read("README.md")
# In the files in which Keras caches what it downloads.
_UNTRAINED = """
from keras.applications import MobileNetV2
name = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224"
MobileNetV2(weights=None).save(name + ".h5")
MobileNetV2(weights=None, include_top=False, input_shape=(224, 224, 3)).save(name + "_no_top.h5")
"""


def shell(script: str, folder: Path, **variables: str) -> str:
    """Run shell commands with the cvbatch of this Python; return what they print."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        **variables,
    }
    done = subprocess.run(
        ["bash", "-euc", script], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def section(page: str, heading: str) -> str:
    """Return a section of a page, its subsections included."""
    return page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def draw_data(folder: Path) -> None:
    """Write the images and labels of the tutorial into `folder`/shapes."""
    (folder / "shapes.py").write_text(blocks(TUTORIAL, "python")[0])
    first = blocks(section(TUTORIAL, "1. Images and labels"), "sh")
    shell(first[0], folder)


def test_the_data_of_the_tutorial_are_imported_without_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    (command,) = blocks(section(TUTORIAL, "2. Import"), "sh")
    assert main(["import", *command.split()[2:], "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["splits"]["train"]["images"] == 200
    assert summary["oddities"] == []


@pytest.mark.soak
@pytest.mark.keras
@pytest.mark.ray
@pytest.mark.process
def test_the_tutorial_runs(tmp_path: Path) -> None:
    (tmp_path / "shapes.py").write_text(blocks(TUTORIAL, "python")[0])
    printed = shell("\n".join(blocks(TUTORIAL, "sh")), tmp_path)
    values = dict(line.split()[1:3] for line in printed.splitlines() if "detection " in line)
    assert float(values["ap50"]) > 0.5
    for page in ("result/_cvbatch/report.html", "trained/_cvbatch/report.html"):
        assert (tmp_path / page).stat().st_size > 50_000
    assert len(list((tmp_path / "boxes" / "images").rglob("*.jpg"))) == 280
    for code in blocks(TUTORIAL, "python")[1:]:
        shell(f"python - <<'END'\n{code}\nEND", tmp_path)


@pytest.mark.soak
@pytest.mark.keras
@pytest.mark.ray
@pytest.mark.process
def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    """With untrained weights in place of those that Keras downloads."""
    draw_data(tmp_path)
    images = sorted((tmp_path / "shapes" / "images" / "train").glob("*.jpg"))[:48]
    for i, path in enumerate(images):
        target = tmp_path / "labelled" / ("cats", "dogs")[i % 2]
        target.mkdir(parents=True, exist_ok=True)
        path.rename(target / path.name)
    shutil.copytree(tmp_path / "labelled", tmp_path / "photos")
    cache = tmp_path / "keras" / "models"
    cache.mkdir(parents=True)
    shell(f"python -c '{_UNTRAINED}'", cache)
    for heading in ("Your own images", "Your own labels"):
        (commands,) = blocks(section(README, heading), "sh")
        shell(commands, tmp_path, KERAS_HOME=str(tmp_path / "keras"))
    for path in (
        "result/_cvbatch/report.html",
        "fiftyone/classifications.json",
        "explained/pictures",
    ):
        assert (tmp_path / path).exists()
    metrics = json.loads((tmp_path / "better-evaluation" / "metrics.json").read_text())
    assert "classification" in metrics["tasks"]
