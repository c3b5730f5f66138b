"""The first Ctrl-C stops a command cleanly, the second ends it and its children at once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.support.waiting import has_ended, until

pytestmark = pytest.mark.process

HANGS = """
import subprocess, sys, time
from cvbatch.cli import main

def hang(arguments):
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        print(f'["{child.pid}"]', flush=True)
        time.sleep(1000)
    finally:  # a shutdown that does not end
        print('["stopping"]', flush=True)
        time.sleep(1000)

main._COMMANDS["report"] = hang
sys.exit(main.main(["report", "x", "--log", sys.argv[1]]))
"""
LAST_LINE = "cvbatch: interrupted; run the same command to resume"


@pytest.mark.parametrize("log", ["text", "json"])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_process_and_its_children_at_once(log, second):
    command = [sys.executable, "-c", HANGS, log]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        (child,) = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        interrupted = time.monotonic()
        assert json.loads(process.stdout.readline()) == ["stopping"]
        process.send_signal(signal.SIGINT)  # the same key press, forwarded by a parent
        until(lambda: time.monotonic() > interrupted + 0.5, "half a second")
        assert process.poll() is None
        assert psutil.pid_exists(int(child))
        process.send_signal(second)
        sent = time.monotonic()
        assert process.wait(60) == 1
        assert time.monotonic() - sent < 5  # of the nine seconds of a shutdown
        assert has_ended(int(child))
        last_line = process.stderr.read().splitlines()[-1]
    assert (json.loads(last_line)["message"] if log == "json" else last_line) == LAST_LINE
