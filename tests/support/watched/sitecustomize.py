"""Python runs this at the start of every process of a watched job: its folder is on PYTHONPATH.

Whoever begins to read a chunk adds a line to the log, and source and disk are as slow as the test
wants them. Nothing else of the job is touched.
"""

import importlib.abc
import importlib.util
import os
import sys
import time

LOG = os.environ.get("WATCHED_LOG")
PACE_S = float(os.environ.get("WATCHED_PACE_S", "0"))
SLOW_MODULE, SLOW_S = os.environ.get("WATCHED_SLOW_MODULE"), 60.0


class Watch(importlib.abc.MetaPathFinder):
    """Has a say when one module has just been executed."""

    def __init__(self, name, then):
        self.name, self.then = name, then

    def find_spec(self, name, path, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_watch(module):
            execute(module)
            self.then(module)

        spec.loader.exec_module = execute_and_watch
        return spec


def note(what):
    log = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, f"{what} {os.getpid()}\n".encode())  # one write: lines never mingle
    os.close(log)


def watch_reading(readers):
    read = readers.ChunkReader.read

    def watched(reader, chunk, *arguments):
        note(chunk.chunk_id)
        time.sleep(PACE_S)
        return read(reader, chunk, *arguments)

    readers.ChunkReader.read = watched


def be_slow(module):
    note(module.__name__)
    time.sleep(SLOW_S)


def slow_fsync(descriptor, _fsync=os.fsync):
    time.sleep(PACE_S)
    _fsync(descriptor)


if LOG:
    sys.meta_path.insert(0, Watch("cvbatch.sources.readers", watch_reading))
    os.fsync = slow_fsync
if SLOW_MODULE:  # a model that takes its time to build
    sys.meta_path.insert(0, Watch(SLOW_MODULE, be_slow))
