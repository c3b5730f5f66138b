"""Images that crash, block or exhaust the process that decodes them.

Decoders get fixed, so no damaged image does that reliably. A stub does it instead for images with a
mark: a `sitecustomize` that every Python process of a job loads, by PYTHONPATH.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tests.support.jobs import encoded_image

_MARK = b"\xffpoison:"  # after the end of an image, which decoders ignore
_STUB = """
import ctypes, importlib.abc, importlib.util, os, signal, sys, time

HERE = os.path.dirname(__file__)
MARK = {mark!r}
STARTED = HERE + "/lost"  # exists once an image has crashed or blocked a process


def abort():
    os.abort()


def hang():
    open(STARTED, "w").close()
    ctypes.PyDLL(None).sleep(10**6)  # holds the GIL, as C code can


def allocate():
    blocks = []
    while len(blocks) < 300:  # of 2 MB, touched
        blocks.append(b"x" * 2**21)
    os.kill(os.getpid(), signal.SIGKILL)  # like the kernel's out-of-memory killer


def once():
    if not os.path.exists(STARTED):
        open(STARTED, "w").close()
        os.abort()


def wait():
    open(f"{{HERE}}/waiting-{{os.getpid()}}", "w").close()
    while not os.path.exists(HERE + "/go"):
        time.sleep(0.01)


def poisoned(decode):
    def decode_poison(data, keys, limits):
        mark = data.rfind(MARK)
        kind = data[mark + len(MARK):].decode() if mark >= 0 else ""
        if kind in os.environ["POISON"].split():
            globals()[kind]()
        return decode(data, keys, limits)
    return decode_poison


def fatal(call):
    def call_fatal(self, batch):
        if any("fatal" in name for name in batch.image_id):
            os.abort()
        return call(self, batch)
    return call_fatal


def patch(module):
    if module.__name__ == "cvbatch.images.decode":
        module.decode = poisoned(module.decode)
    else:
        module.Predictor.__call__ = fatal(module.Predictor.__call__)


class Patching(importlib.abc.MetaPathFinder):
    waiting = {{"cvbatch.images.decode", "cvbatch.inference.predictor"}}

    def find_spec(self, name, path, target=None):
        if name not in self.waiting:
            return None
        self.waiting.remove(name)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (run(module), patch(module))
        return spec


sys.meta_path.insert(0, Patching())
"""


def poisoned(index: int, kind: str) -> bytes:
    """Return a valid image that makes its decoder behave as `kind`.

    Args:
        kind: abort, hang, allocate; once: abort only the first time; wait: until the file `go`
            exists.
    """
    return encoded_image(index) + _MARK + kind.encode()


def write_stub(folder: Path) -> Path:
    """Write the stub into a folder for PYTHONPATH; return the folder."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_STUB.format(mark=_MARK))
    return folder


KINDS = ("abort", "hang", "allocate", "once", "wait")


def poisoned_env(stub: Path, kinds: Iterable[str] = KINDS) -> dict[str, str]:
    """Return the environment with the stub; images of other kinds are decoded normally."""
    paths = [str(stub), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "POISON": " ".join(kinds)}
