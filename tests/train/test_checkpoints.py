"""Checkpoints are atomic and contain the complete state of a run."""

import errno
import json
import math

import numpy as np
import pytest

from cvbatch.core.errors import TrainingError
from cvbatch.train import checkpoints
from cvbatch.train.checkpoints import Checkpoints, Progress, restore

PLAN = {"steps": 4, "phases": [{"name": "all"}]}


class Variable:
    """The part of keras.Variable that checkpoints use."""

    path = "layer/kernel"

    def __init__(self, value):
        self.value = np.asarray(value)
        self.shape = self.value.shape

    def numpy(self):
        return self.value

    def assign(self, value):
        self.value = np.asarray(value)


def network_of(value):
    return [Variable(np.full((2, 3), value, np.float32)), Variable(np.array([value, 0], np.int64))]


def checkpoints_in(tmp_path, keep=3, plan=PLAN):
    return Checkpoints(tmp_path / "run", keep, plan)


def write(run, step, value=None, *, is_best=False):
    return run.write(
        Progress(step=step),
        network_of(step if value is None else value),
        [Variable(np.float32(step))],
        is_best=is_best,
    )


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    run = checkpoints_in(tmp_path)
    network = network_of(1)
    run.read_best(network)

    assert run.latest() is None
    assert network[0].value[0, 0] == 1


def test_reading_restores_what_was_written(tmp_path):
    progress = Progress(
        step=7, epoch=1, phase=1, phase_epoch=0, epoch_step=3, sums={"loss": 0.1 + 0.2},
        best_value=math.nan, best_epoch=1, stale_epochs=2,
        rows=[{"epoch": 1, "phase": "head", "loss": 1 / 3, "ap": math.nan}],
    )  # fmt: skip
    folder = checkpoints_in(tmp_path).write(
        progress, network_of(5), [Variable(np.float32(0.1)), Variable(7)], is_best=False
    )
    run, network, optimizer = (
        checkpoints_in(tmp_path),
        network_of(0),
        [Variable(np.float32(0)), Variable(0)],
    )
    assert run.latest() == folder
    restored, arrays = run.read(folder, network)
    restore(optimizer, arrays, folder)

    assert json.dumps(restored.__dict__) == json.dumps(progress.__dict__)
    assert [v.value.tolist() for v in network] == [v.value.tolist() for v in network_of(5)]
    assert [v.value.tolist() for v in optimizer] == [np.float32(0.1).item(), 7]


def test_only_the_last_checkpoints_are_kept(tmp_path):
    run = checkpoints_in(tmp_path, keep=2)
    for step in (8, 9, 10, 100):
        write(run, step)

    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "step-00000010", "step-00000100"
    ]  # fmt: skip
    assert run.latest().name == "step-00000100"


def test_the_best_weights_outlive_their_checkpoint_and_a_copy_is_enough(tmp_path):
    run = checkpoints_in(tmp_path, keep=1)
    for step in range(1, 6):
        write(run, step, is_best=step == 2)
    copied = tmp_path / "elsewhere" / "any-name"
    run.latest().rename(copied.parent.mkdir() or copied)
    resumed = Checkpoints(tmp_path / "fresh", 1, PLAN)
    network = network_of(0)
    progress, _ = resumed.read(copied, network)
    assert (progress.step, network[0].value[0, 0]) == (5, 5)
    write(resumed, 6)
    resumed.read_best(network)

    assert network[0].value[0, 0] == 2


def test_without_hard_links_the_best_weights_are_copied(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(checkpoints.os, "link", refuse)
    run, network = checkpoints_in(tmp_path), network_of(0)
    for step in (1, 2):
        write(run, step, is_best=step == 1)
    run.read_best(network)

    assert network[0].value[0, 0] == 1


def test_resuming_from_an_earlier_step_removes_later_checkpoints(tmp_path):
    run = checkpoints_in(tmp_path)
    folders = [write(run, step) for step in (10, 20, 30)]
    again = checkpoints_in(tmp_path)
    again.read(folders[0], network_of(0))
    write(again, 15)

    assert [path.name[-2:] for path in sorted((tmp_path / "run").iterdir())] == ["10", "15"]


@pytest.mark.parametrize("file", ["state.json", "network.npz", "optimizer.npz"])
def test_a_full_disk_keeps_earlier_checkpoints(file, tmp_path, monkeypatch):
    run = checkpoints_in(tmp_path)
    first = write(run, 1, is_best=True)
    sync, synced = checkpoints.os.fsync, []

    def full(descriptor):
        synced.append(descriptor)
        if len(synced) == ["network.npz", "optimizer.npz", "state.json"].index(file) + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(TrainingError, match=r"step 2 .*No space left.*step-00000001 is complete"):
        write(run, 2)
    monkeypatch.undo()

    assert list((tmp_path / "run").iterdir()) == [first]
    assert write(run, 2).name == "step-00000002"


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(TrainingError, match=r"cannot be written into .*there is none before"):
        write(checkpoints_in(tmp_path), 1)


def test_an_unfinished_checkpoint_is_ignored_and_removed(tmp_path):
    unfinished = tmp_path / "run" / ".unfinished-step-00000009"
    unfinished.mkdir(parents=True)
    (unfinished / "state.json").write_text("{}")
    (tmp_path / "run" / "step-00000008").mkdir()
    run = checkpoints_in(tmp_path)
    assert run.latest() is None
    write(run, 1)

    assert not unfinished.exists()


@pytest.mark.parametrize("file", ["state.json", "network.npz", "optimizer.npz"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "invalid"])
def test_a_damaged_checkpoint_is_an_error(file, damage, tmp_path):
    run = checkpoints_in(tmp_path)
    folder = write(run, 1)
    path = folder / file
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"[]")
    with pytest.raises(
        TrainingError, match=r"cannot be read .*delete the folder of that checkpoint"
    ):
        run.read(folder, network_of(0))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ([Variable(np.zeros((2, 4))), Variable([0, 0])], "differs at 'layer/kernel'"),
        ([Variable(np.zeros((2, 3)))], "contains 2 arrays for 1 variables"),
        ([*network_of(0), Variable(1)], "contains 2 arrays for 3 variables"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(network, message, tmp_path):
    run = checkpoints_in(tmp_path)
    folder = write(run, 1)
    with pytest.raises(TrainingError, match=message):
        run.read(folder, network)


def test_a_checkpoint_of_another_plan_is_refused(tmp_path):
    folder = write(checkpoints_in(tmp_path), 1)
    with pytest.raises(
        TrainingError, match="made with steps 4, but it is now 5; use the old value"
    ):
        checkpoints_in(tmp_path, plan={**PLAN, "steps": 5}).read(folder, network_of(0))
