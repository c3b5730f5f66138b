"""The command as its users meet it: exit statuses, last lines, nothing written when refused."""

import json
import os
import pty
import subprocess
import sys

import pytest

from tests.support import jobs

pytestmark = [pytest.mark.ray, pytest.mark.keras]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return jobs.write_files(tmp_path_factory.mktemp("archive"), jobs.archive_files(10))


@pytest.fixture(scope="module")
def finished(archive, keras_files, tmp_path_factory):
    """A job that was run by the command: its file, its sink, its stdout."""
    folder = tmp_path_factory.mktemp("job")
    path = jobs.write_job(folder / "job.yaml", jobs.job(archive, folder / "sink", keras_files))
    status, said, told = jobs.cvbatch("predict", "--config", path, "--json")
    assert status == 0, told
    return path, folder / "sink", said, told


def last_line(told):
    return told.strip().splitlines()[-1]


def refused(*words, **options):
    status, said, told = jobs.cvbatch(*words, **options)
    assert status == 2, told
    assert said == ""
    assert "Traceback" not in told
    return told


def test_a_job_done_says_so_and_json_is_all_there_is_on_stdout(finished):
    _, sink, said, told = finished
    summary = json.loads(said)
    assert summary["num_images"] == 12
    assert summary["failures"] == {"decode/empty": 1, "decode/not_an_image": 1}
    assert last_line(told) == f"cvbatch: done, 12 images into {sink}, 2 failed"
    runs = list((sink / "_cvbatch" / "runs").iterdir())
    assert json.loads(runs[0].read_text())["num_images"] == 12


def test_a_finished_job_ends_at_once_and_loads_neither_ray_nor_tensorflow(finished, tmp_path):
    path, _, _, _ = finished
    status, _, told = jobs.cvbatch("predict", "--config", path)
    assert status == 0
    assert "nothing to do" in last_line(told)


def test_too_many_failures_are_status_3_with_kinds_and_remedy(
    archive, finished, keras_files, tmp_path
):
    _, done, _, _ = finished
    sink = jobs.carry_programs(done, tmp_path / "sink")
    values = jobs.job(archive, sink, keras_files, max_failure_fraction=0.01)
    path = jobs.write_job(tmp_path / "job.yaml", values)
    status, _, told = jobs.cvbatch("predict", "--config", path)
    assert status == 3
    assert "decode/empty 1" in last_line(told)
    assert "--retry-failed" in last_line(told)
    assert len(jobs.rows(sink)) == 12
    # whoever tries again until it is 0 is told the same, until the images are mended or allowed
    (sink / "_cvbatch" / "runs" / "99991231T235959.000000Z.json").write_text("damaged")
    status, _, told = jobs.cvbatch("predict", "--config", path)
    assert (status, "2 of 12 images failed" in last_line(told)) == (3, True)
    allowed = ["--set", "run.max_failure_fraction=0.5"]
    status, _, told = jobs.cvbatch("predict", "--config", path, *allowed)
    assert (status, "failed" in last_line(told)) == (0, False)


def test_a_dry_run_tells_and_writes_nothing(archive, keras_files, tmp_path):
    sink = tmp_path / "sink"
    path = jobs.write_job(tmp_path / "job.yaml", jobs.job(archive, sink, keras_files))
    status, said, told = jobs.cvbatch("predict", "--config", path, "--dry-run", "--json")
    assert status == 0, told
    estimate = json.loads(said)
    assert (estimate["num_chunks"], estimate["num_images"]) == (2, 12)
    assert estimate["num_chunks_done"] == 0
    assert estimate["num_bytes"] == sum(p.stat().st_size for p in archive.rglob("*.*"))
    assert estimate["seconds"] > 0
    assert estimate["result_bytes"] > 0
    assert not sink.exists()


def test_a_dry_run_over_tars_estimates_from_their_bytes(keras_files, tmp_path):
    tar = jobs.write_tar(tmp_path / "in" / "a.tar", jobs.archive_files(10))
    path = jobs.write_job(tmp_path / "job.yaml", jobs.job(tar, tmp_path / "sink", keras_files))
    status, said, told = jobs.cvbatch("predict", "--config", path, "--dry-run", "--json")
    assert status == 0, told
    estimate = json.loads(said)
    assert (estimate["num_images"], estimate["sampled_images"]) == (0, 12)
    assert estimate["seconds"] > 0
    assert estimate["result_bytes"] > 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("source.uri=/no/such/folder", "/no/such/folder"),
        ("run.batchsize=3", "did you mean batch_size?"),
        ("models.0.model=/no/such.keras", "/no/such.keras"),
        ("models.0.heatmap.layer=nosuch", "heatmap layer 'nosuch'"),
        ("models.0.classes=/no/such.txt", "class file /no/such.txt"),
        ("models.1.task=detection", "wants the outputs boxes (B, N, 4)"),
    ],
)
def test_what_is_wrong_is_refused_in_a_sentence_and_nothing_is_written(
    archive, keras_files, tmp_path, change, told
):
    values = jobs.job(archive, tmp_path / "sink", keras_files)
    if "task=detection" in change:
        values["models"] = values["models"][:2]
        del values["models"][1]["resize"]
    path = jobs.write_job(tmp_path / "job.yaml", values)
    assert told in refused("predict", "--config", path, "--set", change)
    assert not (tmp_path / "sink").exists()


def test_a_cluster_that_does_not_answer_is_refused(archive, keras_files, tmp_path):
    path = jobs.write_job(tmp_path / "job.yaml", jobs.job(archive, tmp_path / "o", keras_files))
    told = refused("predict", "--config", path, env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"})
    assert "no Ray cluster answers there" in told
    assert not (tmp_path / "o").exists()


def test_wrong_words_are_status_2():
    assert "usage: cvbatch" in refused("predict")
    assert "invalid choice" in refused("predit", "--config", "x")


def test_a_store_that_refuses_is_told_in_a_sentence(keras_files, s3, tmp_path, archive):
    def told(source, sink, **environment):
        path = jobs.write_job(tmp_path / "job.yaml", jobs.job(source, sink, keras_files))
        message = refused("predict", "--config", path, env={**os.environ, **environment})
        assert s3.env["AWS_SECRET_ACCESS_KEY"] not in message
        assert "wrong-secret" not in message
        return last_line(message)

    inside = f"{s3.bucket_uri}/refused"
    jobs.write_files(s3.bucket / "refused" / "in", jobs.archive_files(1))
    assert "credentials" in told(
        f"{inside}/in", f"{inside}/out", AWS_SECRET_ACCESS_KEY="wrong-secret"
    )
    assert "no-such-bucket" in told("s3://no-such-bucket/in", f"{inside}/out")
    assert f"{inside}/empty" in told(f"{inside}/empty/", f"{inside}/out")
    assert not (s3.bucket / "refused" / "out").exists()


def test_on_a_terminal_there_are_bars(finished):
    """A pseudo-terminal stands for stderr; what is shown there is overwritten, not appended."""
    path, _, _, _ = finished
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "cvbatch", "predict", "--config", str(path)]
    with subprocess.Popen(command, stderr=slave, env={**os.environ, "TERM": "xterm"}) as process:
        os.close(slave)
        shown = b""
        while chunk := _read(master):
            shown += chunk
    os.close(master)
    assert process.returncode == 0
    assert b"listing" in shown
    assert b"12 names" in shown
    assert b"nothing to do" in shown


def _read(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux tells the end of a pseudo-terminal so
        return b""
