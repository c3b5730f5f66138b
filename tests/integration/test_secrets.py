"""Credentials in every form work, and are in no output of a job.

The outputs are stdout, stderr, the sink, and the logs of the Ray that the job started.
`test_broken_store` does the same with a profile in either of the two AWS files.
"""

from __future__ import annotations

import pytest

from tests.support import jobs
from tests.support.faulty_proxy import down
from tests.support.s3_job import NUM_IMAGES, TOKEN, StoredJob, leaks, over_proxy
from tests.support.s3_server import KEY, SECRET

pytestmark = [pytest.mark.ray, pytest.mark.keras]


@pytest.mark.parametrize("form", ["plain", "parquet", "metadata"])
def test_the_search_finds_credentials(stored: StoredJob, tmp_path, form: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    run = stored.runs[0]
    label = SECRET * 3 if form == "parquet" else "nothing"
    table = pa.table({"labels": [[{"label": label}]] * 9})
    if form == "metadata":
        table = table.replace_schema_metadata({"cvbatch": TOKEN})
    pq.write_table(table, tmp_path / "part-x.parquet", compression="zstd")
    (tmp_path / "x.log").write_text(KEY if form == "plain" else "nothing")
    assert len(leaks(run, tmp_path)) == 1


def test_a_job_writes_no_credentials_to_its_output_its_sink_or_rays_logs(
    stored: StoredJob,
) -> None:
    run = stored.runs[0]  # with keys and a session token from the environment
    assert len(jobs.rows(stored.sink("calm"))) == NUM_IMAGES + 2
    assert list(run.ray.rglob("raylet.out"))  # the logs exist
    assert list(run.ray.rglob("worker-*.out"))
    assert list(stored.sink("calm").rglob("_cvbatch/programs/*"))
    assert leaks(run, stored.sink("calm")) == []


def refused(stored: StoredJob, values: dict[str, object], **names: str) -> str:
    """Return the stderr of a job that is refused because of its credentials."""
    run = stored.run(values, {**stored.env(stored.server.endpoint), **names})
    assert run.status == 2, run.stderr
    assert leaks(run) == []
    assert "Traceback" not in run.stderr
    assert "wrong" not in run.stderr
    assert "MARKED" not in run.stderr
    return run.stderr


def test_wrong_keys_are_not_shown(stored: StoredJob) -> None:
    stderr = refused(stored, stored.values("x"), AWS_SECRET_ACCESS_KEY="a-wrong-MARKED-secret")
    assert "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN" in stderr
    stderr = refused(stored, stored.values("x"), AWS_ACCESS_KEY_ID="MARKEDKEYOFSOMEONE")
    assert "check AWS_ACCESS_KEY_ID" in stderr


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_an_endpoint_with_a_password_is_refused(stored: StoredJob, name: str) -> None:
    endpoint = stored.server.endpoint.replace("://", "://someone:a-MARKED-password@")
    names = {"AWS_ENDPOINT_URL_S3": "", name: endpoint}
    assert f"{name} carries credentials" in refused(stored, stored.values("x"), **names)


def test_credentials_in_the_job_file_are_refused(stored: StoredJob) -> None:
    values = stored.values("x")
    values |= {
        "source": {"uri": [f"s3://{KEY}:{SECRET}@bucket/in", "s3://b/x?X-Amz-Signature=MARKED"]},
        "sink": {"uri": "${AWS_SECRET_ACCESS_KEY}"},
        "models": [{**values["models"][0], "classes": ["${OTHER}", "x"]}],
    }
    stderr = refused(stored, values, OTHER=f"class-{TOKEN}")
    for path in ("source.uri[0]", "source.uri[1]", "sink.uri", "models[0].classes[0]"):
        assert f"{path}: " in stderr


def test_an_unreachable_store_is_reported_without_credentials(stored: StoredJob) -> None:
    values = stored.values("x", request_timeout_s=1, retry_budget_s=0)
    with over_proxy(stored, down) as proxy:
        run = stored.run(values, stored.env(proxy.endpoint))
    assert run.status == 1, run.stderr
    assert "did not answer" in run.last_line
    assert leaks(run) == []
