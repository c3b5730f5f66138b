"""A batch that does not fit in memory is refused before anything is written."""

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
    ("memory_bytes", "fixed_bytes", "bytes_per_image", "largest"),
    [
        (0, 0, 1, 0),
        (9, 10, 1, 0),
        (10, 10, 1, 0),
        (11, 10, 1, 1),
        (100, 10, 30, 3),
        (99, 10, 30, 2),
    ],
)
def test_the_largest_batch_by_hand(memory_bytes, fixed_bytes, bytes_per_image, largest):
    assert largest_batch(memory_bytes, fixed_bytes, bytes_per_image) == largest


@given(SIZES, SIZES, st.integers(1, 1 << 40))
def test_the_largest_batch_fits_and_one_more_does_not(memory_bytes, fixed, per_image):
    need = MemoryNeed(fixed, per_image)
    largest = largest_batch(memory_bytes, fixed, per_image)
    assert largest >= 0
    assert largest == 0 or need.of(largest) <= memory_bytes
    assert need.of(largest + 1) > memory_bytes


@given(SIZES, SIZES, st.integers(1, 1 << 40), st.integers(1, 4096))
def test_batches_above_the_largest_are_refused(memory_bytes, fixed, per_image, batch):
    need = MemoryNeed(fixed, per_image)
    largest = largest_batch(memory_bytes, fixed, per_image)
    if batch <= largest:
        check_batch(batch, need, memory_bytes, 2)
        return
    with pytest.raises(ConfigError) as error:
        check_batch(batch, need, memory_bytes, 2)
    message = str(error.value)
    assert f"run.batch_size {batch}" in message
    assert (
        f"the largest that would fit is {largest}" if largest else "not even one image"
    ) in message
    assert "\n" not in message


def test_unknown_memory_refuses_nothing():
    check_batch(4096, MemoryNeed(1 << 60, 1 << 60), None, 1)


def program(engine, weights, per_image):
    spec = ModelSpec("net", "classification", ("a", "b"), 8, 8, "stretch", "0" * 64)
    return BuiltProgram(spec, engine, ("scores",), 4, per_image, "", bytes(weights))


def test_litert_keeps_its_feature_maps_and_tensorflow_releases_them():
    assert memory_check.prediction_need([]) == MemoryNeed(0, 0)
    litert, tensorflow = program("litert", 10, 3), program("tensorflow", 20, 5)
    assert memory_check.prediction_need([litert, litert]) == MemoryNeed(20, 6)
    assert memory_check.prediction_need([tensorflow, tensorflow]) == MemoryNeed(40, 5)
    assert memory_check.prediction_need([tensorflow, litert, litert]) == MemoryNeed(40, 11)


def test_on_a_gpu_only_tensorflow_programs_count():
    programs = [program("litert", 10, 3), program("tensorflow", 20, 5)]
    assert memory_check.actor_need(programs, Allocation("streaming", 1, 1.0, 0.5)) == MemoryNeed(
        20, 5
    )
    assert memory_check.actor_need(programs, Allocation("fused", 1, 1.0, 0.0)) == MemoryNeed(30, 8)


def test_training_needs_gradients_and_optimizer_variables():
    assert memory.training_need(100, 40, 7, 0) == MemoryNeed(140, 7)
    assert memory.training_need(100, 40, 7, 2) == MemoryNeed(100 + 3 * 40, 7)


# ---------------------------------------------------------------- memory of an actor


@pytest.mark.parametrize(
    ("nodes", "num_actors", "gpus", "share"),
    [
        ([], 2, 0.0, None),
        ([Node(2, 0, None)], 2, 0.0, None),
        ([Node(8, 0, 12 * GIB)], 1, 0.0, 12 * GIB),
        ([Node(8, 0, 12 * GIB)], 3, 0.0, 4 * GIB),
        ([Node(2, 0, 12 * GIB)], 3, 0.0, 6 * GIB),  # only two fit
        ([Node(8, 0, 40 * GIB), Node(4, 0, 8 * GIB)], 12, 0.0, 2 * GIB),
        (
            [Node(0, 0, 1 * GIB), Node(8, 0, 8 * GIB)],
            2,
            0.0,
            4 * GIB,
        ),  # the head node runs no actor
        ([Node(8, 1, 8 * GIB)], 1, 1.0, 16 * GIB),
        ([Node(8, 1, 8 * GIB)], 2, 0.5, 8 * GIB),
        ([Node(8, 4, 8 * GIB)], 1, 2.0, 16 * GIB),  # TensorFlow uses one GPU
    ],
)
def test_an_actor_has_its_share_of_the_node_or_gpu(nodes, num_actors, gpus, share, monkeypatch):
    monkeypatch.setattr(hardware, "gpu_memory_bytes", lambda: 16 * GIB)
    allocation = Allocation("fused", num_actors, 1.0, gpus)
    resources = Resources(8.0, 1.0, tuple(nodes))
    assert memory.memory_per_actor(None, allocation, resources) == share
    assert memory.memory_per_actor(77, allocation, resources) == 77


def test_without_nvidia_smi_the_gpu_memory_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert hardware.gpu_memory_bytes() is None
    allocation = Allocation("streaming", 1, 1.0, 1.0)
    resources = Resources(8.0, 1.0, (Node(8.0, 1.0, GIB),))
    assert memory.memory_per_actor(None, allocation, resources) is None


def test_the_output_of_nvidia_smi_is_parsed(monkeypatch, tmp_path):
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 24564\necho 15360\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert hardware.gpu_memory_bytes() == 15360 << 20
    script.write_text("#!/bin/sh\necho '[N/A]'\n")
    assert hardware.gpu_memory_bytes() is None
    script.write_text("#!/bin/sh\necho failed >&2; exit 9\n")
    assert hardware.gpu_memory_bytes() is None


MEMINFO = "MemTotal:        8000 kB\nMemAvailable:    3000 kB\n"
V1 = "memory.limit_in_bytes"


@pytest.mark.parametrize(
    ("files", "expected"),
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
def test_memory_is_the_available_memory_or_the_cgroup_limit(files, expected, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert hardware.memory_bytes(tmp_path) == expected


def test_this_machine_has_cores_and_memory():
    assert hardware.num_cpus() >= 1
    assert hardware.num_gpus() >= 0
    assert hardware.memory_bytes() > 1 << 20


# ---------------------------------------------------------------- measured memory of a program


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
def test_a_program_needs_at_least_the_estimated_memory(tmp_path):
    """The expected value is the memory growth of a process that runs the program."""
    from cvbatch.inference import programs

    raw = {"task": "segmentation", "model": "encoder_decoder", "weights": "random"}
    job = parse_job({"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": [raw]})
    identity = programs.identify(Storage(), job.models[0])
    request = programs.BuildRequest(job.models[0], identity, "litert", "float32", 8)
    built = builder.build(Storage(), request)
    path = tmp_path / "program.zip"
    path.write_bytes(built.to_bytes())
    process = subprocess.run(
        [sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True
    )
    need = memory_check.prediction_need([built])
    assert built.bytes_per_image > 200 * 200 * (3 + 4 * 3)
    assert need.of(8) <= int(process.stdout) < 2 * need.of(8)


# ---------------------------------------------------------------- whole jobs


@pytest.mark.ray
@pytest.mark.keras
def test_a_job_with_a_too_large_batch_is_refused_and_the_suggested_batch_runs(
    keras_files, ray_session, tmp_path, monkeypatch
):
    from cvbatch.predict import job as prediction
    from cvbatch.predict.dry_run import estimate

    archive = jobs.write_files(tmp_path / "in", jobs.archive_files(6))
    values = jobs.job(archive, tmp_path / "sink", keras_files)
    values["models"] = values["models"][2:]

    def job(batch_size, memory_bytes):
        engine = ["run.engine=litert", "run.arrangement=fused", "run.gpus_per_actor=0"]
        limits = [f"run.batch_size={batch_size}", f"run.actor_memory_bytes={memory_bytes}"]
        return parse_job(values, [*engine, *limits])

    dry = estimate(job(4, "auto"), jobs.RecordingListener())
    assert 0 < dry.needed_bytes < dry.actor_memory_bytes
    assert f"{dry.needed_bytes:,} bytes at least" in dry.as_text()
    short = dry.needed_bytes - 1
    for work in (prediction.predict, estimate):
        with pytest.raises(ConfigError, match=r"each of 2 actors has") as error:
            work(job(4, short), jobs.RecordingListener())
    assert error.value.exit_status == 2
    (suggested,) = re.findall(r"run.batch_size: (\d+)", str(error.value))
    assert suggested == "3"
    with pytest.raises(ConfigError, match="not even one image at a time fits"):
        estimate(job(4, 1), jobs.RecordingListener())
    assert not (tmp_path / "sink").exists()
    assert prediction.predict(job(suggested, short), jobs.RecordingListener()).num_images == 8
    (program_file,) = (tmp_path / "sink" / "_cvbatch" / "programs").iterdir()
    needed_by_3 = memory_check.prediction_need(
        [BuiltProgram.from_bytes(program_file.read_bytes())]
    ).of(3)

    # A later run, which reads the stored programs, is checked as well.
    monkeypatch.setattr(prediction, "ProgramBuilder", None)
    next((tmp_path / "sink").glob("*.parquet")).unlink()
    before = sorted(path for path in (tmp_path / "sink").rglob("*"))
    with pytest.raises(ConfigError, match="the largest that would fit is 2"):
        prediction.predict(job(suggested, needed_by_3 - 1), jobs.RecordingListener())
    assert sorted(path for path in (tmp_path / "sink").rglob("*")) == before
