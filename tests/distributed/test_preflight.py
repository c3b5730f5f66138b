"""A cluster that cannot do a job is found out before the first image, and its sink left alone."""

from __future__ import annotations

import time

import pytest

from cvbatch.core.errors import ConfigError, SinkError
from cvbatch.core.types import RetryPolicy
from cvbatch.storage.store import Storage
from tests.support import jobs
from tests.support.local_cluster import working_folder
from tests.support.small_disk import needs_mounts

IMPATIENT = Storage(RetryPolicy(retry_budget_s=0))


@pytest.fixture
def archive(tmp_path):
    return jobs.write_files(tmp_path / "in", {"a.jpg": jobs.encoded_image(1)})


@pytest.fixture
def errand(archive, tmp_path):
    from cvbatch.distributed.preflight import NodeCheck

    return NodeCheck(IMPATIENT, str(tmp_path / "sink"), "token", str(archive / "a.jpg"))


@pytest.mark.ray
class TestErrand:
    """What a node does, done here."""

    def test_all_in_order(self, errand):
        from cvbatch.distributed.preflight import run_check

        Storage().put_bytes(errand.mark, b"token")
        assert run_check(errand, "n1") == ("", "")
        assert Storage().read_bytes(errand.mark_of("n1")) == b"token"

    def test_another_sink_of_the_same_name(self, errand, tmp_path):
        from cvbatch.distributed.preflight import run_check

        assert run_check(errand, "n1") == (
            "sink",
            "it does not see there what this process writes",
        )
        assert not (tmp_path / "sink").exists()
        Storage().put_bytes(errand.mark, b"of another run")
        what, how = run_check(errand, "n1")
        assert what == "sink" and "did not write" in how

    def test_a_source_that_is_not_there(self, errand, archive):
        from cvbatch.distributed.preflight import run_check

        (archive / "a.jpg").unlink()
        what, how = run_check(errand, "n1")
        assert what == "source" and str(archive / "a.jpg") in how

    def test_a_store_that_refuses(self, errand, s3, monkeypatch):
        from dataclasses import replace

        from cvbatch.distributed.preflight import run_check

        (s3.bucket / "a.jpg").write_bytes(b"here")
        there = replace(errand, source_uri=f"{s3.bucket_uri}/a.jpg")
        there = replace(there, sink_uri=f"{s3.bucket_uri}/preflight")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-made-up-secret")
        what, how = run_check(there, "n1")
        assert what == "source" and "credentials" in how
        what, how = run_check(replace(there, source_uri=errand.source_uri), "n1")
        assert what == "sink" and "credentials" in how


@pytest.mark.ray
class TestNodesAsked:
    def asked(self, sink, source, said=None):
        from cvbatch.distributed.preflight import check_nodes

        say = (said if said is not None else []).append
        return check_nodes(IMPATIENT, str(sink), str(source), say)

    def test_nothing_stays_of_it(self, ray_session, archive, tmp_path):
        said = []
        sink = tmp_path / "of" / "another" / "sink"
        with self.asked(sink, archive / "a.jpg", said):
            assert len(list((sink / "_cvbatch").iterdir())) >= 1
        assert not (tmp_path / "of").exists() and said == []
        sink.mkdir(parents=True)
        with self.asked(sink, archive / "a.jpg"):
            pass
        assert list(sink.iterdir()) == []

    def test_an_error_of_another_kind_passes_and_nothing_stays(
        self, ray_session, archive, tmp_path
    ):
        with (
            pytest.raises(ConfigError, match="too large"),
            self.asked(tmp_path / "sink", archive / "a.jpg"),
        ):
            raise ConfigError("too large")
        assert not (tmp_path / "sink").exists()

    def test_a_sink_that_this_process_cannot_write(self, ray_session, archive, tmp_path):
        (tmp_path / "sink").write_text("a file")
        with pytest.raises(SinkError), self.asked(tmp_path / "sink", archive / "a.jpg"):
            pytest.fail("begun")

    def test_other_versions_are_named(self, ray_session, archive, tmp_path, monkeypatch):
        from cvbatch.distributed import preflight

        mine = preflight._versions()
        monkeypatch.setattr(preflight, "_versions", lambda: {**mine, "numpy": "0.1"})
        told = rf"node \S+ has numpy {mine['numpy']} instead of 0.1: give all nodes"
        with (
            pytest.raises(ConfigError, match=told),
            self.asked(tmp_path / "sink", archive / "a.jpg"),
        ):
            pass
        assert not (tmp_path / "sink").exists()

    def test_what_no_node_can_try_is_told(self, ray_session, tmp_path):
        told = "cannot be asked: the scheme of ftp://"
        with (
            pytest.raises(ConfigError, match=told),
            self.asked(tmp_path / "sink", "ftp://a/b.jpg"),
        ):
            pass
        assert not (tmp_path / "sink").exists()

    def test_a_node_that_does_not_answer_is_passed_over(
        self, ray_session, archive, tmp_path, monkeypatch
    ):
        from cvbatch.distributed import preflight

        said = []
        monkeypatch.setattr(preflight, "_LIMIT_S", 0.0)
        monkeypatch.setattr(preflight, "_question", lambda *_: lambda: time.sleep(2))
        with self.asked(tmp_path / "sink", archive / "a.jpg", said):
            pass
        (line,) = said
        assert line.startswith("no answer within 0 s from ") and line.endswith("going on without")


def refused(status, told, sink):
    assert status == 2, told
    assert "Traceback" not in told
    assert not sink.exists()
    return told.strip().splitlines()[-1]


# A machine whose environment lacks cvbatch: what `pip install --editable` put there is not heard.
LACKING = """
import os, sys
if os.environ.get("TEST_NODE") == "gpu":
    sys.meta_path[:] = [one for one in sys.meta_path if "editable" not in repr(one)]
"""


@pytest.mark.ray
@pytest.mark.keras
class TestOnACluster:
    @pytest.fixture
    def values(self, archive, keras_files, tmp_path):
        values = jobs.job(archive, tmp_path / "sink", keras_files, engine="litert")
        del values["models"][1:]
        return values

    def joined(self, two_nodes, folder, values, **variables):
        path = jobs.write_job(folder / "job.yaml", values)
        env = {**two_nodes.env, "RAY_ADDRESS": two_nodes.address, **variables}
        status, _, told = jobs.cvbatch("predict", "--config", path, env=env)
        return status, told

    def test_gpus_that_no_node_has(self, two_nodes, values, tmp_path):
        values["run"]["gpus_per_actor"] = 2
        line = refused(*self.joined(two_nodes, tmp_path, values), tmp_path / "sink")
        assert "1 CPU and 2 GPU each (streaming) do not fit a cluster of 3 CPU and 1 GPU" in line

    def test_a_node_without_cvbatch(self, two_nodes, values, tmp_path):
        stub = tmp_path / "stub"
        stub.mkdir()
        (stub / "sitecustomize.py").write_text(LACKING)
        folder = working_folder(tmp_path, predict=values)
        ran = two_nodes.submit(folder, "predict", PYTHONPATH=str(stub))
        line = refused(ran.status, ran.told, tmp_path / "sink")
        assert "node 127.0.0.2 cannot import cvbatch" in line
        assert "No module named 'cvbatch'" in line

    @needs_mounts
    def test_a_sink_that_only_the_driver_has(self, two_nodes, values, tmp_path):
        sink = two_nodes.hidden / "sink"
        values["sink"]["uri"] = str(sink)
        line = refused(*self.joined(two_nodes, tmp_path, values), sink)
        assert line.startswith(f"cvbatch: node 127.0.0.2 cannot write the sink {sink}")
        assert list(two_nodes.hidden.iterdir()) == []

    def test_a_dashboard_in_place_of_a_cluster(self, two_nodes, values, tmp_path):
        said = self.joined(two_nodes, tmp_path, values, RAY_ADDRESS=two_nodes.dashboard)
        assert "is a dashboard, which takes jobs by ray job submit" in refused(
            *said, tmp_path / "sink"
        )

    def test_a_token_of_another_cluster(self, two_nodes, values, tmp_path):
        variables = {"RAY_AUTH_TOKEN": "f" * 32, "RAY_NUM_REDIS_GET_RETRIES": "2"}
        said = self.joined(two_nodes, tmp_path, values, **variables)
        line = refused(*said, tmp_path / "sink")
        assert "does not take this process's token" in line and "f" * 32 not in line
