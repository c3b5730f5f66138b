"""The temporary file of a killed writer is removed, that of a living writer never."""

import multiprocessing
import os
import signal
import threading

import pytest

from cvbatch.storage.atomic import remove_leftovers, replacing

SPAWN = multiprocessing.get_context("spawn")


def test_an_empty_or_missing_folder_has_no_leftovers(tmp_path):
    assert remove_leftovers(tmp_path, ".") == 0
    assert remove_leftovers(tmp_path / "missing", ".") == 0


def test_a_file_is_written_completely_or_not_at_all(tmp_path):
    target = tmp_path / "part"
    with replacing(target, ".part-") as file:
        file.write(b"first")
        assert not target.exists()
    with pytest.raises(KeyError), replacing(target, ".part-") as file:
        file.write(b"second")
        raise KeyError
    assert target.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [target]


def _write_forever(folder, is_writing):
    with replacing(folder / "part", ".part-") as file:
        file.write(b"half")
        file.flush()
        is_writing.set()
        signal.pause()


def test_only_the_file_of_a_killed_writer_is_removed(tmp_path):
    is_writing = SPAWN.Event()
    writer = SPAWN.Process(target=_write_forever, args=(tmp_path, is_writing))
    writer.start()
    assert is_writing.wait(60)
    (temporary,) = tmp_path.iterdir()
    assert remove_leftovers(tmp_path, ".part-") == 0
    assert temporary.exists()
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert temporary.read_bytes() == b"half"
    assert remove_leftovers(tmp_path, ".other-") == 0
    assert remove_leftovers(tmp_path, ".part-") == 1
    assert list(tmp_path.iterdir()) == []


def test_files_with_other_names_stay(tmp_path):
    for name in (".part-a", "part-a.tmp", ".part-a.parquet"):
        (tmp_path / name).touch()
    (tmp_path / ".part-folder.tmp").mkdir()
    assert remove_leftovers(tmp_path, ".part-") == 0
    assert len(list(tmp_path.iterdir())) == 4


def test_constant_removal_costs_no_writer_its_file(tmp_path):
    """A removal between the creation of a file and its lock must not break the write."""
    is_done = threading.Event()

    def remove():
        while not is_done.is_set():
            remove_leftovers(tmp_path, ".part-")

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        for number in range(500):
            with replacing(tmp_path / str(number), ".part-") as file:
                file.write(b"complete")
    finally:
        is_done.set()
        remover.join()
    paths = list(tmp_path.iterdir())
    assert len(paths) == 500
    assert {path.read_bytes() for path in paths} == {b"complete"}
