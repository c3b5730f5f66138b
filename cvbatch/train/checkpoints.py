"""Atomic training checkpoints.

    FOLDER/step-00000120/
      state.json      progress: step, epoch, phase, best value, history; and the training plan
      network.npz     all variables of the network, its random seeds included
      optimizer.npz   all variables of the optimizer
      best.npz        the network's best variables; a hard link to the network.npz of that step

A checkpoint is written into a folder with another name, which is renamed when it is complete. One
checkpoint is enough to resume a run, and may be copied elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cvbatch.core.errors import TrainingError

Variable = Any  # a keras.Variable; Keras carries no type information
_FORMAT = 1
_PREFIX = "step-"
_UNFINISHED = ".unfinished-"
_STATE, _NETWORK, _OPTIMIZER, _BEST = "state.json", "network.npz", "optimizer.npz", "best.npz"


@dataclass
class Progress:
    """The position of a run; with the variables of network and optimizer, its complete state."""

    step: int = 0  # optimizer updates done
    epoch: int = 0  # epochs done, in all phases
    phase: int = 0  # number of the phase that the optimizer belongs to
    phase_epoch: int = 0  # epochs done in that phase
    epoch_step: int = 0  # updates done in the current epoch
    sums: dict[str, float] = field(default_factory=dict)  # over the current epoch
    best_value: float | None = None  # of the metric, larger is better
    best_epoch: int = 0  # counted from 1, as in the history; 0: none yet
    stale_epochs: int = 0  # epochs of the phase since the best value last improved
    rows: list[dict[str, Any]] = field(default_factory=list)  # the history


class Checkpoints:
    """The last checkpoints of one run, in a folder.

    Args:
        folder: contains one folder per checkpoint.
        keep: number of checkpoints to keep, at least 1.
        plan: JSON-ready description of the training; a checkpoint of another plan is refused.
    """

    def __init__(self, folder: Path, keep: int, plan: dict[str, Any]) -> None:
        self.folder, self._keep = folder, keep
        self._plan = json.loads(json.dumps(plan))
        self._current: Path | None = None  # the last checkpoint written or read

    def latest(self) -> Path | None:
        """Return the folder of the last complete checkpoint; None if there is none."""
        return next(iter(reversed(self._complete())), None)

    def write(
        self,
        progress: Progress,
        network: Sequence[Variable],
        optimizer: Sequence[Variable],
        *,
        is_best: bool,
    ) -> Path:
        """Write a checkpoint, delete those beyond `keep`, and return the new one's folder.

        Args:
            progress: position of the run.
            network: variables of the network.
            optimizer: variables of the optimizer.
            is_best: whether these are the best weights so far.

        Raises:
            TrainingError: the folder cannot be written, or the disk is full; earlier checkpoints
                stay complete.
        """
        target = self.folder / f"{_PREFIX}{progress.step:08d}"
        unfinished = self.folder / f"{_UNFINISHED}{target.name}"
        try:
            self._remove_unfinished()
            self._fill(unfinished, progress, network, optimizer, is_best=is_best)
            self._publish(unfinished, target)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            last = self.latest()
            raise TrainingError(
                f"the checkpoint of step {progress.step} cannot be written into {self.folder} "
                f"({error.strerror}); free space there or use another folder; "
                + (f"{last.name} is complete, resume from it" if last else "there is none before")
            ) from error
        return target

    def _fill(
        self,
        folder: Path,
        progress: Progress,
        network: Sequence[Variable],
        optimizer: Sequence[Variable],
        *,
        is_best: bool,
    ) -> None:
        folder.mkdir(parents=True)
        _write_arrays(folder / _NETWORK, network)
        _write_arrays(folder / _OPTIMIZER, optimizer)
        best = folder / _NETWORK if is_best else self._current and self._current / _BEST
        if best is not None and best.exists():
            _link(best, folder / _BEST)
        state = {"format": _FORMAT, "plan": self._plan, "progress": asdict(progress)}
        _write(folder / _STATE, json.dumps(state).encode())

    def _publish(self, unfinished: Path, target: Path) -> None:
        """Rename a complete checkpoint to its final name, and delete outdated ones."""
        step = _step_of(target)
        for later in self._complete():  # a run that resumed from an earlier step repeats these
            if _step_of(later) >= step:
                shutil.rmtree(later)
        unfinished.rename(target)
        self._current = target
        for old in self._complete()[: -self._keep]:
            shutil.rmtree(old)

    def read(self, source: Path, network: Sequence[Variable]) -> tuple[Progress, list[np.ndarray]]:
        """Restore the network's variables; return the progress and the optimizer's arrays.

        Raises:
            TrainingError: the checkpoint is damaged, or of another plan or network.
        """
        try:
            state = json.loads((source / _STATE).read_bytes())
            plan, progress = state["plan"], Progress(**state["progress"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise _damaged(source, error) from error
        self._require_plan(source, plan)
        _assign(source, network, _read_arrays(source / _NETWORK))
        self._current = source
        return progress, _read_arrays(source / _OPTIMIZER)

    def read_best(self, network: Sequence[Variable]) -> None:
        """Restore the best weights of the run; without any, change nothing.

        Raises:
            TrainingError: the file is damaged.
        """
        if self._current is not None and (self._current / _BEST).exists():
            _assign(self._current, network, _read_arrays(self._current / _BEST))

    def _require_plan(self, source: Path, plan: dict[str, Any]) -> None:
        for key in sorted(self._plan.keys() | plan.keys()):
            if plan.get(key) != self._plan.get(key):
                raise TrainingError(
                    f"checkpoint {source} was made with {key} {plan.get(key)}, but it is now "
                    f"{self._plan.get(key)}; use the old value to resume, or start again in "
                    "another folder"
                )

    def _complete(self) -> list[Path]:
        """Return the folders of complete checkpoints, the oldest first."""
        paths = [path for path in self.folder.glob(f"{_PREFIX}*") if (path / _STATE).is_file()]
        return sorted(paths, key=_step_of)

    def _remove_unfinished(self) -> None:
        """Delete incomplete checkpoints of a run that was killed."""
        for path in self.folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(path)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix(_PREFIX))


def restore(variables: Sequence[Variable], arrays: Sequence[np.ndarray], source: Path) -> None:
    """Set the optimizer's variables to the arrays of a checkpoint.

    Raises:
        TrainingError: they belong to another optimizer.
    """
    _assign(source, variables, arrays)


def _assign(source: Path, variables: Sequence[Variable], arrays: Sequence[np.ndarray]) -> None:
    expected = [tuple(variable.shape) for variable in variables]
    actual = [array.shape for array in arrays]
    if expected != actual:
        pairs = enumerate(zip(expected, actual, strict=False))
        index = next((i for i, (a, b) in pairs if a != b), min(len(expected), len(actual)))
        name = variables[index].path if index < len(variables) else "nothing"
        raise TrainingError(
            f"checkpoint {source} is of another network: it contains {len(actual)} arrays for "
            f"{len(expected)} variables and differs at {name!r}; use the network it was made with, "
            "or start again in another folder"
        )
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def _write_arrays(path: Path, variables: Sequence[Variable]) -> None:
    with path.open("wb") as file:
        values: dict[str, Any] = {f"{i:05d}": v.numpy() for i, v in enumerate(variables)}
        np.savez(file, **values)
        file.flush()
        os.fsync(file.fileno())


def _read_arrays(path: Path) -> list[np.ndarray]:
    try:
        # Opened explicitly: NumPy does not close a file that is not an archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return [archive[name] for name in sorted(archive.files)]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, target)


def _damaged(path: Path, error: Exception) -> TrainingError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return TrainingError(
        f"checkpoint file {path} cannot be read ({reason}); delete the folder of that checkpoint, "
        "then resume from the one before it"
    )
