"""A job over a store that breaks: every row right, or a clear stop and the same bytes later."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import jobs
from tests.support.faulty_proxy import REFUSE, Chooser, Fault, Request, down, healthy, unwell
from tests.support.s3_job import NUM_IMAGES, Ran, StoredJob, leaks, over_proxy
from tests.support.small_disk import needs_mounts, on_small_disk

pytestmark = [pytest.mark.ray, pytest.mark.keras]
NUM_PARTS = 7
BUDGET_S = 2.0
WAIT = re.compile(r"trying again in ([\d.]+) s")


def down_after(num_parts: int) -> Chooser:
    """Return a store that takes so many parts and never answers again."""
    taken = []

    def choose(request: Request) -> Fault | None:
        if len(taken) == num_parts:
            return REFUSE
        if request.method == "PUT" and "part-" in request.path:
            taken.append(request)
        return None

    return choose


def waits_of_workers(ran: Ran) -> list[float]:
    """Return the waits between tries, in seconds, that the workers told their logs."""
    logs = ran.ray.rglob("worker-*.err")
    return [float(wait) for log in logs for wait in WAIT.findall(log.read_text())]


def test_an_undisturbed_job_has_every_row(stored: StoredJob) -> None:
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
def test_a_job_over_a_network_that_fails_gives_the_same_bytes(
    stored: StoredJob, seed: int, arrangement: str
) -> None:
    sink = f"unwell-{seed}-{arrangement}"
    stored.carry_programs("calm", sink)
    actors = 2 if arrangement == "fused" else 1  # beside an actor, decoding needs a CPU
    values = stored.values(sink, request_timeout_s=1, arrangement=arrangement, actors=actors)
    with over_proxy(stored, unwell(seed)) as proxy:
        env = stored.env_of_files(proxy.endpoint, "AWS_SHARED_CREDENTIALS_FILE")
        ran = stored.run(values, env)
    assert ran.status == 0, ran.told
    assert jobs.parts(stored.sink(sink)) == jobs.parts(stored.sink("calm"))
    assert {"answer", "hang"} <= set(proxy.done)
    assert proxy.done["cut"] + proxy.done["cut_upload"] > 0
    assert leaks(ran, stored.sink(sink)) == []


def test_a_store_that_stays_down_stops_the_job_and_the_same_command_goes_on(
    stored: StoredJob,
) -> None:
    stored.carry_programs("calm", "down")
    values = stored.values("down", request_timeout_s=1, retry_budget_s=BUDGET_S)
    with over_proxy(stored, down_after(2)) as proxy:
        env = stored.env_of_files(proxy.endpoint, "AWS_CONFIG_FILE")
        ran = stored.run(values, env)
        assert ran.status == 1, ran.told
        assert "did not answer" in ran.last_line
        assert ran.last_line.endswith("run the same command again to go on")
        assert "Traceback" not in ran.told
        assert leaks(ran, stored.sink("down")) == []
        waits = waits_of_workers(ran)
        assert waits
        assert max(waits) <= 2 * BUDGET_S, "the job's limits did not reach its workers"
        written = jobs.parts(stored.sink("down"))
        whole = jobs.parts(stored.sink("calm"))
        assert 1 <= len(written) < NUM_PARTS
        assert written.items() <= whole.items()

        proxy.choose = down
        ran = stored.run(values, env)
        assert ran.status == 1, ran.told  # nothing is refused: the store may come back
        assert ran.last_line.endswith("run the same command again to go on")

        proxy.choose = healthy
        proxy.seen.clear()
        ran = stored.run(values, env)
    assert ran.status == 0, ran.told
    assert jobs.parts(stored.sink("down")) == whole
    put = [it.path for it in proxy.seen if it.method == "PUT" and "part-" in it.path]
    assert len(put) == NUM_PARTS - len(written)


@needs_mounts
def test_a_full_disk_stops_the_job_and_with_room_the_same_command_goes_on(
    stored: StoredJob, tmp_path: Path
) -> None:
    disk, held = tmp_path / "disk", stored.sink("calm") / "_cvbatch"
    values = {**stored.values("any"), "sink": {"uri": str(disk / "sink")}}
    config = jobs.write_job(tmp_path / "job.yaml", values)
    small = sum(4096 + path.stat().st_size for path in (held / "manifest").iterdir())
    script = f"""
mkdir -p "$DISK/sink/_cvbatch"
cp -r {held}/programs "$DISK/sink/_cvbatch"
predict() {{
    status=0
    "$PYTHON" -m cvbatch.cli predict --config {config} 2> {tmp_path}/told || status=$?
    echo $status: $(tail -1 {tmp_path}/told)
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
    assert stopped.endswith("; run the same command again to go on")
    whole = jobs.parts(stored.sink("calm"))
    before = jobs.parts(tmp_path / "before")
    assert len(before) < NUM_PARTS
    assert before.items() <= whole.items()
    assert not [path for path in (tmp_path / "before").rglob("*") if path.name.endswith(".tmp")]
    assert done.startswith("0: cvbatch: done")
    assert jobs.parts(tmp_path / "after") == whole
