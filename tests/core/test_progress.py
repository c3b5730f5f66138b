"""Progress on a terminal, on a plain stream and as events."""

import io
import os
import pty
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from cvbatch.core import progress
from cvbatch.core.types import ChunkReport

REPORT = ChunkReport("c0", 100, {"decode/empty": 3}, 1000, {}, 5000, {}, {}, {})
TOTALS = SimpleNamespace(num_chunks=1, num_images=100, num_failed=3, images_per_second=50.0)

JOB = """
from types import SimpleNamespace
from cvbatch.core.progress import progress_listener
from tests.core.test_progress import REPORT, TOTALS
with progress_listener() as listener:
    listener.phase("compiling 3 models")
    listener.info("a note")
    listener.started(4, 5000)
    listener.written(REPORT, TOTALS)
    listener._progress.refresh()
    listener.phase("training", 40, "epochs")
    listener.epoch("epoch 3: loss 0.5", {"epoch": 3})
    listener._progress.refresh()
"""


@pytest.mark.process
def test_a_terminal_shows_the_phase_and_what_is_done_in_images():
    parent, child = pty.openpty()
    environment = {**os.environ, "COLUMNS": "120", "TERM": "xterm"}
    done = subprocess.run([sys.executable, "-c", JOB], stderr=child, env=environment, check=True)
    os.close(child)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(parent, 1 << 20).decode())
    os.close(parent)
    assert done.returncode == 0
    assert "compiling 3 models" in text
    assert "a note" in text
    assert re.search(r"predicting .*100 / 5,000 images · 50 images/s · 3 failed", text)
    assert re.search(r"training .*3 / 40 epochs", text)
    assert "chunks" not in text


def lines_of(monkeypatch, interval_s):
    monkeypatch.setattr(progress, "_REPORT_INTERVAL_S", interval_s)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.progress_listener() as listener:
        listener.phase("comparing", 12, "parts")
        listener.advanced(5)
        listener.phase("compiling 1 model")
        listener.started(4, 0)
        listener.written(REPORT, TOTALS)
    return [line.partition(" ")[2] for line in sys.stderr.getvalue().splitlines()]


def test_plain_lines_name_the_phase_and_now_and_then_what_is_done(monkeypatch):
    assert lines_of(monkeypatch, -1.0)[:3] == [
        "comparing, 12 parts",
        "5 / 12 parts",
        "compiling 1 model",
    ]
    assert "5 / 12 parts" not in lines_of(monkeypatch, 60.0)
