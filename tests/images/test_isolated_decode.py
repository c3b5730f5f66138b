"""Decoding in a child process: same results, and a crashing image fails alone."""

import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import psutil
import pytest

from cvbatch.core.errors import CvbatchError
from cvbatch.core.types import Failure, InputKey, Tiling
from cvbatch.images import isolated_decode
from cvbatch.images.decode import Limits, decode
from cvbatch.images.isolated_decode import IsolatedDecoder, decode_memory_bytes, decode_with_alarm
from tests.support.crashing_images import KINDS, poisoned, poisoned_env, write_stub
from tests.support.jobs import encoded_image

pytestmark = pytest.mark.process

KEYS = [InputKey(20, 30, "letterbox"), InputKey(16, 16, "stretch", Tiling(16, 16, 4, 4))]
SMALL = Limits(max_bytes=10**6, max_pixels=10**6, max_tile_bytes=10**6)
TIMEOUT_S = 60.0  # longer than a good image takes on any machine


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Make images crash the child processes, but not this process, which has started."""
    folder = write_stub(tmp_path / "stub")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("POISON", " ".join(KINDS))
    return folder


def assert_same(result, expected):
    assert (result.width, result.height) == (expected.width, expected.height)
    assert result.pixels.keys() == expected.pixels.keys()
    for key, pixels in expected.pixels.items():
        np.testing.assert_array_equal(result.pixels[key], pixels)
        assert result.pixels[key].dtype == pixels.dtype


def test_no_image_starts_no_child():
    before = psutil.Process().children()
    with IsolatedDecoder(TIMEOUT_S):
        assert psutil.Process().children() == before


def test_results_equal_those_of_decode():
    large = cv2.imencode(".png", np.zeros((1001, 1000, 3), np.uint8))[1].tobytes()
    with IsolatedDecoder(TIMEOUT_S) as decode_one:
        for data in (b"", b"no image", large, encoded_image(1)[:-30]):
            assert decode_one(data, KEYS, SMALL) == decode(data, KEYS, SMALL)
        for index in range(6):
            data = encoded_image(index)
            assert_same(decode_one(data, KEYS, SMALL), decode(data, KEYS, SMALL))


@pytest.mark.parametrize(
    ("kind", "timeout_s", "expected"),
    [
        ("abort", TIMEOUT_S, "crashed: the process that decoded it was ended by SIGABRT"),
        ("hang", 1.0, "timeout: decoding took longer than 1 s; see run.image_timeout_s"),
        ("allocate", TIMEOUT_S, "too_large: decoding it takes more memory than one image may have"),
    ],
)
def test_a_crashing_image_fails_alone(stub, kind, timeout_s, expected):
    good, bad = encoded_image(1), poisoned(2, kind)
    with IsolatedDecoder(timeout_s) as decode_one:
        failure = decode_one(bad, KEYS, SMALL)
        assert isinstance(failure, Failure)
        assert (failure.stage, f"{failure.kind}: {failure.message}") == ("decode", expected)
    with IsolatedDecoder(TIMEOUT_S) as decode_one:
        assert_same(decode_one(good, KEYS, SMALL), decode(good, KEYS, SMALL))
    if kind != "hang":  # the child is replaced
        with IsolatedDecoder(TIMEOUT_S) as decode_one:
            for _ in range(2):
                assert decode_one(bad, KEYS, SMALL) == failure
                assert_same(decode_one(good, KEYS, SMALL), decode(good, KEYS, SMALL))


def test_an_image_fails_only_if_it_crashes_two_children(stub):
    data = poisoned(1, "once")
    with IsolatedDecoder(TIMEOUT_S) as decode_one:
        assert_same(decode_one(data, KEYS, SMALL), decode(data, KEYS, SMALL))
    assert (stub / "lost").exists()


def test_no_child_outlives_the_context(stub):
    process = psutil.Process()
    before = set(process.children())
    with IsolatedDecoder(1.0) as decode_one:
        decode_one(poisoned(1, "hang"), KEYS, SMALL)
        decode_one(encoded_image(1), KEYS, SMALL)
        assert len(set(process.children()) - before) == 1
    assert set(process.children()) == before


def test_a_hanging_child_ends_with_its_parent(stub, tmp_path):
    (tmp_path / "bad").write_bytes(poisoned(1, "hang"))
    code = f"""
from cvbatch.images.isolated_decode import *
data = open({str(tmp_path / "bad")!r}, "rb").read()
with IsolatedDecoder(1e6) as decode_one:
    decode_one(data, [], Limits())
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=poisoned_env(stub)) as parent:
        deadline = time.monotonic() + 60
        while not (children := psutil.Process(parent.pid).children()):
            assert time.monotonic() < deadline
        while not (stub / "lost").exists():
            assert time.monotonic() < deadline
        parent.kill()
    ended, alive = psutil.wait_procs(children, timeout=30)
    assert (len(ended), alive) == (1, [])


def test_a_child_that_cannot_start_stops_the_job(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(7)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with (
        IsolatedDecoder(TIMEOUT_S) as decode_one,
        pytest.raises(CvbatchError, match="did not start: it ended with status 7"),
    ):
        decode_one(encoded_image(1), KEYS, SMALL)


@pytest.mark.parametrize("kind", ["none", "hang"])
def test_the_alarm_ends_the_process_only_if_decoding_takes_too_long(stub, tmp_path, kind):
    data = encoded_image(1) if kind == "none" else poisoned(1, kind)
    (tmp_path / "image").write_bytes(data)
    code = f"""
import time
from cvbatch.images.isolated_decode import *
data = open({str(tmp_path / "image")!r}, "rb").read()
decode_with_alarm(1.0)(data, [], Limits())
time.sleep(1.5)  # longer than the timeout; the timer must have been cancelled
"""
    process = subprocess.run([sys.executable, "-c", code], env=poisoned_env(stub), check=False)
    assert process.returncode == (0 if kind == "none" else -signal.SIGALRM)


def test_the_timer_costs_less_than_one_percent_of_decoding():
    """For a photo of 640×480 it takes about 3 of 3,000 µs."""
    rng = np.random.default_rng(1)
    pixels = cv2.resize(rng.integers(0, 256, (60, 80, 3), np.uint8), (640, 480))
    data = cv2.imencode(".jpg", pixels)[1].tobytes()
    key = [InputKey(224, 224, "stretch")]

    def best_s(call, *arguments):
        times = []
        for _ in range(20):
            started = time.perf_counter()
            call(*arguments)
            times.append(time.perf_counter() - started)
        return min(times)

    decoding = best_s(decode, data, key, Limits())
    timing = best_s(lambda: [decode_with_alarm(60)(b"", key, Limits()) for _ in range(100)]) / 100
    timing -= best_s(lambda: [decode(b"", key, Limits()) for _ in range(100)]) / 100
    assert timing < decoding / 100


def test_the_memory_limit_follows_the_image_limits():
    plain = [KEYS[0]]
    small = decode_memory_bytes(plain, SMALL)
    assert small > SMALL.max_pixels * 10
    assert decode_memory_bytes(plain, Limits(10**6, 2 * 10**6)) > small
    assert decode_memory_bytes(KEYS, SMALL) > small
    huge = decode_memory_bytes(plain, Limits(max_pixels=10**12))
    assert huge == psutil.virtual_memory().total // 2
    assert isolated_decode.decode_memory_bytes(plain, Limits()) <= huge
