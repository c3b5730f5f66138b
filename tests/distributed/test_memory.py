"""A batch that cannot fit is refused before anything is written, with the largest that would."""

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvbatch.config.loader import parse_job
from cvbatch.core.errors import ConfigError
from cvbatch.core.types import ModelSpec
from cvbatch.distributed import hardware, memory
from cvbatch.distributed.memory import MemoryNeed, largest_batch
from cvbatch.distributed.resources import Allocation, Node, Resources
from cvbatch.inference import builder
from cvbatch.inference.programs import BuiltProgram
from cvbatch.predict import memory_check
from cvbatch.predict.memory_check import check_batch
from cvbatch.storage.store import Storage
from tests.support import jobs

GIB = 1 << 30
SIZES = st.integers(0, 1 << 50)


# ---------------------------------------------------------------- arithmetic


@pytest.mark.parametrize(
    ("memory_bytes", "held_bytes", "bytes_per_image", "largest"),
    [
        (0, 0, 1, 0),
        (9, 10, 1, 0),
        (10, 10, 1, 0),
        (11, 10, 1, 1),
        (100, 10, 30, 3),
        (99, 10, 30, 2),
    ],
)
def test_the_largest_batch_by_hand(memory_bytes, held_bytes, bytes_per_image, largest):
    assert largest_batch(memory_bytes, held_bytes, bytes_per_image) == largest


@given(SIZES, SIZES, st.integers(1, 1 << 40))
def test_the_largest_batch_fits_and_one_more_does_not(memory_bytes, held, per_image):
    need = MemoryNeed(held, per_image)
    largest = largest_batch(memory_bytes, held, per_image)
    assert largest >= 0
    assert largest == 0 or need.of(largest) <= memory_bytes
    assert need.of(largest + 1) > memory_bytes


@given(SIZES, SIZES, st.integers(1, 1 << 40), st.integers(1, 4096))
def test_a_batch_is_refused_when_it_is_larger_than_the_largest(memory_bytes, held, each, batch):
    need = MemoryNeed(held, each)
    largest = largest_batch(memory_bytes, held, each)
    if batch <= largest:
        check_batch(batch, need, memory_bytes, 2)
        return
    with pytest.raises(ConfigError) as error:
        check_batch(batch, need, memory_bytes, 2)
    told = str(error.value)
    assert f"run.batch_size {batch}" in told
    assert (f"the largest that would fit is {largest}" if largest else "not even one image") in told
    assert "\n" not in told


def test_where_nothing_is_known_nothing_is_refused():
    check_batch(4096, MemoryNeed(1 << 60, 1 << 60), None, 1)


def program(engine, weights, per_image):
    spec = ModelSpec("net", "classification", ("a", "b"), 8, 8, "stretch", "0" * 64)
    return BuiltProgram(spec, engine, ("scores",), 4, per_image, "", bytes(weights))


def test_litert_keeps_its_maps_and_tensorflow_gives_them_back():
    assert memory_check.prediction_need([]) == MemoryNeed(0, 0)
    lite, flow = program("litert", 10, 3), program("tensorflow", 20, 5)
    assert memory_check.prediction_need([lite, lite]) == MemoryNeed(20, 6)
    assert memory_check.prediction_need([flow, flow]) == MemoryNeed(40, 5)
    assert memory_check.prediction_need([flow, lite, lite]) == MemoryNeed(40, 11)


def test_on_a_gpu_only_what_runs_there_counts():
    both = [program("litert", 10, 3), program("tensorflow", 20, 5)]
    assert memory_check.actor_need(both, Allocation("streaming", 1, 1.0, 0.5)) == MemoryNeed(20, 5)
    assert memory_check.actor_need(both, Allocation("fused", 1, 1.0, 0.0)) == MemoryNeed(30, 8)


def test_training_holds_gradients_and_the_optimizers_numbers():
    assert memory.training_need(100, 40, 7, 0) == MemoryNeed(140, 7)
    assert memory.training_need(100, 40, 7, 2) == MemoryNeed(100 + 3 * 40, 7)


# ---------------------------------------------------------------- what an actor has


@pytest.mark.parametrize(
    ("nodes", "num_actors", "gpus", "share"),
    [
        ([], 2, 0.0, None),
        ([Node(2, 0, None)], 2, 0.0, None),
        ([Node(8, 0, 12 * GIB)], 1, 0.0, 12 * GIB),
        ([Node(8, 0, 12 * GIB)], 3, 0.0, 4 * GIB),
        ([Node(2, 0, 12 * GIB)], 3, 0.0, 6 * GIB),  # only two fit there
        ([Node(8, 0, 40 * GIB), Node(4, 0, 8 * GIB)], 12, 0.0, 2 * GIB),
        ([Node(0, 0, 1 * GIB), Node(8, 0, 8 * GIB)], 2, 0.0, 4 * GIB),  # a head runs no actor
        ([Node(8, 1, 8 * GIB)], 1, 1.0, 16 * GIB),
        ([Node(8, 1, 8 * GIB)], 2, 0.5, 8 * GIB),
        ([Node(8, 4, 8 * GIB)], 1, 2.0, 16 * GIB),  # TensorFlow computes on one
    ],
)
def test_an_actor_has_its_share(nodes, num_actors, gpus, share, monkeypatch):
    monkeypatch.setattr(hardware, "gpu_memory_bytes", lambda: 16 * GIB)
    wiring = Allocation("fused", num_actors, 1.0, gpus)
    resources = Resources(8.0, 1.0, tuple(nodes))
    assert memory.memory_per_actor(None, wiring, resources) == share
    assert memory.memory_per_actor(77, wiring, resources) == 77


def test_a_gpu_that_nobody_tells_of_is_not_known(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert hardware.gpu_memory_bytes() is None
    wiring = Allocation("streaming", 1, 1.0, 1.0)
    resources = Resources(8.0, 1.0, (Node(8.0, 1.0, GIB),))
    assert memory.memory_per_actor(None, wiring, resources) is None


def test_nvidia_smi_is_read(monkeypatch, tmp_path):
    said = tmp_path / "nvidia-smi"
    said.write_text("#!/bin/sh\necho 24564\necho 15360\n")
    said.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert hardware.gpu_memory_bytes() == 15360 << 20
    said.write_text("#!/bin/sh\necho '[N/A]'\n")
    assert hardware.gpu_memory_bytes() is None
    said.write_text("#!/bin/sh\necho failed >&2; exit 9\n")
    assert hardware.gpu_memory_bytes() is None


MEMINFO = "MemTotal:        8000 kB\nMemAvailable:    3000 kB\n"
V1 = "memory.limit_in_bytes"


@pytest.mark.parametrize(
    ("files", "known"),
    [
        ({}, None),
        ({"proc/meminfo": MEMINFO}, 3_072_000),
        ({"proc/meminfo": "MemTotal: 8000 kB\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000\n"}, 1000),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/memory.max": "2000000\n",
            },
            2_000_000,
        ),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "4:cpu,memory:/pod\n3:cpuset:/pod\n0::/\n",
                f"sys/fs/cgroup/memory/{V1}": "9223372036854771712\n",
                f"sys/fs/cgroup/memory/pod/{V1}": "1500000\n",
                f"sys/fs/cgroup/cpuset/pod/{V1}": "1\n",
            },
            1_500_000,
        ),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "4000000\n",
            },
            3_072_000,
        ),
    ],
)
def test_memory_is_what_is_free_and_what_the_container_may_have(files, known, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert hardware.memory_bytes(tmp_path) == known


def test_this_machine_has_cores_and_memory():
    assert hardware.num_cpus() >= 1
    assert hardware.num_gpus() >= 0
    assert hardware.memory_bytes() > 1 << 20


# ---------------------------------------------------------------- what a program truly takes


MEASURE = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from cvbatch.inference.programs import BuiltProgram

def peak():
    line, = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

built = BuiltProgram.from_bytes(open(sys.argv[1], "rb").read())
pixels = np.zeros((built.batch_size, built.spec.input_height, built.spec.input_width, 3), np.uint8)
before = peak()
built.load(1)(pixels)
print(peak() - before)
"""


@pytest.mark.keras
def test_a_program_takes_no_less_than_is_said(tmp_path):
    """A process of its own runs it; what that grows by is the truth."""
    from cvbatch.inference import programs

    raw = {"task": "segmentation", "model": "encoder_decoder", "weights": "random"}
    job = parse_job({"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": [raw]})
    said = programs.identify(Storage(), job.models[0])
    request = programs.BuildRequest(job.models[0], said, "litert", "float32", 8)
    built = builder.build(Storage(), request)
    path = tmp_path / "program.zip"
    path.write_bytes(built.to_bytes())
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True
    )
    need = memory_check.prediction_need([built])
    assert built.bytes_per_image > 200 * 200 * (3 + 4 * 3)
    assert need.of(8) <= int(done.stdout) < 2 * need.of(8)


# ---------------------------------------------------------------- whole jobs


@pytest.mark.ray
@pytest.mark.keras
def test_a_job_whose_batch_cannot_fit_is_refused_and_the_one_it_names_runs(
    keras_files, ray_session, tmp_path, monkeypatch
):
    from cvbatch.predict import job as prediction
    from cvbatch.predict.dry_run import estimate

    archive = jobs.write_files(tmp_path / "in", jobs.archive_files(6))
    values = jobs.job(archive, tmp_path / "sink", keras_files)
    values["models"] = values["models"][2:]

    def job(batch_size, memory_bytes):
        litert = ["run.engine=litert", "run.arrangement=fused", "run.gpus_per_actor=0"]
        said = [f"run.batch_size={batch_size}", f"run.actor_memory_bytes={memory_bytes}"]
        return parse_job(values, [*litert, *said])

    dry = estimate(job(4, "auto"), jobs.RecordingListener())
    assert 0 < dry.needed_bytes < dry.actor_memory_bytes
    assert f"{dry.needed_bytes:,} bytes at least" in dry.as_text()
    short = dry.needed_bytes - 1
    for work in (prediction.predict, estimate):
        with pytest.raises(ConfigError, match=r"each of 2 actors has") as error:
            work(job(4, short), jobs.RecordingListener())
    assert error.value.exit_status == 2
    (named,) = re.findall(r"run.batch_size: (\d+)", str(error.value))
    assert named == "3"
    with pytest.raises(ConfigError, match="not even one image at a time fits"):
        estimate(job(4, 1), jobs.RecordingListener())
    assert not (tmp_path / "sink").exists()
    assert prediction.predict(job(named, short), jobs.RecordingListener()).num_images == 8
    (kept,) = (tmp_path / "sink" / "_cvbatch" / "programs").iterdir()
    needed_by_3 = memory_check.prediction_need([BuiltProgram.from_bytes(kept.read_bytes())]).of(3)

    # A later run, whose programs are kept, is held to its memory as well.
    monkeypatch.setattr(prediction, "ProgramBuilder", None)
    next((tmp_path / "sink").glob("*.parquet")).unlink()
    before = sorted(path for path in (tmp_path / "sink").rglob("*"))
    with pytest.raises(ConfigError, match="the largest that would fit is 2"):
        prediction.predict(job(named, needed_by_3 - 1), jobs.RecordingListener())
    assert sorted(path for path in (tmp_path / "sink").rglob("*")) == before
