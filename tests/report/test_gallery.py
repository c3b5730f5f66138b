"""Facts of the gallery equal the rows; sample, size of the page, links."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from urllib.parse import unquote

import duckdb
import numpy as np
import pytest
from PIL import Image

from cvbatch.core.progress import Listener
from cvbatch.core.types import VOID_CLASS
from cvbatch.images.drawing import PALETTE
from cvbatch.report import gallery, statistics
from cvbatch.report import job as report_job
from cvbatch.report.cards import file_link
from cvbatch.report.job import write_report
from cvbatch.report.overlays import encode_photo, mask_layer
from cvbatch.report.statistics import collect_statistics
from cvbatch.results.result import Result
from cvbatch.storage.store import Storage
from tests.support import jobs
from tests.support.datasets import picture
from tests.support.evaluations import write_result
from tests.support.results import random_row, write_predictions


def facts_in(path: Path) -> dict:
    text = path.read_text("utf-8")
    start = text.index('id="facts">') + len('id="facts">')
    return json.loads(text[start : text.index("</script>", start)])


def test_facts_equal_the_rows_as_duckdb_reads_them(result, pages):
    facts = facts_in(pages["prediction"])
    rows = duckdb.sql(f"""
        SELECT image_id, uri, status, width, height, labels[1].score AS score,
               labels[1].label AS label,
               list_distinct([box.label FOR box IN boxes]) AS box_labels,
               list_max([box.score FOR box IN boxes]) AS box_score,
               [area.label FOR area IN mask_areas] AS mask_labels
        FROM '{result}/part-*.parquet'""").fetchall()
    assert len(rows) == len(facts["cards"]) == 17
    by_id = {card["id"]: card for card in facts["cards"]}
    for image_id, uri, status, width, height, score, label, boxes, highest, areas in rows:
        card = by_id[image_id]
        assert (card["uri"], card["status"]) == (uri, status)
        assert (card["width"], card["height"]) == (width or 0, height or 0)
        assert card["score"] == (None if score is None else pytest.approx(score, rel=1e-5))
        if status != "ok":
            continue
        assert {facts["classes"][i] for i, _ in card["boxes"]} == set(boxes)
        scores = [score for _, score in card["boxes"]]
        assert max(scores, default=None) == (highest and pytest.approx(highest, rel=1e-5))
        assert {label, *areas} <= {facts["classes"][i] for i in card["classes"]}


def test_a_large_result_is_sampled_with_a_seed_that_the_page_states(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "MAX_COMPLETE", 30)
    monkeypatch.setattr(statistics, "NUM_RANDOM", 20)
    rows = {f"i{n:03d}": {"labels": [(n % 3, n / 200)]} for n in range(100)}
    folder = write_result(tmp_path / "r", rows, {"labels": ("a", "b", "c")}, part_images=7)
    chosen = collect_statistics(Result(Storage(), str(folder)), Listener()).random_rows()
    assert len(set(chosen)) == 20 and len({row_ref.ref for row_ref in chosen}) > 8
    monkeypatch.setattr("cvbatch.report.samples.MAX_COMPLETE", 30)
    for name in ("a", "b"):
        write_report(str(folder), str(tmp_path / f"{name}.html"))
    text = (tmp_path / "a.html").read_text("utf-8")
    assert "Shown: 20 images at random (seed 0), the 16 least confident and" in text
    assert "of 100 in the result" in text
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    facts = facts_in(tmp_path / "a.html")["cards"]
    ids = [card["id"] for card in facts]
    assert ids == sorted(ids) and 30 <= len(ids) < 60
    assert {f"i{n:03d}" for n in range(16)} <= set(ids)  # the lowest scores


def test_all_of_a_few_hundred_images_are_shown(tmp_path):
    rows = {f"i{n:03d}": {"labels": [(0, 0.5)]} for n in range(350)}
    folder = write_result(tmp_path / "r", rows, {"labels": ("a",)}, part_images=64)
    write_report(str(folder), str(tmp_path / "page.html"))
    assert [card["id"] for card in facts_in(tmp_path / "page.html")["cards"]] == list(rows)


def test_photos_are_as_large_as_their_share_of_the_bytes_permits(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8)
    sizes = [len(encode_photo(noise, limit)) for limit in (20_000, 60_000, 400_000)]
    assert all(size <= limit for size, limit in zip(sizes, (20_000, 60_000, 400_000), strict=True))
    assert sizes == sorted(set(sizes))
    files = {f"{n}.png": picture(900, 1200, seed=n) for n in range(6)}
    jobs.write_files(tmp_path / "images", files)
    predictions = {name: {**random_row(n), "size": (900, 1200)} for n, name in enumerate(files)}
    tasks = ("classification", "detection")
    for prediction in predictions.values():
        del prediction["mask"], prediction["mask_areas"], prediction["heatmaps"]
        del prediction["embedding"], prediction["values"], prediction["box_masks"]
    folder = write_predictions(tmp_path / "r", tmp_path / "images", predictions, tasks)
    monkeypatch.setattr(report_job, "IMAGE_BYTES", 60_000)
    done = write_report(str(folder), str(tmp_path / "page.html"))
    assert done.num_bytes < 60_000 * 4 / 3 + 120_000
    assert (tmp_path / "page.html").read_text("utf-8").count('class="photo"') == 6


def test_boxes_of_many_images_stay_within_their_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "MARKUP_BYTES", 60_000)
    boxes = [(1, 2, 30, 20, 0, 0.9 - n / 1000) for n in range(300)]
    rows = {f"i{n:02d}": {"boxes": boxes} for n in range(20)}
    folder = write_result(tmp_path / "r", rows, {"boxes": ("a",)})
    done = write_report(str(folder), str(tmp_path / "page.html"))
    assert done.num_bytes < 150_000
    text = (tmp_path / "page.html").read_text("utf-8")
    assert text.count("300 boxes, ") == 20 and "with the highest scores listed" in text


@pytest.mark.parametrize(
    "name", ["a b.png", "ü#?&%.png", 'q"<b>.png', "javascript:alert(1)", "://"]
)
def test_a_link_leads_from_the_page_to_the_file_and_has_no_scheme(tmp_path, name):
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / name
    page = tmp_path / "result" / "_cvbatch" / "report.html"
    link = file_link(str(path), str(page))
    assert os.path.normpath(page.parent / unquote(link)) == os.path.normpath(path)
    assert link.startswith("../../images/") and not set(link) & set(':?#"<> ')
    assert file_link(str(tmp_path / name), str(tmp_path / "page.html")).isascii()


def test_images_in_a_store_and_malformed_uris_have_no_link():
    for uri in ("s3://bucket/a.png", "ftp://x/y", "s3://", "gs://b/c"):
        assert file_link(uri, "/tmp/page.html") is None
    assert file_link("/tmp/a.png", "s3://bucket/page.html") is None


@pytest.mark.parametrize("has_background", [True, False])
def test_a_mask_has_the_colours_of_the_palette(has_background):
    mask = np.array([[0, 1, 2, VOID_CLASS]], np.uint8).repeat(4, 0)
    png = mask_layer(mask, (4, 4), has_background=has_background)
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image.convert("RGBA"))[0]
    assert pixels[:, 3].tolist() == [0 if has_background else 255, 255, 255, 0]
    assert (pixels[1:3, :3] == PALETTE[1:3]).all()


def test_a_name_cannot_end_the_script_of_the_facts(tmp_path):
    name = "</script><script>document.title='x'</script>.png"
    folder = write_result(tmp_path / "r", {name: {"labels": [(0, 0.5)]}}, {"labels": (name,)})
    write_report(str(folder), str(tmp_path / "page.html"))
    assert "</script><script>document" not in (tmp_path / "page.html").read_text("utf-8")
    facts = facts_in(tmp_path / "page.html")
    assert facts["cards"][0]["id"] == name and facts["classes"] == [name]


def test_classes_without_images_are_left_out_of_the_table(tmp_path):
    rows = {"a": {"labels": [(3, 0.9)]}, "b": {"labels": [(3, 0.4)]}}
    classes = {"labels": tuple(f"class {n}" for n in range(50))}
    write_report(str(write_result(tmp_path / "r", rows, classes)), str(tmp_path / "page.html"))
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "class 3" in text and "class 4" not in text
    assert "Best label: 1 of 50 classes occur" in text
