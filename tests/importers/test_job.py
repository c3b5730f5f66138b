"""Import jobs: deterministic shards, refusals that write nothing, leases, interruption."""

import json
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cvbatch.core.errors import CvbatchError, SinkError, SourceError
from cvbatch.core.progress import Listener
from cvbatch.importers import job
from cvbatch.importers.import_report import NUM_EXAMPLES, ImportReport
from cvbatch.importers.rules import ISSUE_KINDS, RULES, actions_by_kind
from cvbatch.results import schema
from cvbatch.storage.lease import HEARTBEAT_S, LEASE_PATH
from cvbatch.storage.sink import Sink
from cvbatch.storage.store import Storage
from tests.support.datasets import files, imported, picture, put, rows, voc
from tests.support.lease_holder import FAR, lease_holder, tree
from tests.support.s3_server import S3Server
from tests.support.simulated_clock import SimulatedClock

STATE = "_cvbatch/import.json"


@pytest.fixture
def source(tmp_path):
    stems = [f"i{i:02d}" for i in range(7)]
    boxes = {stem: [("cat", 1, 1, 5 + i, 5)] for i, stem in enumerate(stems)}
    return voc(tmp_path / "in", boxes, train=stems[:4], val=stems[4:6], test=stems[6:])


def test_two_imports_give_the_same_files(source, tmp_path):
    for name in ("one", "two"):
        imported("voc", source, tmp_path / name, shard_images=3)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    summaries = [(tmp_path / name / STATE).read_bytes() for name in ("one", "two")]
    assert summaries[0] == summaries[1]
    names = list(files(tmp_path / "one"))
    assert [name.rsplit("-", 1)[0] for name in names] == [
        "part-test-00000", "part-train-00000", "part-train-00001", "part-validation-00000",
    ]  # fmt: skip


def test_a_moved_source_gives_the_same_files(source, tmp_path):
    imported("voc", source, tmp_path / "one")
    source.rename(tmp_path / "elsewhere")
    imported("voc", tmp_path / "elsewhere", tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_every_row_is_in_a_shard_of_its_split(source, tmp_path):
    _, by_id = imported("voc", source, tmp_path / "out", shard_images=2)
    image_ids = []
    for path in sorted((tmp_path / "out").glob("*.parquet")):
        table = pq.ParquetFile(path).read()
        assert set(table["split"].to_pylist()) == {path.name.split("-")[1]}
        assert 1 <= table.num_rows <= 2
        image_ids += table["image_id"].to_pylist()
    assert sorted(image_ids) == sorted(by_id)


def test_types_are_those_of_a_result_and_the_footer_has_the_classes(source, tmp_path):
    imported("voc", source, tmp_path / "out")
    file = pq.ParquetFile(next((tmp_path / "out").glob("*.parquet")))
    assert set(file.metadata.metadata) == {b"cvbatch"}
    metadata = json.loads(file.metadata.metadata[b"cvbatch"])
    assert metadata["kind"] == "labels"
    assert metadata["schema_version"] == 1
    assert metadata["columns"] == ["labels", "boxes", "box_is_crowd"]
    assert metadata["classes"] == {"labels": ["cat"], "boxes": ["cat"]}
    assert metadata["is_multi_label"] is True
    assert metadata["mask_void"] == 255
    types = {field.name: field.type for field in file.schema_arrow}
    by_task = schema.COLUMN_TYPES
    assert types["labels"].value_type == by_task["labels"].value_type
    assert types["boxes"].value_type == by_task["boxes"].value_type
    assert types["image"] == schema.IMAGE
    assert (types["width"], types["height"]) == (pa.int32(), pa.int32())
    assert list(types) == [
        "image_id", "image", "width", "height", "split", "labels", "boxes", "box_is_crowd",
    ]  # fmt: skip


def test_a_sink_with_data_is_refused_without_overwrite(source, tmp_path):
    out = tmp_path / "out"
    imported("voc", source, out, shard_images=2)
    before = files(out)
    with pytest.raises(SinkError, match="--overwrite"):
        imported("voc", source, out)
    assert files(out) == before
    imported("voc", source, out, overwrite=True)
    assert len(files(out)) == 3
    assert len(rows(out)) == 7
    foreign = put(tmp_path / "foreign", {"table.parquet": b"x"})
    with pytest.raises(SinkError, match=r"'table.parquet'"):
        imported("voc", source, foreign)
    with pytest.raises(SinkError, match="both"):
        imported("voc", source, source)
    result = put(tmp_path / "result", {"_cvbatch/job.json": "{}"})
    for overwrite in (False, True):
        with pytest.raises(SinkError, match="it belongs to `cvbatch predict`"):
            imported("voc", source, result, overwrite=overwrite)
    damaged = put(tmp_path / "damaged", {STATE: "["})
    with pytest.raises(SinkError, match="is damaged"):
        imported("voc", source, damaged)
    imported("voc", source, damaged, overwrite=True)


def test_a_refusal_keeps_the_existing_files(source, tmp_path):
    out = tmp_path / "out"
    imported("voc", source, out)
    before = files(out)
    put(source, {"Annotations/i03.xml": "<annotation>"})
    with pytest.raises(SourceError, match=r"i03\.xml"):
        imported("voc", source, out, overwrite=True)
    assert files(out) == before


def test_an_interrupted_import_restarts_and_gives_the_same_files(source, tmp_path):
    imported("voc", source, tmp_path / "whole", shard_images=2)
    remaining = [4]

    class InterruptedStorage(Storage):
        def put_bytes(self, uri, data):
            remaining[0] -= 1
            if not remaining[0]:
                raise KeyboardInterrupt
            super().put_bytes(uri, data)

    with pytest.raises(KeyboardInterrupt):
        imported("voc", source, tmp_path / "out", shard_images=2, storage=InterruptedStorage())
    assert 0 < len(files(tmp_path / "out")) < len(files(tmp_path / "whole"))
    summary = tmp_path / "out" / STATE
    assert json.loads(summary.read_text())["is_complete"] is False
    imported("voc", source, tmp_path / "out", shard_images=2)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert json.loads(summary.read_text())["is_complete"] is True


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_sink_is_refused_while_another_run_has_its_lease(source, tmp_path, overwrite):
    out = tmp_path / "out"
    if overwrite:
        imported("voc", source, out)
    with lease_holder(out) as process:
        before = tree(out)
        with pytest.raises(SinkError, match=rf"in use by .*process {process.pid}\)"):
            imported("voc", source, out, overwrite=overwrite)
        assert tree(out) == before
        process.kill()
        process.wait()
        report, _ = imported("voc", source, out, overwrite=overwrite)
    assert report.num_written == 7
    assert not (out / LEASE_PATH).exists()


class At(Listener):
    """Calls a function when a phase has come so far."""

    def __init__(self, phase, count, action):
        self.wanted, self.action, self.name = (phase, count), action, ""

    def phase(self, name, total=0, unit=""):
        assert (total, unit) in ((7, "images"), (0, ""))
        self.name = name

    def advanced(self, count, note=""):
        if (self.name, count) == self.wanted:
            self.action()


def test_only_one_of_two_concurrent_imports_writes(source, tmp_path):
    """The inner import takes the lease after the outer one has passed its checks."""
    out = tmp_path / "out"

    def start_another():
        imported("voc", source, out, shard_images=2)

    with pytest.raises(SinkError, match="another run wrote into the sink"):
        imported("voc", source, out, listener=At("checking", 7, start_another), shard_images=3)
    assert len(files(out)) == 4  # 4, 2 and 1 images, at most 2 a file
    assert not (out / LEASE_PATH).exists()


def test_an_import_stops_when_it_loses_its_lease(source, tmp_path, monkeypatch):
    clock = SimulatedClock()
    monkeypatch.setattr(job, "Sink", partial(Sink, clock=clock))
    out = tmp_path / "out"

    def lose():
        (out / LEASE_PATH).write_bytes(FAR.to_json())
        clock.sleep(HEARTBEAT_S)

    with pytest.raises(CvbatchError, match="taken over by a run on far"):
        imported("voc", source, out, listener=At("writing", 7, lose))
    assert json.loads((out / STATE).read_text())["is_complete"] is False
    assert (out / LEASE_PATH).read_bytes() == FAR.to_json()


def test_a_source_that_changes_during_the_import_is_reported(source, tmp_path):
    def change():
        (source / "JPEGImages/i02.png").write_bytes(b"")

    with pytest.raises(CvbatchError, match="changed while it was imported"):
        imported("voc", source, tmp_path / "out", listener=At("checking", 7, change))
    assert not json.loads((tmp_path / "out" / STATE).read_text())["is_complete"]


def test_a_shard_has_a_maximum_number_of_bytes(source, tmp_path, monkeypatch):
    from cvbatch.importers import shard_writer

    monkeypatch.setattr(shard_writer, "MAX_SHARD_BYTES", len(picture()))
    imported("voc", source, tmp_path / "out")
    assert [len(pq.ParquetFile(p).read()) for p in (tmp_path / "out").glob("*.parquet")] == [1] * 7


def test_source_and_sink_can_be_in_a_bucket(source, tmp_path, s3: S3Server):
    imported("voc", source, tmp_path / "out")
    (s3.bucket / "set").mkdir()
    for path in source.rglob("*.*"):
        put(s3.bucket / "set", {str(path.relative_to(source)): path.read_bytes()})
    report, _ = imported("voc", f"{s3.bucket_uri}/set", f"{s3.bucket_uri}/labels")
    assert report.num_written == 7
    assert files(s3.bucket / "labels") == files(tmp_path / "out")
    with pytest.raises(SinkError, match="contains labelled data"):
        imported("voc", f"{s3.bucket_uri}/set", f"{s3.bucket_uri}/labels")
    with pytest.raises(SourceError, match="cannot be read"):
        imported("voc", "s3://no-such-bucket/set", tmp_path / "x")
    with pytest.raises(SinkError, match="cannot be used"):
        imported("voc", source, "s3://no-such-bucket/labels")


def test_every_issue_kind_has_at_most_one_rule_and_its_default_is_first():
    ruled = [kind for rule in RULES for kind in rule.kinds]
    assert len(ruled) == len(set(ruled))
    assert set(actions_by_kind({})) == set(ISSUE_KINDS)
    assert actions_by_kind({"outside": "drop"})["box_partly_outside"] == "drop"


def test_a_report_has_the_first_examples_without_line_breaks():
    report = ImportReport({})
    assert report.as_json()["images"] == {"found": 0, "written": 0, "dropped": 0}
    for i in range(9):
        report.record("image_missing", f"a\n{i}")
    assert report.issues["image_missing"].examples == [f"a {i}" for i in range(NUM_EXAMPLES)]
    assert "annotations without an image: 9 dropped" in report.as_text()
