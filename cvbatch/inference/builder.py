"""Build programs in a child process."""

from __future__ import annotations

from collections.abc import Sequence

from cvbatch.core.child_process import ChildProcess
from cvbatch.inference.programs import BuildRequest, BuiltProgram
from cvbatch.storage.store import Storage


def build(storage: Storage, request: BuildRequest) -> BuiltProgram:
    """Return the model compiled. Imports TensorFlow: `Building` calls it.

    Raises:
        ModelError: the model cannot be built, or does not fit its task.
    """
    from cvbatch.inference import compile as building  # TensorFlow comes with it

    return building.build(storage, request)


class ProgramBuilder:
    """The one process that builds and compiles all models of a job, at work."""

    def __init__(self, storage: Storage, requests: Sequence[BuildRequest]) -> None:
        self._all = ChildProcess(_build_all, storage, list(requests))

    def result(self) -> list[BuiltProgram]:
        """Return the programs, when they are there.

        Raises:
            ModelError: a model cannot be built or does not fit its task, or the process died.
        """
        return self._all.result(
            "compiles the models",
            "make room, or run the job once on a larger machine: programs are kept under the "
            "sink's _cvbatch/programs",
        )


def _build_all(storage: Storage, requests: list[BuildRequest]) -> list[BuiltProgram]:
    return [build(storage, request) for request in requests]
