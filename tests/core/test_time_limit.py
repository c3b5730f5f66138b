"""A block that never returns ends its process, and the process names it."""

import signal
import subprocess
import sys
import time

import pytest

from cvbatch.core.time_limit import time_limit

ENDLESS = """
from cvbatch.core.time_limit import time_limit
with time_limit(0.2, "opening net.tflite"):
    b"a" * 40 in b"a" * 10**8 + b"b"  # C code; Python's signal handlers would wait for it
    while True:
        pass
"""


@pytest.mark.process
def test_the_process_ends_and_names_what_it_did():
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGALRM
    assert done.stderr == "opening net.tflite, at most 0.2 s\n"


def test_a_block_in_time_has_no_effect(capsys):
    with time_limit(0.05, "x"):
        pass
    until = time.monotonic() + 0.1
    while time.monotonic() < until:
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
