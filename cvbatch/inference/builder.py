"""Build programs in a child process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from cvbatch.core.child_process import ChildProcess
from cvbatch.inference.programs import BuildRequest, BuiltProgram
from cvbatch.storage.retry import retry_policy, set_retry_policy


def build(request: BuildRequest) -> BuiltProgram:
    """Build and compile one model in this process; it imports TensorFlow.

    Raises:
        ModelError: the model cannot be built, or does not fit its task.
    """
    from cvbatch.inference import compile as compiler

    return compiler.build(request)


class ProgramBuilder:
    """Child process that builds and compiles all models of a job; it starts at once."""

    def __init__(self, requests: Sequence[BuildRequest]) -> None:
        self._process = ChildProcess(
            _build_all, list(requests), initializer=partial(set_retry_policy, retry_policy())
        )

    def result(self) -> list[BuiltProgram]:
        """Wait for the process and return the programs, in the order of the requests.

        Raises:
            ModelError: a model cannot be built or does not fit its task, or the process died.
        """
        return self._process.result(
            "compiles the models",
            "free memory, or run the job once on a larger machine: programs are stored in "
            "_cvbatch/programs of the sink",
        )


def _build_all(requests: list[BuildRequest]) -> list[BuiltProgram]:
    return [build(request) for request in requests]
