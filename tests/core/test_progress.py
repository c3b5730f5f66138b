"""Progress on a terminal, on a plain stream and as events."""

import io
import json
import re
import sys
from types import SimpleNamespace

import pytest

from cvbatch.core import progress
from cvbatch.core.json_log import JsonLog
from cvbatch.core.types import ChunkReport
from tests.support.terminal import run_on_terminal

REPORT = ChunkReport("c0", 100, {"decode/empty": 3}, 1000, {}, 5000, {}, {}, {})
TOTALS = SimpleNamespace(num_chunks=1, num_images=100, num_failed=3, images_per_second=50.0)

JOB = """
from cvbatch.core import progress
from cvbatch.core.progress import progress_listener
progress._MIN_SPAN_S = 0
from tests.core.test_progress import REPORT, TOTALS
with progress_listener() as listener:
    listener.phase("listing", unit="files")
    listener.advanced(12000)
    listener._progress.refresh()
    listener.phase("compiling 3 models")
    listener.info("a note")
    listener.started(4, 5000)
    listener.written(REPORT, TOTALS)
    listener._progress.refresh()
    listener.phase("training", 40, "epochs")
    listener.advanced(2.5, "epoch 3/40 · 50 % · loss 0.5")
    listener._progress.refresh()
"""


@pytest.mark.process
@pytest.mark.parametrize("width", [120, 64])
def test_a_terminal_shows_the_phase_what_is_done_in_images_the_speed_and_the_time_left(width):
    status, lines = run_on_terminal([sys.executable, "-c", JOB], width)
    text = "\n".join(lines)
    assert status == 0, text
    assert re.search(r"listing .*12,000 files", text)
    assert "compiling 3 models" in text
    assert "a note" in text
    assert re.search(r"predicting .*100 / 5,000 images · [\d,]+/s · \d+ s left", text)
    assert re.search(r"training .*epoch 3/40 · 50 % · loss 0.5", text)
    assert "chunk" not in text
    assert all(len(line) <= width for line in lines)


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def test_the_speed_leaves_out_the_start_and_follows_the_last_minute(monkeypatch):
    clock = Clock(monkeypatch)
    meter = progress.Meter("predicting", 10_000, "images")
    assert (meter.speed, meter.seconds_left) == (None, None)
    clock.now += 30  # models are loaded
    meter.advance(10)
    assert meter.speed == pytest.approx(1 / 3)
    for _ in range(300):
        clock.now += 1
        meter.advance(meter.count + 20)
    assert meter.speed == pytest.approx(20)
    for _ in range(70):
        clock.now += 1
        meter.advance(meter.count + 5)
    assert meter.speed == pytest.approx(5)
    left = (10_000 - meter.count) / 5
    assert meter.seconds_left == pytest.approx(left)
    clock.now += 1.5  # the time left runs down until the next report
    assert meter.seconds_left == pytest.approx(left - 1.5)
    clock.now += 60  # no report for long
    assert meter.speed == pytest.approx(5 / 2, rel=0.1)
    meter.advance(10_000)
    assert meter.text.startswith("10,000 / 10,000 images · ")
    assert "left" not in meter.text


def test_what_is_done_twice_is_not_counted_twice(monkeypatch):
    Clock(monkeypatch)
    meter = progress.Meter("training", 10, "epochs")
    meter.advance(3.5)
    meter.advance(3.0, "epoch 4/10")
    assert meter.count == 3.5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (18, "18 s"), (60, "1 min"), (200, "3 min 20 s"), (7260, "2 h 1 min"),
     (86_400, "1 d"), (100_000, "1 d 3 h")],
)  # fmt: skip
def test_durations_have_at_most_two_units(seconds, text):
    assert progress.duration(seconds) == text


def test_one_is_singular():
    texts = [progress.counted(count, "images") for count in (0, 1, 1200)]
    assert texts == ["0 images", "1 image", "1,200 images"]


def plain_lines(monkeypatch, step_s):
    """Return the lines of a listing and of 600 chunks, each of which takes `step_s` seconds."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.progress_listener() as listener:
        listener.phase("listing", unit="files")
        listener.advanced(100)
        listener.advanced(6000)
        listener.phase("compiling 1 model")
        listener.started(600, 6000)
        for done in range(1, 601):
            clock.now += step_s
            totals = SimpleNamespace(num_images=10 * done, num_chunks=done)
            listener.written(REPORT, totals)
        text = sys.stderr.getvalue()
    return [line.partition(" ")[2] for line in sys.stderr.getvalue().splitlines()], text


def test_plain_lines_are_sparse_and_end_with_what_is_done(monkeypatch):
    lines, _ = plain_lines(monkeypatch, 0.01)
    assert lines == [
        "listing",
        "listing: 6,000 files",
        "compiling 1 model",
        "predicting, 6,000 images",
        "predicting: 6,000 / 6,000 images · 1,000/s",
    ]
    lines, _ = plain_lines(monkeypatch, 10)
    assert 90 <= len(lines) <= 130  # of 6000 seconds, at most one a minute
    assert lines[4] == "predicting: 10 / 6,000 images · 1.0/s · 1 h 39 min left"


def test_json_events_have_the_count_the_speed_and_the_time_left(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    monkeypatch.setattr(sys, "stderr", JsonLog(stream, "r"))
    with progress.progress_listener() as listener:
        listener.phase("exporting", 1000, "images")
        clock.now += 20
        listener.advanced(400)
    phase, event = map(json.loads, stream.getvalue().splitlines())
    assert (phase["message"], phase["total"], phase["unit"]) == ("exporting", 1000, "images")
    assert event["message"] == "exporting: 400 / 1,000 images · 20/s · 30 s left"
    assert [event[key] for key in ("done", "total", "per_second", "seconds_left")] == [
        400, 1000, 20, 30,
    ]  # fmt: skip
