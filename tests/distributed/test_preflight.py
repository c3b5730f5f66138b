"""Nodes that cannot run a job are reported before the first image; the sink stays unchanged."""

from __future__ import annotations

import time
from contextlib import nullcontext
from importlib import metadata

import pytest

from cvbatch.core.errors import ConfigError, SinkError
from cvbatch.core.types import RetryPolicy
from cvbatch.storage.store import Storage
from tests.support import jobs
from tests.support.local_cluster import working_folder
from tests.support.small_disk import needs_mounts

WITHOUT_RETRIES = Storage(RetryPolicy(retry_budget_s=0))


@pytest.fixture
def archive(tmp_path):
    return jobs.write_files(tmp_path / "in", {"a.jpg": jobs.encoded_image(1)})


@pytest.fixture
def check(archive, tmp_path):
    from cvbatch.distributed.preflight import NodeCheck

    return NodeCheck(WITHOUT_RETRIES, str(tmp_path / "sink"), "token", str(archive / "a.jpg"))


@pytest.mark.ray
class TestNodeCheck:
    """The checks of a node, called in this process."""

    def test_a_valid_node(self, check):
        from cvbatch.distributed.preflight import run_check

        Storage().put_bytes(check.probe_uri, b"token")
        assert run_check(check, "n1") == ("", "")
        assert Storage().read_bytes(check.node_probe_uri("n1")) == b"token"

    def test_another_sink_with_the_same_uri(self, check, tmp_path):
        from cvbatch.distributed.preflight import run_check

        assert run_check(check, "n1") == (
            "sink",
            "a file that the driver wrote is not visible on this node",
        )
        assert not (tmp_path / "sink").exists()
        Storage().put_bytes(check.probe_uri, b"of another run")
        subject, problem = run_check(check, "n1")
        assert subject == "sink" and "another file" in problem

    def test_a_missing_source(self, check, archive):
        from cvbatch.distributed.preflight import run_check

        (archive / "a.jpg").unlink()
        subject, problem = run_check(check, "n1")
        assert subject == "source" and str(archive / "a.jpg") in problem

    def test_rejected_credentials(self, check, s3, monkeypatch):
        from dataclasses import replace

        from cvbatch.distributed.preflight import run_check

        (s3.bucket / "a.jpg").write_bytes(b"here")
        remote = replace(check, source_uri=f"{s3.bucket_uri}/a.jpg")
        remote = replace(remote, sink_uri=f"{s3.bucket_uri}/preflight")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-made-up-secret")
        subject, problem = run_check(remote, "n1")
        assert subject == "source" and "credentials" in problem
        subject, problem = run_check(replace(remote, source_uri=check.source_uri), "n1")
        assert subject == "sink" and "credentials" in problem


@pytest.mark.parametrize(
    ("model", "packages"),
    [("lenet5", ["numpy", "keras"]), ("keras_hub://net", ["numpy", "keras", "keras-hub"])],
)
def test_packages_of_workers_that_load_a_network(monkeypatch, model, packages):
    from cvbatch.core import extras
    from cvbatch.distributed.preflight import WorkerPackages

    requirements = [
        "numpy",
        'keras; extra == "tensorflow"',
        'cvbatch[tensorflow]; extra == "hub"',
        'keras-hub; extra == "hub"',
        'pytest; extra == "dev"',
    ]
    monkeypatch.setattr(extras, "requires", lambda name: requirements)
    assert WorkerPackages.of_network(model).packages == packages


@pytest.mark.ray
class TestCheckNodes:
    def check_nodes(self, sink, source, lines=None, worker=None):
        from cvbatch.distributed.preflight import WorkerPackages, check_nodes

        report = (lines if lines is not None else []).append
        worker = worker or WorkerPackages()
        return check_nodes(WITHOUT_RETRIES, str(sink), str(source), report, worker)

    def test_no_file_remains(self, ray_session, archive, tmp_path):
        lines = []
        sink = tmp_path / "of" / "another" / "sink"
        with self.check_nodes(sink, archive / "a.jpg", lines):
            assert len(list((sink / "_cvbatch").iterdir())) >= 1
        assert not (tmp_path / "of").exists() and lines == []
        sink.mkdir(parents=True)
        with self.check_nodes(sink, archive / "a.jpg"):
            pass
        assert list(sink.iterdir()) == []

    def test_other_errors_pass_and_no_file_remains(self, ray_session, archive, tmp_path):
        with (
            pytest.raises(ConfigError, match="too large"),
            self.check_nodes(tmp_path / "sink", archive / "a.jpg"),
        ):
            raise ConfigError("too large")
        assert not (tmp_path / "sink").exists()

    def test_a_sink_that_the_driver_cannot_write(self, ray_session, archive, tmp_path):
        (tmp_path / "sink").write_text("a file")
        with pytest.raises(SinkError), self.check_nodes(tmp_path / "sink", archive / "a.jpg"):
            pytest.fail("started")

    def test_different_versions_are_reported(self, ray_session, archive, tmp_path, monkeypatch):
        from cvbatch.distributed import preflight

        numpy = metadata.version("numpy")
        monkeypatch.setattr(preflight, "_versions", lambda _: {"numpy": "0.1"})
        message = rf"node \S+ has numpy {numpy} instead of 0.1: give all nodes"
        with (
            pytest.raises(ConfigError, match=message),
            self.check_nodes(tmp_path / "sink", archive / "a.jpg"),
        ):
            pass
        assert not (tmp_path / "sink").exists()

    @pytest.mark.parametrize(
        ("node_gpus", "needs_gpu", "is_refused"),
        [(0, False, True), (0, True, False), (1, False, True), (1, True, True)],
    )
    def test_packages_of_workers_are_required_where_workers_run(
        self, ray_session, archive, tmp_path, monkeypatch, node_gpus, needs_gpu, is_refused
    ):
        """The only node lacks a package that the driver has."""
        import ray

        from cvbatch.distributed import preflight

        (node,) = ray.nodes()
        node["Resources"]["GPU"] = node_gpus
        monkeypatch.setattr(ray, "nodes", lambda: [node])
        real = metadata.version
        absent = {"absent-package": "2.21.0"}
        monkeypatch.setattr(metadata, "version", lambda name: absent.get(name) or real(name))
        worker = preflight.WorkerPackages(needs_gpu=needs_gpu)
        refused = pytest.raises(
            ConfigError, match=r"node \S+ has no absent-package: give all nodes"
        )
        with (
            refused if is_refused else nullcontext(),
            self.check_nodes(tmp_path / "sink", archive / "a.jpg", worker=worker),
        ):
            worker.packages = ["absent-package"]  # known only after the programs are built

    def test_a_check_that_fails_on_all_nodes_is_reported(self, ray_session, tmp_path):
        message = "cannot be checked: the scheme of ftp://"
        with (
            pytest.raises(ConfigError, match=message),
            self.check_nodes(tmp_path / "sink", "ftp://a/b.jpg"),
        ):
            pass
        assert not (tmp_path / "sink").exists()

    def test_a_node_that_does_not_respond_is_ignored(
        self, ray_session, archive, tmp_path, monkeypatch
    ):
        from cvbatch.distributed import preflight

        lines = []
        monkeypatch.setattr(preflight, "_TIMEOUT_S", 0.0)
        monkeypatch.setattr(preflight, "_check_function", lambda *_: lambda: time.sleep(2))
        with self.check_nodes(tmp_path / "sink", archive / "a.jpg", lines):
            pass
        (line,) = lines
        assert line.startswith("no response within 0 s from ") and line.endswith(
            "continuing without them"
        )


def last_line_of(status, stderr, sink):
    assert status == 2, stderr
    assert "Traceback" not in stderr
    assert not sink.exists()
    return stderr.strip().splitlines()[-1]


# A node whose environment lacks cvbatch: the finders of `pip install --editable` are removed.
LACKING = """
import os, sys
if os.environ.get("TEST_NODE") == "gpu":
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
"""


@pytest.mark.ray
@pytest.mark.keras
class TestOnACluster:
    @pytest.fixture
    def values(self, archive, keras_files, tmp_path):
        values = jobs.job(archive, tmp_path / "sink", keras_files, engine="litert")
        del values["models"][1:]
        return values

    def run(self, two_nodes, folder, values, **variables):
        path = jobs.write_job(folder / "job.yaml", values)
        env = {**two_nodes.env, "RAY_ADDRESS": two_nodes.address, **variables}
        status, _, stderr = jobs.cvbatch("predict", "--config", path, env=env)
        return status, stderr

    def test_more_gpus_than_a_node_has(self, two_nodes, values, tmp_path):
        values["run"]["gpus_per_actor"] = 2
        line = last_line_of(*self.run(two_nodes, tmp_path, values), tmp_path / "sink")
        assert "1 CPU and 2 GPU each (streaming) do not fit a cluster of 3 CPU and 1 GPU" in line

    def test_a_node_without_cvbatch(self, two_nodes, values, tmp_path):
        stub = tmp_path / "stub"
        stub.mkdir()
        (stub / "sitecustomize.py").write_text(LACKING)
        folder = working_folder(tmp_path, predict=values)
        finished = two_nodes.submit(folder, "predict", PYTHONPATH=str(stub))
        line = last_line_of(finished.status, finished.log, tmp_path / "sink")
        assert "node 127.0.0.2 cannot import cvbatch" in line
        assert "No module named 'cvbatch'" in line

    @needs_mounts
    def test_a_sink_that_only_the_driver_can_access(self, two_nodes, values, tmp_path):
        sink = two_nodes.hidden / "sink"
        values["sink"]["uri"] = str(sink)
        line = last_line_of(*self.run(two_nodes, tmp_path, values), sink)
        assert line.startswith(f"cvbatch: node 127.0.0.2 cannot write the sink {sink}")
        assert list(two_nodes.hidden.iterdir()) == []

    def test_the_address_of_a_dashboard(self, two_nodes, values, tmp_path):
        result = self.run(two_nodes, tmp_path, values, RAY_ADDRESS=two_nodes.dashboard)
        assert "is a dashboard, which only accepts ray job submit" in last_line_of(
            *result, tmp_path / "sink"
        )

    def test_the_token_of_another_cluster(self, two_nodes, values, tmp_path):
        variables = {"RAY_AUTH_TOKEN": "f" * 32, "RAY_NUM_REDIS_GET_RETRIES": "2"}
        result = self.run(two_nodes, tmp_path, values, **variables)
        line = last_line_of(*result, tmp_path / "sink")
        assert "rejects the token of this process" in line and "f" * 32 not in line
