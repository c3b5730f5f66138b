"""The user's cache of compiled programs: where it is, what it returns, what it never does."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import cvbatch
from cvbatch.inference import builder
from cvbatch.inference.program_cache import ProgramCache, cache_folder
from tests.inference.test_programs import request, sample_program
from tests.support.small_disk import needs_mounts, on_small_disk

PHOTOS = Path(__file__).parents[2] / "jobs" / "examples" / "images"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CVBATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "programs"


def cache(lines=None, **options):
    """Return a cache that must not inform, or appends to `lines`."""
    return ProgramCache(pytest.fail if lines is None else lines.append, **options)


def requests(count):
    return [replace(request("LeNet", weights="random"), batch_size=n + 1) for n in range(count)]


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, "/home/ada/.cache/cvbatch/programs"),
        ({"XDG_CACHE_HOME": "/big"}, "/big/cvbatch/programs"),
        ({"XDG_CACHE_HOME": "big"}, "/home/ada/.cache/cvbatch/programs"),
        ({"XDG_CACHE_HOME": "/big", "CVBATCH_CACHE": "/other"}, "/other/programs"),
        ({"CVBATCH_CACHE": "~/c"}, "/home/ada/c/programs"),
        ({"CVBATCH_CACHE": "off"}, None),
        ({"CVBATCH_CACHE": "OFF"}, None),
        ({"CVBATCH_CACHE": ""}, None),
    ],
)
def test_the_folder_is_that_of_the_environment(monkeypatch, env, expected):
    for name in ("XDG_CACHE_HOME", "CVBATCH_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/ada", **env}.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == (expected and Path(expected))


def test_a_program_is_returned_for_its_own_request_only(folder):
    first, second = requests(2)
    assert cache().read(first) is None
    cache().write(first, sample_program())
    assert cache().read(first) == sample_program()
    assert cache().read(second) is None
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in folder.iterdir()] == [f"{first.key}.zip"]


def test_nothing_is_stored_if_it_is_off(tmp_path, monkeypatch):
    monkeypatch.setenv("CVBATCH_CACHE", "off")
    monkeypatch.setenv("HOME", str(tmp_path))
    cache().write(requests(1)[0], sample_program())
    assert cache().read(requests(1)[0]) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [0, 1, 100])
def test_a_damaged_file_is_deleted_with_a_message(folder, keep):
    (wanted,) = requests(1)
    cache().write(wanted, sample_program())
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:keep])
    lines = []
    assert cache(lines).read(wanted) is None
    assert lines == [f"{path} is damaged: it is deleted, and the model is compiled again"]
    cache().write(wanted, sample_program())
    assert cache().read(wanted) == sample_program()


def test_a_folder_that_others_can_write_to_is_not_used(folder):
    (wanted,) = requests(1)
    cache().write(wanted, sample_program())
    folder.chmod(0o777)
    lines = []
    planted = cache(lines)
    assert planted.read(wanted) is None
    planted.write(wanted, sample_program())  # informs once
    assert lines == [
        f"the cache of compiled models {folder} is not used: other users can write to it"
    ]


def test_a_path_that_is_no_folder_is_reported_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CVBATCH_CACHE", str(tmp_path / "file"))
    lines = []
    unusable = cache(lines)
    for wanted in requests(2):
        assert unusable.read(wanted) is None
        unusable.write(wanted, sample_program())
    assert len(lines) == 1
    assert lines[0].endswith("is not used: Not a directory")


@needs_mounts
@pytest.mark.process
@pytest.mark.parametrize(
    ("state", "error"),
    [
        ('echo x > "$DISK/x"; room 0', "No space left on device"),
        ('mount -o remount,ro "$DISK"', "Read-only"),
    ],
)
def test_a_full_or_read_only_folder_is_reported(tmp_path, state, error):
    script = f"""
    {state}
    CVBATCH_CACHE="$DISK/cache" $PYTHON -c '
from tests.inference.test_program_cache import cache, requests, sample_program
lines = []
for wanted in requests(2):
    cache(lines).write(wanted, sample_program())
print(len(lines), *lines, sep=chr(10))'
    """
    output = on_small_disk(tmp_path / "disk", script).splitlines()
    assert output[0] == "2"
    assert all("is not used" in line and error in line for line in output[1:])


def test_the_least_recently_used_programs_are_deleted(folder):
    wanted = requests(6)
    program = replace(sample_program(), payload=bytes(10_000))
    room = 3 * len(program.to_bytes())
    for number, each in enumerate(wanted[:3]):
        cache(max_bytes=room).write(each, program)
        os.utime(folder / f"{each.key}.zip", ns=(number, number))
    assert cache().read(wanted[0]) is not None  # is now the last used one
    for each in wanted[3:5]:
        cache(max_bytes=room).write(each, program)
        assert sum(path.stat().st_size for path in folder.iterdir()) <= room
    found = [each for each in wanted if cache().read(each)]
    assert found == [wanted[0], wanted[3], wanted[4]]
    cache(max_bytes=room).write(wanted[5], replace(program, payload=bytes(20_000)))
    assert cache().read(wanted[5]) is None  # larger than half of the cache
    assert len(list(folder.iterdir())) == 3


def test_several_jobs_read_and_write_at_once(folder):
    wanted = requests(3)
    program = replace(sample_program(), payload=bytes(200_000))
    room = 2 * len(program.to_bytes()) + 1

    def job(number):
        mine = cache(max_bytes=room)
        found = []
        for round_ in range(8):
            each = wanted[(number + round_) % 3]
            found.append(mine.read(each))
            mine.write(each, program)
        return found

    with ThreadPoolExecutor(6) as pool:
        found = [each for results in pool.map(job, range(6)) for each in results]
    assert {None, program} >= set(found)
    assert all(path.suffix == ".zip" for path in folder.iterdir())


@pytest.mark.keras
def test_a_network_that_was_compiled_once_is_not_compiled_for_another_result(
    folder, tmp_path, monkeypatch
):
    def run(name):
        out = tmp_path / name
        cvbatch.predict(PHOTOS, model="demo_classifier", out=out)
        return {part.name: part.read_bytes() for part in out.glob("part-*.parquet")}

    first = run("first")
    monkeypatch.setattr(builder, "ChildProcess", None)
    assert run("second") == first
    (program,) = folder.iterdir()
    (stored,) = (tmp_path / "second" / "_cvbatch" / "programs").iterdir()
    assert stored.read_bytes() == program.read_bytes()
    program.unlink()
    with pytest.raises(TypeError, match="NoneType"):
        run("third")
