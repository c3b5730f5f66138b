"""Jobs over failing storage: the same bytes, or a clear error and the same bytes after a resume."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import jobs
from tests.support.faulty_proxy import REFUSE, Chooser, Fault, Request, down, healthy, unwell
from tests.support.s3_job import NUM_IMAGES, FinishedRun, StoredJob, leaks, over_proxy
from tests.support.small_disk import needs_mounts, on_small_disk

pytestmark = [pytest.mark.ray, pytest.mark.keras]
NUM_PARTS = 7
BUDGET_S = 2.0
WAIT = re.compile(r"trying again in ([\d.]+) s")


def down_after(num_parts: int) -> Chooser:
    """Accept `num_parts` parts, then refuse every request."""
    accepted = []

    def choose(request: Request) -> Fault | None:
        if len(accepted) == num_parts:
            return REFUSE
        if request.method == "PUT" and "part-" in request.path:
            accepted.append(request)
        return None

    return choose


def waits_of_workers(run: FinishedRun) -> list[float]:
    """Return the waits between retries, in seconds, from the logs of the workers."""
    logs = run.ray.rglob("worker-*.err")
    return [float(wait) for log in logs for wait in WAIT.findall(log.read_text())]


def test_an_uninterrupted_job_has_every_row(stored: StoredJob) -> None:
    rows = jobs.rows(stored.sink("calm"))
    assert len(rows) == NUM_IMAGES + 2
    assert sum(row["status"] == "ok" for row in rows) == NUM_IMAGES
    assert len(jobs.parts(stored.sink("calm"))) == NUM_PARTS


@pytest.mark.parametrize(
    ("seed", "arrangement"),
    [
        (1, "fused"),
        *(
            pytest.param(seed, arrangement, marks=pytest.mark.soak)
            for seed in (2, 3)
            for arrangement in ("fused", "streaming")
        ),
    ],
)
def test_a_job_over_a_failing_network_writes_the_same_bytes(
    stored: StoredJob, seed: int, arrangement: str
) -> None:
    sink = f"unwell-{seed}-{arrangement}"
    stored.carry_programs("calm", sink)
    actors = 2 if arrangement == "fused" else 1  # decoding needs a CPU beside an actor
    values = stored.values(sink, request_timeout_s=1, arrangement=arrangement, actors=actors)
    with over_proxy(stored, unwell(seed)) as proxy:
        env = stored.env_of_files(proxy.endpoint, "AWS_SHARED_CREDENTIALS_FILE")
        run = stored.run(values, env)
    assert run.status == 0, run.stderr
    assert jobs.parts(stored.sink(sink)) == jobs.parts(stored.sink("calm"))
    assert {"answer", "hang"} <= set(proxy.done)
    assert proxy.done["cut"] + proxy.done["cut_upload"] > 0
    assert leaks(run, stored.sink(sink)) == []


def test_an_unreachable_store_stops_the_job_and_the_same_command_resumes_it(
    stored: StoredJob,
) -> None:
    stored.carry_programs("calm", "down")
    values = stored.values("down", request_timeout_s=1, retry_budget_s=BUDGET_S)
    with over_proxy(stored, down_after(2)) as proxy:
        env = stored.env_of_files(proxy.endpoint, "AWS_CONFIG_FILE")
        run = stored.run(values, env)
        assert run.status == 1, run.stderr
        assert "did not answer" in run.last_line
        assert run.last_line.endswith("run the same command to resume")
        assert "Traceback" not in run.stderr
        assert leaks(run, stored.sink("down")) == []
        waits = waits_of_workers(run)
        assert waits
        assert max(waits) <= 2 * BUDGET_S, "the job's limits did not reach its workers"
        written = jobs.parts(stored.sink("down"))
        complete = jobs.parts(stored.sink("calm"))
        assert 1 <= len(written) < NUM_PARTS
        assert written.items() <= complete.items()

        proxy.choose = down
        run = stored.run(values, env)
        assert run.status == 1, run.stderr  # not 2: the store may become reachable again
        assert run.last_line.endswith("run the same command to resume")

        proxy.choose = healthy
        proxy.requests.clear()
        run = stored.run(values, env)
    assert run.status == 0, run.stderr
    assert jobs.parts(stored.sink("down")) == complete
    put = [
        request.path
        for request in proxy.requests
        if request.method == "PUT" and "part-" in request.path
    ]
    assert len(put) == NUM_PARTS - len(written)


@needs_mounts
def test_a_full_disk_stops_the_job_and_the_same_command_resumes_it(
    stored: StoredJob, tmp_path: Path
) -> None:
    disk, state = tmp_path / "disk", stored.sink("calm") / "_cvbatch"
    values = {**stored.values("any"), "sink": {"uri": str(disk / "sink")}}
    config = jobs.write_job(tmp_path / "job.yaml", values)
    small = sum(4096 + path.stat().st_size for path in (state / "manifest").iterdir())
    script = f"""
mkdir -p "$DISK/sink/_cvbatch"
cp -r {state}/programs "$DISK/sink/_cvbatch"
predict() {{
    status=0
    "$PYTHON" -m cvbatch.cli predict --config {config} 2> {tmp_path}/stderr || status=$?
    echo $status: $(tail -1 {tmp_path}/stderr)
}}
room {small + 8 * 4096}
predict
cp -r "$DISK/sink" {tmp_path}/before
mount -o remount,size=64m "$DISK"
predict
cp -r "$DISK/sink" {tmp_path}/after
"""
    env = stored.env(stored.server.endpoint)
    stopped, done = on_small_disk(disk, script, env).splitlines()
    assert stopped.startswith(f"1: cvbatch: {disk}/sink/")
    assert "cannot be written: no space is left on its device; make room" in stopped
    assert stopped.endswith("; run the same command to resume")
    complete = jobs.parts(stored.sink("calm"))
    before = jobs.parts(tmp_path / "before")
    assert len(before) < NUM_PARTS
    assert before.items() <= complete.items()
    assert not [path for path in (tmp_path / "before").rglob("*") if path.name.endswith(".tmp")]
    assert done.startswith("0: cvbatch: done")
    assert jobs.parts(tmp_path / "after") == complete
