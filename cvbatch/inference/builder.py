"""Build programs in a child process."""

from __future__ import annotations

from collections.abc import Sequence

from cvbatch.core.child_process import ChildProcess
from cvbatch.inference.programs import BuildRequest, BuiltProgram
from cvbatch.inference.sample_images import SampleImages
from cvbatch.storage.store import Storage


def build(
    storage: Storage, request: BuildRequest, samples: SampleImages | None = None
) -> BuiltProgram:
    """Build and compile one model in this process; it imports TensorFlow.

    Args:
        storage: has the model.
        request: what to build.
        samples: images of the job, to check the model on; None: generated ones.

    Raises:
        ModelError: the model cannot be built, or does not fit its task.
    """
    from cvbatch.inference import compile as compiler

    return compiler.build(storage, request, samples)


class ProgramBuilder:
    """Child process that builds and compiles all models of a job; it starts at once."""

    def __init__(
        self,
        storage: Storage,
        requests: Sequence[BuildRequest],
        samples: SampleImages | None = None,
    ) -> None:
        self._process = ChildProcess(_build_all, storage, list(requests), samples)

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


def _build_all(
    storage: Storage, requests: list[BuildRequest], samples: SampleImages | None
) -> list[BuiltProgram]:
    return [build(storage, request, samples) for request in requests]
