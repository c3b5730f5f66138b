"""Imported at the start of every process of a watched job, because its folder is on PYTHONPATH.

A process that starts to read a chunk appends a line to the log; reading and fsync are slowed down.
"""

import importlib.abc
import importlib.util
import os
import sys
import time

LOG = os.environ.get("WATCHED_LOG")
PACE_S = float(os.environ.get("WATCHED_PACE_S", "0"))
SLOW_MODULE, SLOW_S = os.environ.get("WATCHED_SLOW_MODULE"), 60.0


class CallAfterImport(importlib.abc.MetaPathFinder):
    """Calls a function after one module was executed."""

    def __init__(self, name, callback):
        self.name, self.callback = name, callback

    def find_spec(self, name, path, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_call(module):
            execute(module)
            self.callback(module)

        spec.loader.exec_module = execute_and_call
        return spec


def log_line(text):
    log = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, f"{text} {os.getpid()}\n".encode())  # one write: lines are not mixed
    os.close(log)


def log_reading(readers):
    read = readers.ChunkReader.read

    def logged_read(reader, chunk, *arguments):
        log_line(chunk.chunk_id)
        time.sleep(PACE_S)
        return read(reader, chunk, *arguments)

    readers.ChunkReader.read = logged_read


def sleep_after_import(module):
    log_line(module.__name__)
    time.sleep(SLOW_S)


def slow_fsync(descriptor, _fsync=os.fsync):
    time.sleep(PACE_S)
    _fsync(descriptor)


if LOG:
    sys.meta_path.insert(0, CallAfterImport("cvbatch.sources.readers", log_reading))
    os.fsync = slow_fsync
if SLOW_MODULE:  # simulates a model that is slow to build
    sys.meta_path.insert(0, CallAfterImport(SLOW_MODULE, sleep_after_import))
