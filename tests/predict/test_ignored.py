"""What a source holds beside its images reaches the summary, its JSON and the last line."""

from __future__ import annotations

import json
from pathlib import Path

from cvbatch.config.loader import parse_job
from cvbatch.core.ignored import MAX_EXAMPLES, Ignored
from cvbatch.core.types import ChunkReport
from cvbatch.planning.plan import make_plan
from cvbatch.predict.stage_timer import StageTimer
from cvbatch.predict.steps import PredictSpec, read_and_decode
from cvbatch.predict.summary import Summary
from cvbatch.storage.store import Storage
from tests.support import jobs


def test_files_and_members_that_are_not_read_are_in_the_summary(tmp_path: Path) -> None:
    for name in "ab":
        members = {"1.jpg": jobs.encoded_image(1), "1.json": b"", "2.nef": b"", "._1.jpg": b""}
        jobs.write_tar(tmp_path / "in" / f"{name}.tar", members)
    jobs.write_files(tmp_path / "in", {"index.json": b"", "Thumbs.db": b""})
    job = parse_job(
        {
            "source": {"uri": str(tmp_path / "in")},
            "sink": {"uri": str(tmp_path / "out")},
            "models": [{"task": "classification", "model": "a.keras"}],
        }
    )
    plan = make_plan(Storage(), job.source, job.sink.uri, 8, 1 << 20)
    plan.commit()
    summary = Summary.of(plan, job.sink.uri, "abc", "run")
    assert summary.ignored.counts == {"text": 1, "junk": 1}
    spec = PredictSpec(job, plan.format, (), (), b"", 1)
    for ref in plan.chunks:
        timer = StageTimer()
        images = sum(map(len, read_and_decode(spec, spec.new_reader(), ref, timer)))
        total = StageTimer.from_json([timer.as_json(), StageTimer().as_json()])
        ignored = total.ignored
        report = ChunkReport(
            ref.chunk_id, images, {}, 0, {}, 0, {}, ignored.counts, ignored.examples
        )
        summary.add(report)
    expected = {"junk": 3, "raw_photograph": 2, "text": 3}
    values = json.loads(json.dumps(summary.as_json()))
    assert (values["num_images"], values["ignored"]) == (2, expected)
    assert values["ignored_examples"]["raw_photograph"] == ["2.nef", "2.nef"]
    assert summary.changes == "; not read: junk 3, text 3, raw photograph 2"
    assert plan.ignored.counts == {"text": 1, "junk": 1}  # the plan is not changed


def test_counts_do_not_depend_on_the_order_of_merges() -> None:
    parts = [({"a": n + 1, "b": 1}, {"a": [f"{n}{k}" for k in range(n + 1)]}) for n in range(5)]
    merged = []
    for order in (parts, parts[::-1]):
        total = Ignored()
        for counts, examples in order:
            total.merge(counts, examples)
        merged.append(total)
    assert merged[0] == merged[1]
    assert merged[0].counts == {"a": 15, "b": 5}
    assert merged[0].examples["a"] == ["00", "10", "11"][:MAX_EXAMPLES]
    assert not Ignored()
