"""Plans: chunks of a source, their revisions, and what is pending."""

from __future__ import annotations

import csv
import dataclasses
import os
import random
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvbatch.core.errors import CvbatchError, SinkError, SourceError
from cvbatch.core.types import Item
from cvbatch.planning import manifest, part_files, plan
from cvbatch.planning.plan import Plan, cut, make_plan, plan_files, read_chunk, short_chunk
from cvbatch.results import writer
from cvbatch.sources import discovery
from cvbatch.storage import store
from cvbatch.storage.listing import Listing
from cvbatch.storage.store import Storage
from tests.support.s3_server import S3Server

NO_COLUMNS = pa.schema([("status", pa.string())])


@dataclass
class Source:
    uri: Sequence[str]
    format: str = "auto"
    image_column: str = "image"


@dataclass
class Archive:
    """A source folder and a sink next to it."""

    root: Path
    chunk_images: int = 4
    chunk_bytes: int = 1 << 20
    uri: list[str] = field(default_factory=list)

    @property
    def sink(self) -> str:
        return str(self.root / "out")

    def add(self, *names: str, size: int = 10) -> Archive:
        for name in names:
            path = self.root / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * size)
        return self

    def plan(self, **source: str) -> Plan:
        uri = self.uri or [str(self.root / "in")]
        return make_plan(
            Storage(), Source(uri, **source), self.sink, self.chunk_images, self.chunk_bytes
        )

    def short_plan(self, min_images: int = 1) -> Plan:
        """Return a plan whose chunks are short if there are few images."""
        folder = [str(self.root / "in")]
        files = discovery.find_files(Storage(), folder, "auto", self.sink)
        return plan_files(Storage(), files, "image", self.sink, 64, 1 << 20, min_images)

    def finish(self, plan: Plan, num_chunks: int | None = None) -> None:
        for ref in plan.pending[:num_chunks]:
            rows = writer.encode_part(
                [], NO_COLUMNS, part_files.with_revision(b"{}", plan.revisions.get(ref.chunk_id, 0))
            )
            Storage().put_bytes(store.join(self.sink, part_files.part_name(ref.chunk_id)), rows)
        for chunk_id in plan.stale:
            Storage().delete(store.join(self.sink, part_files.part_name(chunk_id)))


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    (tmp_path / "in").mkdir()
    return Archive(tmp_path)


def items(plan: Plan) -> list[Item]:
    return [item for ref in plan.chunks for item in read_chunk(Storage(), ref).items]


def ids(plan: Plan) -> list[str]:
    return [item.image_id for item in items(plan)]


def chunk_ids(plan: Plan) -> list[str]:
    return [ref.chunk_id for ref in plan.chunks]


# --- planned images ------------------------------------------------------------------------------


def test_a_source_without_images_is_refused_in_one_sentence(archive: Archive) -> None:
    with pytest.raises(SourceError, match="holds no image") as refusal:
        archive.plan()
    assert "\n" not in str(refusal.value)
    archive.add("notes.txt")
    with pytest.raises(SourceError, match="files of other kinds there"):
        archive.plan()
    with pytest.raises(SourceError, match="nowhere does not exist"):
        make_plan(Storage(), Source([str(archive.root / "nowhere")]), archive.sink, 4, 100)


def test_every_image_is_planned_once_in_order_of_ids(archive: Archive) -> None:
    names = ["b.JPG", "a/é.png", "a/z.jpeg", "Z.gif", "a b.webp", "c#.tiff", "d%20.bmp"]
    plan = archive.add(*names, "notes.txt", "x.json", "._skip.jpg").plan()
    assert (plan.format, plan.num_images, plan.num_bytes) == ("images", 7, 70)
    assert (plan.num_new, plan.num_ignored_files, plan.num_changed) == (7, 2, 0)
    plan.commit()
    assert ids(plan) == sorted(names, key=str.encode)
    for item in items(plan):
        assert item.uri == str(archive.root / "in" / item.image_id)
        assert item == Item(item.uri, item.image_id, 10)
    assert [ref.num_items for ref in plan.chunks] == [4, 3]
    assert plan.pending == plan.chunks


def test_planning_writes_nothing(archive: Archive) -> None:
    plan = archive.add("a.jpg").plan()
    assert not Path(archive.sink).exists()
    plan.commit()
    assert [p.name for p in Path(archive.sink).iterdir()] == ["_cvbatch"]


def test_an_explicit_format_accepts_every_file(archive: Archive) -> None:
    plan = archive.add("a.jpg", "b", "c.txt").plan(format="images")
    assert plan.num_images == 3


def test_mixed_formats_are_refused_with_counts(archive: Archive) -> None:
    archive.add("a.jpg", "b.jpg", "c.tar", "d.parquet")
    with pytest.raises(SourceError, match=r"2 of format images.*1 of .*\*\*/\*\.jpg"):
        archive.plan()


def test_the_sink_is_not_read(archive: Archive) -> None:
    sink = str(archive.root / "in" / "results")
    source = Source([str(archive.root / "in")])
    archive.add("a.jpg", "results/part-0123456789abcdef.parquet", "results/sheet.jpg")
    assert make_plan(Storage(), source, sink, 4, 100).num_images == 1
    with pytest.raises(SourceError, match="own folder"):
        make_plan(Storage(), source, source.uri[0], 4, 100)


# --- ids -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bases", "shared"),
    [
        (["s3://b/2026/"], "s3://b/2026/"),
        (["s3://b/2026/01/", "s3://b/2026/02/"], "s3://b/2026/"),
        (["s3://b/2026/", "s3://b/2026/01/"], "s3://b/2026/"),
        (["s3://b/20/", "s3://b/2026/"], "s3://b/"),
        (["s3://b/x/", "s3://c/x/"], ""),
        (["s3://b/", "gs://b/"], ""),
        (["/a/b/", "/a/c/"], "/a/"),
        (["/a/", "s3://b/"], ""),
    ],
)
def test_the_shared_folder_does_not_depend_on_order(bases: list[str], shared: str) -> None:
    for ordered in (bases, bases[::-1]):
        assert discovery.shared_folder(ordered) == shared


def test_sources_with_equal_names_keep_their_folders(archive: Archive) -> None:
    archive.add("x/1.jpg", "y/1.jpg", "y/2.jpg")
    folder = str(archive.root / "in")
    archive.uri = [f"{folder}/x", f"{folder}/y/*.jpg", f"{folder}/y/2.jpg", f"{folder}/x/"]
    plan = archive.plan()
    plan.commit()
    assert ids(plan) == ["x/1.jpg", "y/1.jpg", "y/2.jpg"]


def test_a_manifest_is_not_listed(archive: Archive) -> None:
    folder = archive.root / "in"
    lines = ["# mine", "", "b.jpg", "  ", "sub/a b.jpg", "b.jpg", "s3://k/c%20#.jpg", "/else/d.jpg"]
    (folder / "list.txt").write_text("\r\n".join(lines) + "\n")
    uris = ["b.jpg", "s3://k/c%20#.jpg", "sub/a b.jpg", "/else/d.jpg"]
    pq.write_table(pa.table({"n": [1, 2, 3, 4], "uri": uris}), folder / "list.parquet")
    pq.write_table(pa.table({"n": [1, 2, 3, 4], "path": uris}), folder / "one.parquet")
    for number, name in enumerate(["list.txt", "list.parquet", "one.parquet"]):
        archive.uri = [str(folder / name)]
        plan = make_plan(
            Storage(), Source(archive.uri, "manifest"), f"{archive.sink}{number}", 4, 100
        )
        plan.commit()
        assert plan.format == "images"
        assert ids(plan) == ["/else/d.jpg", "b.jpg", "s3://k/c%20#.jpg", "sub/a b.jpg"]
        assert items(plan)[1].uri == str(folder / "b.jpg")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "holds no file"),
        (b"\xff\xfe", "not text"),
        (b"http://host/x.jpg", "http://host/x.jpg"),
        (b"s3://key:secret@bucket/x.jpg", "credentials; put them into the environment"),
        (b"file://host/x.jpg", "on another host"),
        (b"gs://bucket", "no name below its bucket"),
        (b"uri,size\nx.jpg,large\n", "size an integer"),
        (b"uri,size\nx.jpg\n", "not readable as CSV"),
    ],
)
def test_an_invalid_manifest_is_refused(archive: Archive, text: bytes, message: str) -> None:
    (archive.root / "list.txt").write_bytes(text)
    archive.uri = [str(archive.root / "list.txt")]
    with pytest.raises(SourceError, match=message):
        archive.plan(format="manifest")
    pq.write_table(pa.table({"a": ["x"], "b": ["y"]}), archive.root / "two.parquet")
    archive.uri = [str(archive.root / "two.parquet")]
    with pytest.raises(SourceError, match="needs a string column `uri`"):
        archive.plan(format="manifest")


# --- planning again ------------------------------------------------------------------------------


def test_the_order_of_the_listing_does_not_matter(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = archive.add(*(f"{i % 7}/{i}.jpg" for i in range(50))).plan()
    plan.commit()
    uri, expected = plan.chunks[0].manifest_uri, chunk_ids(plan)
    data = Path(uri).read_bytes()
    list_files = discovery.list_files

    def shuffled(storage: Storage, uri: str, on_progress: Callable[[int], None] | None) -> Listing:
        listing = list_files(storage, uri, on_progress)
        files = listing.files
        order = random.Random(5).sample(range(files.num_rows), files.num_rows)
        return Listing(listing.base, files.take(order))

    monkeypatch.setattr(discovery, "list_files", shuffled)
    Path(uri).unlink()
    again = archive.plan()
    again.commit()
    assert chunk_ids(again) == expected
    assert again.chunks == plan.chunks
    assert Path(uri).read_bytes() == data


def test_chunk_ids_depend_on_the_units_only(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(10)]
    one, other, larger = (Archive(tmp_path / name) for name in ("one", "other", "larger"))
    expected = chunk_ids(one.add(*names).plan())
    assert chunk_ids(other.add(*reversed(names)).plan()) == expected
    assert set(chunk_ids(larger.add(*names, size=11).plan())).isdisjoint(expected)
    assert chunk_ids(other.add("z.jpg").plan())[:2] == expected[:2]


def test_only_new_images_of_a_finished_job_are_pending(archive: Archive) -> None:
    first = archive.add("b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg").plan()
    first.commit()
    archive.finish(first, 1)
    second = archive.plan()
    assert second.chunks == first.chunks
    assert second.done == {first.chunks[0].chunk_id}
    assert second.pending == first.chunks[1:]
    archive.finish(second)
    archive.add("a.jpg", "bb.jpg")
    third = archive.plan()
    assert third.num_new == 2
    assert third.chunks[:2] == first.chunks
    assert len(third.pending) == 1
    third.commit()
    third.commit()  # nothing is left to write
    assert ids(third) == ["b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg", "a.jpg", "bb.jpg"]
    archive.finish(third)
    fourth = archive.plan()
    assert (fourth.pending, fourth.num_new) == ((), 0)
    assert fourth.chunks == third.chunks
    assert len(manifest.generation_uris(Storage(), archive.sink)) == 2


# --- changed and removed files -------------------------------------------------------------------


def versions(plan: Plan, chunk: int = 0) -> list[str]:
    """Return the versions of the files of a chunk when it was planned last."""
    values: list[str] = manifest.units_of(Storage(), [plan.chunks[chunk]])["version"].to_pylist()
    return values


def test_an_unchanged_source_has_nothing_pending(archive: Archive) -> None:
    plan = archive.add("a.jpg", "b.jpg").plan()
    plan.commit()
    archive.finish(plan)
    again = archive.plan()
    assert (again.num_new, again.num_changed, again.num_removed) == (0, 0, 0)
    assert again.is_finished
    assert again.revisions == {}


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_file_revises_its_chunk_only(archive: Archive, change: str) -> None:
    plan = archive.add(*"abcdefghi", size=10).plan(format="images")
    plan.commit()
    archive.finish(plan)
    path, stat = archive.root / "in" / "f", (archive.root / "in" / "f").stat()
    if change == "size":
        path.write_bytes(b"x" * 20)
        os.utime(path, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    else:
        os.utime(path, ns=(stat.st_mtime_ns, stat.st_mtime_ns + 1))
    again = archive.plan(format="images")
    assert (again.num_changed, again.num_new, again.num_removed) == (1, 0, 0)
    assert chunk_ids(again) == chunk_ids(plan)
    assert again.pending == (again.chunks[1],)
    assert (again.chunks[0], again.chunks[2]) == (plan.chunks[0], plan.chunks[2])
    again.commit()
    assert ids(again) == ids(plan) == list("abcdefghi")
    assert again.revisions == {plan.chunks[1].chunk_id: 1}
    assert again.chunks[1].size_bytes == (50 if change == "size" else 40)


def test_a_run_killed_between_manifest_and_part_is_resumed(archive: Archive) -> None:
    plan = archive.add("a.jpg", "b.jpg").plan()
    plan.commit()
    archive.finish(plan)
    archive.add("a.jpg", size=20).plan().commit()  # killed before the part is written
    resumed = archive.plan()
    assert (resumed.num_changed, resumed.pending) == (0, resumed.chunks)
    archive.finish(resumed)
    assert archive.plan().is_finished
    assert len(manifest.generation_uris(Storage(), archive.sink)) == 2


def test_a_chunk_is_revised_whenever_its_files_change(archive: Archive) -> None:
    """Also if a file changes back: the part has the version in between."""
    first = archive.add("a.jpg", "b.jpg").plan()
    first.commit()
    archive.finish(first)
    path = archive.root / "in" / "a.jpg"
    mtime_ns = path.stat().st_mtime_ns
    for number, size in enumerate([20, 30, 10], start=1):
        path.write_bytes(b"x" * size)
        if size == 10:
            os.utime(path, ns=(mtime_ns, mtime_ns))
        plan = archive.plan()
        plan.commit()
        assert plan.revisions == {first.chunks[0].chunk_id: number}
        assert plan.pending == plan.chunks
        if size != 20:  # the first revision is never written
            archive.finish(plan)
            assert archive.plan().is_finished
    assert versions(plan) == versions(first)
    assert len(manifest.generation_uris(Storage(), archive.sink)) == 4


def test_one_of_two_concurrent_revisions_is_refused(archive: Archive) -> None:
    archive.add("a.jpg").plan().commit()
    one = archive.add("a.jpg", size=20).plan()
    two = archive.add("a.jpg", size=30).plan()
    two.commit()
    with pytest.raises(CvbatchError, match="run the same command again"):
        one.commit()
    assert [item.size_bytes for item in items(archive.plan())] == [30]


def test_a_removed_file_keeps_its_row_and_nothing_is_pending(archive: Archive) -> None:
    plan = archive.add("a.jpg", "b.jpg", "c.jpg").plan()
    plan.commit()
    archive.finish(plan)
    (archive.root / "in" / "b.jpg").unlink()
    again = archive.plan()
    assert (again.num_removed, again.num_changed) == (1, 0)
    assert again.is_finished
    assert ids(again) == ["a.jpg", "b.jpg", "c.jpg"]


def test_a_removed_file_that_returns_after_a_revision_is_processed_again(
    archive: Archive,
) -> None:
    plan = archive.add("a.jpg", "b.jpg").plan()
    plan.commit()
    kept = archive.root / "kept.jpg"
    (archive.root / "in" / "b.jpg").rename(kept)
    plan = archive.add("a.jpg", size=20).plan()
    plan.commit()
    archive.finish(plan)
    assert (plan.num_removed, archive.plan().is_finished) == (1, True)
    kept.rename(archive.root / "in" / "b.jpg")  # with the same size and time
    back = archive.plan()
    assert (back.num_removed, back.num_changed, len(back.pending)) == (0, 1, 1)
    back.commit()
    archive.finish(back)
    assert archive.plan().is_finished


def test_changed_new_and_removed_files_give_one_generation(archive: Archive) -> None:
    plan = archive.add(*(f"{name}.jpg" for name in "abcdef")).plan()
    plan.commit()
    archive.finish(plan)
    (archive.root / "in" / "b.jpg").unlink()
    again = archive.add("e.jpg", size=99).add("g.jpg").plan()
    assert (again.num_new, again.num_changed, again.num_removed) == (1, 1, 1)
    again.commit()
    assert ids(again) == [f"{name}.jpg" for name in "abcdefg"]
    assert [ref.chunk_id for ref in again.pending] == chunk_ids(again)[1:]
    assert len(manifest.generation_uris(Storage(), archive.sink)) == 2
    archive.finish(again)
    assert archive.plan().is_finished


def test_the_images_of_a_manifest_never_change(archive: Archive) -> None:
    archive.add("a.jpg", "b.jpg")
    (archive.root / "list.txt").write_text("in/a.jpg\nin/b.jpg\n")
    archive.uri = [str(archive.root / "list.txt")]
    plan = archive.plan(format="manifest")
    plan.commit()
    archive.finish(plan)
    archive.add("a.jpg", size=20)
    (archive.root / "list.txt").write_text("in/a.jpg\n")
    again = archive.plan(format="manifest")
    assert (again.num_changed, again.num_removed, again.is_finished) == (0, 1, True)
    archive.uri = [str(archive.root / "in")]  # a listing gives their versions
    assert archive.plan(format="images").is_finished


@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt", "parquet"])
@pytest.mark.parametrize("column", ["size", "etag", "last_modified"])
def test_a_list_with_versions_notices_a_changed_file(
    archive: Archive, suffix: str, column: str
) -> None:
    path = archive.root / f"list.{suffix}"

    def write_list(values: list[object]) -> None:
        columns = {"customer": [1, 2, 3], "uri": ["a,1.jpg", "b.jpg", "c.jpg"], column: values}
        if suffix == "parquet":
            pq.write_table(pa.table(columns), path)
            return
        rows = [columns.keys(), *zip(*columns.values(), strict=True)]
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t" if suffix == "tsv" else ",").writerows(rows)

    old, new = (10, 20) if column == "size" else ("2026-11-28 10:00:00", "2026-11-28 10:00:01")
    write_list([old, old, None])
    archive.uri = [str(path)]
    plan = archive.plan(format="manifest")
    plan.commit()
    archive.finish(plan)
    assert ids(plan) == ["a,1.jpg", "b.jpg", "c.jpg"]
    assert archive.plan(format="manifest").is_finished
    write_list([old, new, None])
    again = archive.plan(format="manifest")
    assert (again.num_changed, again.num_new, again.pending) == (1, 0, again.chunks)


def test_a_list_may_have_local_file_uris(archive: Archive) -> None:
    archive.add("a b%.jpg", "b.jpg")
    folder = archive.root / "in"
    uris = [(folder / name).as_uri() for name in ("a b%.jpg", "b.jpg")]
    (archive.root / "list.txt").write_text("\n".join(uris))
    archive.uri = [str(archive.root / "list.txt")]
    plan = archive.plan(format="manifest")
    plan.commit()
    assert [item.uri for item in items(plan)] == [str(folder / n) for n in ("a b%.jpg", "b.jpg")]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_after_any_changes_every_file_is_planned_once_with_its_last_state(
    data: st.DataObject,
) -> None:
    """The chunks have every file that ever existed, with its last size."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive(Path(folder), chunk_images=3)
        (archive.root / "in").mkdir()
        now: dict[str, int] = {}
        ever: dict[str, int] = {}
        for day in range(1, 5):
            for name in data.draw(st.lists(st.sampled_from("abcdefgh"), max_size=4)):
                if name in now and data.draw(st.booleans()):
                    (archive.root / "in" / name).unlink()
                    del now[name]
                else:
                    archive.add(name, size=10 * day)
                    now[name] = 10 * day
            ever |= now
            if not now:
                continue
            plan = archive.plan(format="images")
            plan.commit()
            assert sorted(ids(plan)) == sorted(ever)
            assert {item.image_id: item.size_bytes for item in items(plan)} == ever
            assert plan.num_removed == len(ever) - len(now)
            archive.finish(plan, data.draw(st.sampled_from([None, 0, 1])))
        if now:
            archive.finish(archive.plan(format="images"))
            assert archive.plan(format="images").is_finished


def test_ids_of_another_source_are_refused(archive: Archive) -> None:
    archive.add("x/1.jpg", "y/1.jpg")
    archive.uri = [str(archive.root / "in" / "x")]
    archive.plan().commit()
    archive.uri = [str(archive.root / "in" / "y")]
    with pytest.raises(SinkError, match=r"'1\.jpg'.*another sink"):
        archive.plan()


def test_another_format_in_the_same_sink_is_refused(archive: Archive) -> None:
    archive.add("x/1.jpg", "y/1.tar")
    archive.uri = [str(archive.root / "in" / "x")]
    archive.plan().commit()
    archive.uri = [str(archive.root / "in" / "y")]
    with pytest.raises(SinkError, match="another sink"):
        archive.plan()


def test_one_of_two_concurrent_plannings_is_refused(archive: Archive) -> None:
    one = archive.add("a.jpg").plan()
    two = archive.add("b.jpg").plan()
    same = archive.plan()
    two.commit()
    same.commit()  # the same images: the same file
    with pytest.raises(CvbatchError, match="run the same command again"):
        one.commit()
    assert ids(archive.plan()) == ["a.jpg", "b.jpg"]
    rival = manifest.generation_uri(archive.sink, 0, ["0"])
    Storage().put_bytes(rival, b"")  # withdrawn
    assert archive.plan().chunks == two.chunks
    Storage().put_bytes(rival, b"x")
    with pytest.raises(SinkError, match="two jobs planned at once"):
        archive.plan()


# --- chunk sizes ---------------------------------------------------------------------------------


UNITS_ST = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 1000)), max_size=60)


@settings(max_examples=200, deadline=None)
@given(UNITS_ST, st.integers(1, 50), st.integers(1, 2000))
def test_chunks_are_within_limits_and_as_long_as_possible(
    rows_and_sizes: list[tuple[int, int]], chunk_images: int, chunk_bytes: int
) -> None:
    rows, sizes = np.array(rows_and_sizes, np.int64).reshape(-1, 2).T
    offsets = cut(pa.table({"num_rows": rows, "size_bytes": sizes}), chunk_images, chunk_bytes)
    assert offsets[0] == 0
    assert offsets[-1] == len(rows)
    weights = np.where(rows == 0, chunk_images, rows)

    def fits(start: int, end: int) -> bool:
        return bool(
            weights[start:end].sum() <= chunk_images and sizes[start:end].sum() <= chunk_bytes
        )

    for start, end in pairwise(offsets):
        assert end > start
        assert end == start + 1 or fits(start, end)
        assert end == len(rows) or not fits(start, end + 1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=40))
def test_row_groups_begin_on_chunk_borders(counts: list[int]) -> None:
    limit = 10
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "ROW_GROUP_ROWS", limit)
        groups = manifest.group_offsets(offsets)
    assert set(groups) <= set(offsets)
    assert groups[0] == 0
    assert groups[-1] == offsets[-1]
    assert all(0 < size <= limit for size in np.diff(groups))


def test_many_row_groups_and_generations_are_read_back(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "ROW_GROUP_ROWS", 8)
    archive.chunk_images = 3
    first = archive.add(*(f"{i:03d}.jpg" for i in range(50))).plan()
    first.commit()
    second = archive.add(*(f"x{i:03d}.jpg" for i in range(20))).plan()
    second.commit()
    assert second.chunks[: len(first.chunks)] == first.chunks
    assert archive.plan().chunks == second.chunks
    assert max(ref.row_group for ref in second.chunks) > 1
    expected = [f"{i:03d}.jpg" for i in range(50)] + [f"x{i:03d}.jpg" for i in range(20)]
    assert ids(second) == expected
    for ref in random.Random(3).sample(second.chunks, len(second.chunks)):
        chunk = read_chunk(Storage(), ref)
        assert (chunk.chunk_id, len(chunk.items)) == (ref.chunk_id, ref.num_items)
        assert sum(item.num_rows for item in chunk.items) == ref.num_images
        assert sum(item.size_bytes for item in chunk.items) == ref.size_bytes


# --- containers ----------------------------------------------------------------------------------


def write_parquet(path: Path, num_rows: int, row_group_size: int, *, as_struct: bool) -> None:
    data = pa.array([b"x" * 100] * num_rows, pa.binary())
    paths = pa.array(["p"] * num_rows, pa.string())
    column = pa.StructArray.from_arrays([data, paths], ["bytes", "path"]) if as_struct else data
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": column, "n": range(num_rows)}), path, row_group_size)


@pytest.mark.parametrize("as_struct", [False, True])
def test_row_groups_are_divided_into_slices_that_cover_every_row(
    archive: Archive, as_struct: bool
) -> None:
    write_parquet(archive.root / "in" / "b.parquet", 11, 6, as_struct=as_struct)
    write_parquet(archive.root / "in" / "a.parquet", 3, 6, as_struct=as_struct)
    write_parquet(archive.root / "in" / "empty.parquet", 0, 6, as_struct=as_struct)
    plan = archive.add("_SUCCESS", "readme.md").plan()
    plan.commit()
    assert (plan.format, plan.num_images, plan.num_ignored_files) == ("parquet", 14, 1)
    assert positions(plan) == [
        ("a.parquet", 0, 0, 3, 0),
        ("b.parquet", 0, 0, 4, 0),
        ("b.parquet", 0, 4, 2, 4),
        ("b.parquet", 1, 0, 4, 6),
        ("b.parquet", 1, 4, 1, 10),
    ]
    assert all(ref.num_images <= 4 for ref in plan.chunks)
    write_parquet(archive.root / "in" / "c.parquet", 2, 6, as_struct=as_struct)
    grown = archive.plan()
    assert grown.num_new == 1
    assert grown.chunks[:-1] == plan.chunks


def positions(plan: Plan) -> list[tuple[str, int, int, int, int]]:
    return [(i.image_id, i.row_group, i.row_start, i.num_rows, i.first_row) for i in items(plan)]


def test_a_changed_parquet_file_keeps_its_remaining_slices(archive: Archive) -> None:
    """Removed slices leave their chunk, added slices are new, an empty chunk is stale."""
    path = archive.root / "in" / "a.parquet"
    write_parquet(path, 11, 6, as_struct=False)
    write_parquet(archive.root / "in" / "b.parquet", 3, 6, as_struct=False)
    plan = archive.plan()
    plan.commit()
    archive.finish(plan)
    written = chunk_ids(plan)
    assert [ref.num_images for ref in plan.chunks] == [4, 2, 4, 4]

    write_parquet(path, 3, 6, as_struct=False)  # shorter
    short = archive.plan()
    assert (short.num_new, short.num_changed, short.num_removed) == (0, 1, 0)
    short.commit()
    assert positions(short) == [("a.parquet", 0, 0, 3, 0), ("b.parquet", 0, 0, 3, 0)]
    assert chunk_ids(short) == [written[0], written[3]]  # the last one had the end of a
    assert short.stale == (written[1], written[2])
    assert short.pending == short.chunks
    archive.finish(short)
    assert archive.plan().is_finished

    write_parquet(path, 11, 6, as_struct=False)  # as before: the same slices have the same ids
    long = archive.plan()
    long.commit()
    assert sorted(positions(long)) == sorted(positions(plan))
    assert {ref.chunk_id for ref in long.pending}.isdisjoint({written[3]})
    archive.finish(long)
    assert archive.plan().is_finished


def test_a_parquet_file_without_rows_makes_its_chunk_stale(archive: Archive) -> None:
    path = archive.root / "in" / "a.parquet"
    write_parquet(path, 3, 6, as_struct=False)
    plan = archive.plan()
    plan.commit()
    archive.finish(plan)
    write_parquet(path, 0, 6, as_struct=False)
    empty = archive.plan()
    assert (empty.chunks, empty.pending, empty.is_finished) == ((), (), False)
    empty.commit()
    assert empty.stale == (plan.chunks[0].chunk_id,)
    assert archive.plan().stale == empty.stale  # killed before the part was deleted
    archive.finish(empty)
    assert archive.plan().is_finished


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            {"jpeg": [b"x"], "n": [1]},
            r"no column 'image'; set source.image_column to one of \['jpeg', 'n'\]",
        ),
        ({"image": ["x"]}, "is string; it must be binary"),
        ({"image": [{"data": b"x"}]}, "must be binary"),
        ({"image": [{"bytes": "x"}]}, "must be binary"),
    ],
)
def test_a_column_without_images_is_refused(
    archive: Archive, column: dict[str, list[object]], message: str
) -> None:
    pq.write_table(pa.table(column), archive.root / "in" / "a.parquet")
    with pytest.raises(SourceError, match=message):
        archive.plan()


def test_a_file_that_is_not_parquet_is_refused(archive: Archive) -> None:
    with pytest.raises(SourceError, match="not readable as Parquet"):
        archive.add("a.parquet").plan()


def test_a_tar_is_a_chunk(archive: Archive) -> None:
    plan = archive.add("a.tar", "b.TAR", "c.tar.gz", "index.json").plan()
    plan.commit()
    assert plan.format == "webdataset"
    assert [(i.image_id, i.num_rows) for i in items(plan)] == [
        ("a.tar", 0),
        ("b.TAR", 0),
        ("c.tar.gz", 0),
    ]
    assert len(plan.chunks) == 3
    assert plan.num_images == 0


# --- object store --------------------------------------------------------------------------------


def test_source_and_sink_on_s3(s3: S3Server, tmp_path: Path) -> None:
    root = f"s3://bucket/{tmp_path.name}"
    for name in ["b.jpg", "a b.jpg", "x/é#.png"]:
        Storage().put_bytes(f"{root}/in/{name}", b"x")
    source, sink = Source([f"{root}/in/"]), f"{root}/out"
    plan = make_plan(Storage(), source, sink, 2, 100)
    plan.commit()
    assert ids(plan) == ["a b.jpg", "b.jpg", "x/é#.png"]
    again = make_plan(Storage(), source, f"{sink}/", 2, 100)
    assert again.chunks == plan.chunks
    local = Archive(tmp_path, 2).add("b.jpg", "a b.jpg", "x/é#.png", size=1).plan()
    assert chunk_ids(local) == chunk_ids(plan)


def test_a_changed_object_is_planned_again(s3: S3Server, tmp_path: Path) -> None:
    """The size is the same; S3 reports another time."""
    root = f"s3://bucket/{tmp_path.name}"
    for name in "ab":
        Storage().put_bytes(f"{root}/in/{name}.jpg", b"old")
    source, sink_uri = Source([f"{root}/in/"]), f"{root}/out"
    make_plan(Storage(), source, sink_uri, 2, 100).commit()
    assert make_plan(Storage(), source, sink_uri, 2, 100).num_changed == 0
    deadline = time.monotonic() + 10
    plan = make_plan(Storage(), source, sink_uri, 2, 100)
    while not plan.num_changed and time.monotonic() < deadline:  # S3 times are in seconds
        Storage().put_bytes(f"{root}/in/a.jpg", b"new")
        plan = make_plan(Storage(), source, sink_uri, 2, 100)
    assert (plan.num_changed, plan.num_removed) == (1, 0)
    assert plan.revisions == {plan.chunks[0].chunk_id: 1}


def test_unusable_stores_are_refused_in_one_sentence(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, sink = Archive(tmp_path).add("a.jpg"), "s3://bucket/out"
    local = Source([str(good.root / "in")])
    cases = [
        (Source(["s3://nobucket/x"]), sink, SourceError, "the bucket of s3://nobucket/x"),
        (Source(["s3://bucket/nothing/"]), sink, SourceError, "does not exist"),
        (local, "s3://nobucket/x", SinkError, "the bucket of s3://nobucket/x"),
    ]
    wrong_keys = [
        (Source(["s3://bucket/x"]), str(tmp_path / "out"), SourceError, "refused the credentials"),
        (local, sink, SinkError, "refused the credentials"),
    ]
    for source, sink_uri, kind, message in cases:
        with pytest.raises(kind, match=message):
            make_plan(Storage(), source, sink_uri, 2, 100)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for source, sink_uri, kind, message in wrong_keys:
        with pytest.raises(kind, match=message) as refusal:
            make_plan(Storage(), source, sink_uri, 2, 100)
        assert "\n" not in str(refusal.value)


def test_a_chunk_reference_does_not_contain_images() -> None:
    assert {f.name for f in dataclasses.fields(plan.ChunkRef)}.isdisjoint({"items", "uris"})


# --- few images ----------------------------------------------------------------------------------


@given(st.integers(1, 100_000), st.integers(1, 64), st.integers(1, 600))
def test_few_images_are_cut_into_enough_chunks_and_many_into_full_ones(
    num_images: int, min_images: int, chunk_images: int
) -> None:
    size = short_chunk(num_images, min_images, chunk_images)
    assert 1 <= size <= chunk_images
    num_chunks = -(-num_images // size)
    if min_images == 1 and size < chunk_images:
        assert min(num_images, 5) <= num_chunks <= 64
        assert num_chunks >= 32 or size <= 4
    if num_images >= 64 * chunk_images:
        assert size == chunk_images
    if size < min(min_images, chunk_images):
        raise AssertionError("shorter than the programs of the sink")


@pytest.mark.parametrize("num_images", [4, 7, 10, 40, 100, 300])
@pytest.mark.parametrize("format_", ["images", "parquet", "zip"])
def test_four_workers_have_work_from_a_folder_with_few_images(
    archive: Archive, num_images: int, format_: str
) -> None:
    names = [f"{i:03d}.jpg" for i in range(num_images)]
    if format_ == "images":
        archive.add(*names)
    elif format_ == "parquet":
        rows = [{"image": b"x"} for _ in names]
        pq.write_table(pa.Table.from_pylist(rows), archive.root / "in" / "a.parquet")
    else:
        with zipfile.ZipFile(archive.root / "in" / "a.zip", "w") as file:
            for name in names:
                file.writestr(name, b"x")
    plan = archive.short_plan()
    assert plan.num_images == num_images
    shares = np.zeros(4, int)  # a worker that is free takes the next chunk
    for ref in plan.chunks:
        shares[shares.argmin()] += ref.num_images
    assert shares.min() > 0
    assert shares.max() <= 1.25 * num_images / 4 + 1
    assert chunk_ids(archive.short_plan()) == chunk_ids(plan)
    first = plan.first_items(plan.chunks, 4).items
    plan.commit()
    assert list(first) == items(plan)[:4]
    read = {(i.image_id, i.first_row + k) for i in items(plan) for k in range(max(1, i.num_rows))}
    assert len(read) == num_images


def test_the_cut_of_an_earlier_run_stays(archive: Archive) -> None:
    first = archive.add(*(f"a{i:02d}.jpg" for i in range(40))).short_plan()
    first.commit()
    archive.add(*(f"b{i:02d}.jpg" for i in range(40)))
    second = archive.short_plan(min_images=8)
    assert second.chunks[:10] == first.chunks
    assert [ref.num_images for ref in second.chunks[10:]] == [8] * 5
    second.commit()
    assert archive.short_plan(min_images=1).chunks == second.chunks


@pytest.mark.parametrize("format_", ["parquet", "zip"])
def test_a_changed_file_keeps_the_slices_with_which_it_was_planned(
    archive: Archive, format_: str
) -> None:
    path = archive.root / "in" / f"a.{format_}"

    def write(num_images: int, content: bytes) -> None:
        if format_ == "parquet":
            pq.write_table(pa.Table.from_pylist([{"image": content}] * num_images), path)
        else:
            with zipfile.ZipFile(path, "w") as file:
                for i in range(num_images):
                    file.writestr(f"{i:03d}.jpg", content)

    write(40, b"before")
    first = archive.short_plan()
    first.commit()
    write(44, b"behind")
    second = archive.short_plan(min_images=4)
    assert chunk_ids(second)[:10] == chunk_ids(first)
    assert [ref.num_images for ref in second.chunks] == [4] * 11
    assert second.num_changed == 1
