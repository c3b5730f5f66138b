"""Last lines name the images that a command left out, and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvbatch.cli.main import main
from tests.cli import mistakes
from tests.support import jobs


def test_import_and_evaluation_name_what_they_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One image is broken, one is not predicted, and three are not labelled."""

    def last_line(*arguments: str) -> str:
        assert main(arguments) == 0
        return capsys.readouterr().err.splitlines()[-1]

    monkeypatch.chdir(mistakes.write_home(tmp_path))
    jobs.write_files(tmp_path / "more", {"cat/new.png": jobs.encoded_image(0), "dog/x.png": b"no"})
    for name in ("cat/0.png", "cat/1.png", "dog/0.png"):
        jobs.write_files(tmp_path / "more", {name: (tmp_path / "photos" / name).read_bytes()})
    line = last_line("import", "folders", "more", "merged")
    assert line.startswith("cvbatch: done, 4 images into merged; not written: ")
    assert line.endswith(" 1 (_cvbatch/issues.jsonl)")
    class_map = "evaluation.class_map={disc: cat, ring: dog}"
    line = last_line("evaluate", "result", "merged", "--set", class_map)
    assert line.startswith("cvbatch: done, 3 images compared into ")
    assert "; not compared: 3 without ground truth, 1 without prediction; next: " in line
