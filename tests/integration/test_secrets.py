"""Credentials in every form they come in: the job works with them, and nothing it leaves has them.

What a job leaves are its words, its sink, and the logs of the Ray that it started. A profile in
either of Amazon's two files is used, and its keys are searched for, in `test_broken_store`.
"""

from __future__ import annotations

import pytest

from tests.support import jobs
from tests.support.faulty_proxy import down
from tests.support.s3_job import NUM_IMAGES, TOKEN, StoredJob, leaks, over_proxy
from tests.support.s3_server import KEY, SECRET

pytestmark = [pytest.mark.ray, pytest.mark.keras]


@pytest.mark.parametrize("form", ["plain", "parquet", "metadata"])
def test_the_search_finds_what_is_there(stored: StoredJob, tmp_path, form: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ran = stored.runs[0]
    said = SECRET * 3 if form == "parquet" else "nothing"
    table = pa.table({"labels": [[{"label": said}]] * 9})
    if form == "metadata":
        table = table.replace_schema_metadata({"cvbatch": TOKEN})
    pq.write_table(table, tmp_path / "part-x.parquet", compression="zstd")
    (tmp_path / "x.log").write_text(KEY if form == "plain" else "nothing")
    assert len(leaks(ran, tmp_path)) == 1


def test_a_job_leaves_no_credentials_in_its_words_its_result_or_rays_logs(
    stored: StoredJob,
) -> None:
    ran = stored.runs[0]  # the keys and a session token came from the environment
    assert len(jobs.rows(stored.sink("calm"))) == NUM_IMAGES + 2
    assert list(ran.ray.rglob("raylet.out"))  # the logs are there to be searched
    assert list(ran.ray.rglob("worker-*.out"))
    assert list(stored.sink("calm").rglob("_cvbatch/programs/*"))
    assert leaks(ran, stored.sink("calm")) == []


def refused(stored: StoredJob, values: dict[str, object], **names: str) -> str:
    """Return the last line of a job that is refused for its credentials."""
    ran = stored.run(values, {**stored.env(stored.server.endpoint), **names})
    assert ran.status == 2, ran.told
    assert leaks(ran) == []
    assert "Traceback" not in ran.told
    assert "wrong" not in ran.told
    assert "MARKED" not in ran.told
    return ran.told


def test_wrong_keys_are_not_told(stored: StoredJob) -> None:
    told = refused(stored, stored.values("x"), AWS_SECRET_ACCESS_KEY="a-wrong-MARKED-secret")
    assert "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN" in told
    told = refused(stored, stored.values("x"), AWS_ACCESS_KEY_ID="MARKEDKEYOFSOMEONE")
    assert "check AWS_ACCESS_KEY_ID" in told


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
    told = refused(stored, values, OTHER=f"class-{TOKEN}")
    for where in ("source.uri[0]", "source.uri[1]", "sink.uri", "models[0].classes[0]"):
        assert f"{where}: " in told


def test_a_store_that_is_down_is_told_without_credentials(stored: StoredJob) -> None:
    values = stored.values("x", request_timeout_s=1, retry_budget_s=0)
    with over_proxy(stored, down) as proxy:
        ran = stored.run(values, stored.env(proxy.endpoint))
    assert ran.status == 1, ran.told
    assert "did not answer" in ran.last_line
    assert leaks(ran) == []
