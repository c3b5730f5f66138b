"""The command line: exit statuses, last lines, and nothing written when a job is refused."""

import json
import os
import pty
import re
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
    """A finished job: its file, its sink, and the stdout and stderr of the command."""
    folder = tmp_path_factory.mktemp("job")
    path = jobs.write_job(folder / "job.yaml", jobs.job(archive, folder / "sink", keras_files))
    status, stdout, stderr = jobs.cvbatch("predict", "--config", path, "--json")
    assert status == 0, stderr
    return path, folder / "sink", stdout, stderr


def last_line(stderr):
    return stderr.strip().splitlines()[-1]


def refused(*arguments, **options):
    status, stdout, stderr = jobs.cvbatch(*arguments, **options)
    assert status == 2, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    return stderr


def test_a_finished_job_prints_json_on_stdout_and_a_last_line_on_stderr(finished):
    _, sink, stdout, stderr = finished
    summary = json.loads(stdout)
    assert summary["num_images"] == 12
    assert summary["failures"] == {"decode/empty": 1, "decode/not_an_image": 1}
    assert last_line(stderr) == (
        f"cvbatch: done, 12 images into {sink}, 2 failed; next: cvbatch report {sink}"
    )
    runs = list((sink / "_cvbatch" / "runs").iterdir())
    assert json.loads(runs[0].read_text())["num_images"] == 12


def test_a_finished_job_has_nothing_to_do(finished, tmp_path):
    path, _, _, _ = finished
    status, _, stderr = jobs.cvbatch("predict", "--config", path)
    assert status == 0
    assert "nothing to do" in last_line(stderr)


def test_too_many_failures_exit_with_status_3_kinds_and_remedy(
    archive, finished, keras_files, tmp_path
):
    _, done, _, _ = finished
    sink = jobs.carry_programs(done, tmp_path / "sink")
    values = jobs.job(archive, sink, keras_files, max_failure_fraction=0.01)
    path = jobs.write_job(tmp_path / "job.yaml", values)
    status, _, stderr = jobs.cvbatch("predict", "--config", path)
    assert status == 3
    assert "decode/empty 1" in last_line(stderr)
    assert "--retry-failed" in last_line(stderr)
    assert len(jobs.rows(sink)) == 12
    # The status stays 3 on every retry, until the images are fixed or the limit is raised.
    (sink / "_cvbatch" / "runs" / "99991231T235959.000000Z.json").write_text("damaged")
    status, _, stderr = jobs.cvbatch("predict", "--config", path)
    assert (status, "2 of 12 images failed" in last_line(stderr)) == (3, True)
    allowed = ["--set", "run.max_failure_fraction=0.5"]
    status, _, stderr = jobs.cvbatch("predict", "--config", path, *allowed)
    assert (status, "failed" in last_line(stderr)) == (0, False)


def test_a_dry_run_estimates_and_writes_nothing(archive, keras_files, tmp_path):
    sink = tmp_path / "sink"
    path = jobs.write_job(tmp_path / "job.yaml", jobs.job(archive, sink, keras_files))
    status, stdout, stderr = jobs.cvbatch("predict", "--config", path, "--dry-run", "--json")
    assert status == 0, stderr
    estimate = json.loads(stdout)
    assert (estimate["num_chunks"], estimate["num_images"]) == (2, 12)
    assert estimate["num_chunks_done"] == 0
    assert estimate["num_bytes"] == sum(path.stat().st_size for path in archive.rglob("*.*"))
    assert estimate["seconds"] > 0
    assert estimate["result_bytes"] > 0
    assert estimate["engines"] == ["litert"] * 3
    assert sum("scores are probabilities" in note for note in estimate["notes"]) == 3
    assert not sink.exists()


def test_a_dry_run_over_tars_estimates_from_their_bytes(keras_files, tmp_path):
    tar = jobs.write_tar(tmp_path / "in" / "a.tar", jobs.archive_files(10))
    path = jobs.write_job(tmp_path / "job.yaml", jobs.job(tar, tmp_path / "sink", keras_files))
    status, stdout, stderr = jobs.cvbatch("predict", "--config", path, "--dry-run", "--json")
    assert status == 0, stderr
    estimate = json.loads(stdout)
    assert (estimate["num_images"], estimate["sampled_images"]) == (0, 12)
    assert estimate["seconds"] > 0
    assert estimate["result_bytes"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("source.uri=/no/such/folder", "/no/such/folder"),
        ("run.batchsize=3", "did you mean batch_size?"),
        ("models.0.model=/no/such.keras", "/no/such.keras"),
        ("models.0.heatmap.layer=nosuch", "heatmap layer 'nosuch'"),
        ("models.0.classes=/no/such.txt", "class file /no/such.txt"),
        ("models.1.task=detection", "requires the outputs boxes (B, N, 4)"),
    ],
)
def test_an_invalid_job_is_refused_and_writes_nothing(
    archive, keras_files, tmp_path, change, message
):
    values = jobs.job(archive, tmp_path / "sink", keras_files)
    if "task=detection" in change:
        values["models"] = values["models"][:2]
        del values["models"][1]["resize"]
    path = jobs.write_job(tmp_path / "job.yaml", values)
    assert message in refused("predict", "--config", path, "--set", change)
    assert not (tmp_path / "sink").exists()


def test_an_unreachable_cluster_is_refused(archive, keras_files, tmp_path):
    path = jobs.write_job(tmp_path / "job.yaml", jobs.job(archive, tmp_path / "o", keras_files))
    stderr = refused("predict", "--config", path, env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"})
    assert "no Ray cluster responds" in stderr
    assert not (tmp_path / "o").exists()


def test_invalid_usage_exits_with_status_2():
    assert "cvbatch predict photos/ --model MobileNetV2" in refused("predict")
    assert "COMMAND" in refused()
    assert "did you mean predict?" in refused("predit", "--config", "x")


def test_storage_errors_are_one_line_without_secrets(keras_files, s3, tmp_path, archive):
    def message_of(source, sink, **environment):
        path = jobs.write_job(tmp_path / "job.yaml", jobs.job(source, sink, keras_files))
        stderr = refused("predict", "--config", path, env={**os.environ, **environment})
        assert s3.env["AWS_SECRET_ACCESS_KEY"] not in stderr
        assert "wrong-secret" not in stderr
        return last_line(stderr)

    prefix = f"{s3.bucket_uri}/refused"
    jobs.write_files(s3.bucket / "refused" / "in", jobs.archive_files(1))
    assert "credentials" in message_of(
        f"{prefix}/in", f"{prefix}/out", AWS_SECRET_ACCESS_KEY="wrong-secret"
    )
    assert "no-such-bucket" in message_of("s3://no-such-bucket/in", f"{prefix}/out")
    assert f"{prefix}/empty" in message_of(f"{prefix}/empty/", f"{prefix}/out")
    assert not (s3.bucket / "refused" / "out").exists()


def test_a_terminal_shows_progress_bars(finished):
    """Stderr is a pseudo-terminal, where lines are overwritten, not appended."""
    path, _, _, _ = finished
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "cvbatch", "predict", "--config", str(path)]
    with subprocess.Popen(command, stderr=slave, env={**os.environ, "TERM": "xterm"}) as process:
        os.close(slave)
        output = b""
        while chunk := _read(master):
            output += chunk
    os.close(master)
    assert process.returncode == 0
    assert re.search(rb"listing .*12 files", output, re.DOTALL)
    assert b"nothing to do" in output


def _read(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux reports the end of a pseudo-terminal as an error
        return b""
