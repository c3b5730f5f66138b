"""Take programs from the user's cache, or build them in a child process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cvbatch.core.child_process import ChildProcess
from cvbatch.core.extras import require_tensorflow
from cvbatch.inference.program_cache import ProgramCache
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
    """The programs of a job; a child process compiles those that are not in the user's cache.

    The process starts at once. The cache gets the programs that were checked on images of a job.

    Args:
        storage: has the models.
        requests: what to build.
        samples: as `build`.
        inform: gets one sentence if the cache cannot be used.

    Attributes:
        missing: requests of programs that are not in the cache.

    Raises:
        ModelError: a program is missing, and TensorFlow is not installed.
    """

    def __init__(
        self,
        storage: Storage,
        requests: Sequence[BuildRequest],
        samples: SampleImages | None,
        inform: Callable[[str], None],
    ) -> None:
        self._cache, self._is_checked = ProgramCache(inform), samples is not None
        self._programs = [self._cache.read(request) for request in requests]
        pairs = zip(requests, self._programs, strict=True)
        self.missing = [request for request, program in pairs if program is None]
        self._process = None
        if self.missing:
            require_tensorflow()
            self._process = ChildProcess(_build_all, storage, self.missing, samples)

    def result(self) -> list[BuiltProgram]:
        """Wait for the process and return the programs, in the order of the requests.

        Raises:
            ModelError: a model cannot be built or does not fit its task, or the process died.
        """
        compiled: list[BuiltProgram] = []
        if self._process is not None:
            compiled = self._process.result(
                "compiles the models",
                "free memory, or run the job once on a larger machine: programs are stored in "
                "_cvbatch/programs of the sink",
            )
        if self._is_checked:
            for request, program in zip(self.missing, compiled, strict=True):
                self._cache.write(request, program)
        in_order = iter(compiled)
        return [program or next(in_order) for program in self._programs]


def _build_all(
    storage: Storage, requests: list[BuildRequest], samples: SampleImages | None
) -> list[BuiltProgram]:
    return [build(storage, request, samples) for request in requests]
