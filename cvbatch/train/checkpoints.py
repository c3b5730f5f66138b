"""A long run survives because all that it is stands on disk, whole or not at all.

    FOLDER/step-00000120/
      state.json      where the run is: step, epoch, phase, best, history, and what it was asked
      network.npz     every variable of the network, its random seeds too
      optimizer.npz   every variable of the optimizer
      best.npz        the network at its best; the same file as that step's network.npz, linked

A checkpoint is written beside its place under a name that nobody reads, and renamed last. Any one
of them is enough to go on from, and may be copied elsewhere.
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
    """Where a run is; with the variables of network and optimizer that is all there is of it."""

    step: int = 0  # updates done
    epoch: int = 0  # epochs done, in all phases
    phase: int = 0  # number of the phase that the optimizer belongs to
    phase_epoch: int = 0  # epochs done in it
    epoch_step: int = 0  # updates done in the epoch that is under way
    sums: dict[str, float] = field(default_factory=dict)  # of that epoch
    best_value: float | None = None  # of the metric, larger is better
    best_epoch: int = 0  # counted from 1, as in the history; 0: none yet
    stale_epochs: int = 0  # epochs of the phase since it was last surpassed
    rows: list[dict[str, Any]] = field(default_factory=list)  # the history


class Checkpoints:
    """The checkpoints of one run, of which the last few are kept.

    keep: how many, at least 1. plan: what the run was asked for, fit for JSON; a checkpoint of
    another plan is refused.
    """

    def __init__(self, folder: Path, keep: int, plan: dict[str, Any]) -> None:
        self.folder, self._keep = folder, keep
        self._plan = json.loads(json.dumps(plan))
        self._source: Path | None = None  # the checkpoint this run stands on

    def latest(self) -> Path | None:
        """Return the folder of the last finished checkpoint, None where there is none."""
        return next(iter(reversed(self._finished())), None)

    def write(
        self,
        progress: Progress,
        network: Sequence[Variable],
        optimizer: Sequence[Variable],
        *,
        is_best: bool,
    ) -> Path:
        """Write a checkpoint, return its folder, and delete those that are no longer kept.

        is_best: the network is the best so far as it stands.

        Raises:
            TrainingError: the folder cannot be written, or the disk is full; those written
                before are whole.
        """
        target = self.folder / f"{_PREFIX}{progress.step:08d}"
        unfinished = self.folder / f"{_UNFINISHED}{target.name}"
        try:
            self._clear()
            unfinished.mkdir(parents=True)
            _write_arrays(unfinished / _NETWORK, network)
            _write_arrays(unfinished / _OPTIMIZER, optimizer)
            best = unfinished / _NETWORK if is_best else self._source and self._source / _BEST
            if best is not None and best.exists():
                _link(best, unfinished / _BEST)
            said = {"format": _FORMAT, "plan": self._plan, "progress": asdict(progress)}
            _write(unfinished / _STATE, json.dumps(said).encode())
            for later in self._finished():  # of a way that was gone before, and is gone anew
                if _step_of(later) >= progress.step:
                    shutil.rmtree(later)
            unfinished.rename(target)
            self._source = target
            for old in self._finished()[: -self._keep]:
                shutil.rmtree(old)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            last = self.latest()
            raise TrainingError(
                f"the checkpoint of step {progress.step} cannot be written into {self.folder} "
                f"({error.strerror}); free space there or name another folder; "
                + (f"{last.name} is whole, go on from it" if last else "there is none before it")
            ) from error
        return target

    def read(self, source: Path, network: Sequence[Variable]) -> tuple[Progress, list[np.ndarray]]:
        """Return where the run was and the optimizer's arrays; put its weights into the network.

        Raises:
            TrainingError: the checkpoint is damaged, or of another plan or network.
        """
        try:
            said = json.loads((source / _STATE).read_bytes())
            plan, progress = said["plan"], Progress(**said["progress"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise _damaged(source, error) from error
        self._require_plan(source, plan)
        _assign(source, network, _read_arrays(source / _NETWORK))
        self._source = source
        return progress, _read_arrays(source / _OPTIMIZER)

    def read_best(self, network: Sequence[Variable]) -> None:
        """Put the best weights of the run so far into the network; none yet: leave it.

        Raises:
            TrainingError: the file is damaged.
        """
        if self._source is not None and (self._source / _BEST).exists():
            _assign(self._source, network, _read_arrays(self._source / _BEST))

    def _require_plan(self, source: Path, plan: dict[str, Any]) -> None:
        for key in sorted(self._plan.keys() | plan.keys()):
            if plan.get(key) != self._plan.get(key):
                raise TrainingError(
                    f"checkpoint {source} was made with {key} {plan.get(key)}, now it is "
                    f"{self._plan.get(key)}: a run goes on as it began; put that back, or begin "
                    "anew in another folder"
                )

    def _finished(self) -> list[Path]:
        """Return the folders of finished checkpoints, the oldest first."""
        found = [path for path in self.folder.glob(f"{_PREFIX}*") if (path / _STATE).is_file()]
        return sorted(found, key=_step_of)

    def _clear(self) -> None:
        """Delete what a run that was killed left half written."""
        for path in self.folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(path)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix(_PREFIX))


def restore(variables: Sequence[Variable], arrays: Sequence[np.ndarray], source: Path) -> None:
    """Put a checkpoint's arrays into an optimizer's variables.

    Raises:
        TrainingError: they are of another optimizer.
    """
    _assign(source, variables, arrays)


def _assign(source: Path, variables: Sequence[Variable], arrays: Sequence[np.ndarray]) -> None:
    wanted = [tuple(variable.shape) for variable in variables]
    held = [array.shape for array in arrays]
    if wanted != held:
        at = next((i for i, two in enumerate(zip(wanted, held, strict=False)) if len(set(two)) > 1),
                  min(len(wanted), len(held)))  # fmt: skip
        name = variables[at].path if at < len(variables) else "nothing"
        raise TrainingError(
            f"checkpoint {source} is of another network: it holds {len(held)} arrays for "
            f"{len(wanted)} variables and differs at {name!r}; build the network it was made "
            "with, or begin anew in another folder"
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
        # Opened here: NumPy does not close a file that is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            return [held[name] for name in sorted(held.files)]
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
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def _damaged(path: Path, error: Exception) -> TrainingError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else error
    return TrainingError(
        f"checkpoint file {path} cannot be read ({why}); delete that checkpoint's folder and go on "
        "from the one before it"
    )
