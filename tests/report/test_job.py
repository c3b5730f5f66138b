"""One page over whatever cvbatch leaves: whole, self-contained, bounded, and nobody's script."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

import cvbatch
from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.images.drawing import PALETTE
from cvbatch.report import job as writing
from cvbatch.report.columns import tints_of
from cvbatch.report.job import write_report
from cvbatch.results import writer
from cvbatch.storage import store
from cvbatch.storage.store import Storage
from tests.report.conftest import CLASSES, EXACT, HOSTILE, SCRIPT
from tests.support import jobs
from tests.support.datasets import picture
from tests.support.evaluations import write_result, write_truth
from tests.support.results import SIZE, predicted, saw_all

KINDS = ("prediction", "evaluation", "training")


class Page(HTMLParser):
    """Elements with their attributes, and the text that a reader sees."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text, self._inside = [], "", []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside.append(tag)

    def handle_data(self, data):
        if self._inside[-1:] not in (["script"], ["style"]):
            self.text += data

    def handle_endtag(self, tag):
        if tag in self._inside:
            del self._inside[len(self._inside) - 1 - self._inside[::-1].index(tag) :]

    def all(self, tag, key=None, value=None):
        return [said for name, said in self.elements if name == tag and (
            key is None or value in (said.get(key) or "").split())]  # fmt: skip


def of(path, tmp_path, **options):
    out = tmp_path / "page.html"
    return write_report(str(path), str(out), **options), Page(out)


def test_a_result_without_a_row_is_still_a_page(tmp_path):
    folder = write_result(tmp_path / "empty", {}, {"labels": ("a",)})
    report, page = of(folder, tmp_path)
    assert report.kind == "prediction" and report.num_images == 0
    assert "There is no image to show." in page.text and "No image failed." in page.text


def test_a_training_before_its_first_epoch_and_half_an_evaluation_are_pages(tmp_path, evaluation):
    folder = tmp_path / "begun" / "_cvbatch"
    folder.mkdir(parents=True)
    (folder / "training.json").write_text("{}")
    assert "No epoch is over yet." in of(folder.parent, tmp_path)[1].text
    half = tmp_path / "half"
    shutil.copytree(evaluation, half)
    state = json.loads((half / "_cvbatch" / "evaluation.json").read_text())
    state["is_complete"] = False
    (half / "_cvbatch" / "evaluation.json").write_text(json.dumps(state))
    assert "did not come to its end" in of(half, tmp_path)[1].text


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_loaded_and_every_picture_has_words(pages, kind):
    page = Page(pages[kind])
    for tag, said in page.elements:
        for key in ("src", "href", "srcset", "data", "action", "poster", "style"):
            if key in said:
                assert said[key].startswith(("data:image/", "#")), (tag, said[key][:80])
        assert not any(key.startswith("on") for key in said), (tag, said)
    assert all(len(said["alt"]) > 3 for said in page.all("img"))
    drawings = [s for s in page.all("svg") if s.get("aria-hidden") != "true"]
    assert drawings or kind == "evaluation"
    assert all(said["role"] == "img" and len(said["aria-label"]) > 3 for said in drawings)
    (policy,) = page.all("meta", "http-equiv", "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy["content"] and "http" not in policy["content"]
    assert len(page.all("h1")) == 1 and page.all("html")[0]["lang"] == "en"
    ids = [said["id"] for _, said in page.elements if "id" in said]
    assert len(ids) == len(set(ids))
    assert {said["href"][1:] for said in page.all("a")} <= set(ids)
    assert pages[kind].stat().st_size < 25_000_000


@pytest.mark.parametrize("kind", ["prediction", "evaluation"])
def test_hostile_names_stand_as_text(pages, kind):
    page = Page(pages[kind])
    assert len(page.all("script")) == 1
    assert not page.all("b", "class", "x") and "x" not in [s.get("src") for s in page.all("img")]
    assert SCRIPT in page.text and HOSTILE in page.text
    assert 'dög "q" & <b>co</b>' in page.text


def test_counts_failures_runs_networks_and_the_job_are_told(pages):
    text = Page(pages["prediction"]).text
    for told in ("17 images through 3 networks", "decode/truncated", "broken/text.jpg", "6.25",
                 "1,234", "56,789", "4,321", "2026-01-02 03:04:05", "Least certain",
                 "note: " + SCRIPT[:9]):  # fmt: skip
        assert told in text, told


def test_the_images_that_differ_most_are_shown_and_one_that_agrees_is_not(pages):
    page = Page(pages["prediction"])
    told = [said["data-agreement"] for said in page.all("figure", "class", "card")
            if "truth" in said["data-groups"].split()]  # fmt: skip
    assert len(told) == 14  # all but the exact one
    assert told == sorted(told, key=float) and float(told[-1]) < 1
    titles = [said["alt"] for said in page.all("img", "class", "photo")]
    assert any(alt.startswith(EXACT) for alt in titles) or EXACT in page.text
    assert len(page.all("img", "class", "truth")) == 14


def test_figures_of_an_evaluation_are_those_of_its_metrics(pages, evaluation):
    text = Page(pages["evaluation"]).text
    tasks = json.loads((evaluation / "metrics.json").read_text())["tasks"]
    for task in tasks.values():
        for metric, said in task["overall"].items():
            assert metric.replace("_", " ") in text
            if said["value"] is not None:
                assert f"{said['value']:.4f}" in text
    assert "15 on both sides" in text and "joined by image_id" in text


def test_an_evaluation_whose_prediction_is_gone_says_so(evaluation, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(evaluation, copy)
    state = json.loads((copy / "_cvbatch" / "evaluation.json").read_text())
    state["predictions"]["uri"] = str(tmp_path / "gone")
    (copy / "_cvbatch" / "evaluation.json").write_text(json.dumps(state))
    report, page = of(copy, tmp_path)
    assert len(report.notes) == 1 and "gone" in report.notes[0]
    assert report.notes[0] in page.text and "Class by class" in page.text


def test_an_evaluation_of_heatmaps_alone_is_a_page(evaluation, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(evaluation, copy)
    state = json.loads((copy / "_cvbatch" / "evaluation.json").read_text())
    state["job"]["truth"] = None
    (copy / "_cvbatch" / "evaluation.json").write_text(json.dumps(state))
    figure = {"value": 0.625, "low": None, "high": None, "count": 4}
    overall = {"insertion": figure, "random_insertion": {**figure, "value": None}}
    tasks = {"heatmap": {"overall": overall, "classes": {}, "curves": {"share": [0, 1]}}}
    metrics = {"images": {"images": 4, "heatmaps_judged": 4}, "joined_by": "", "tasks": tasks}
    (copy / "metrics.json").write_text(json.dumps(metrics))
    report, page = of(copy, tmp_path)
    assert report.notes == [] and "0.6250" in page.text and "undefined" in page.text
    assert "4 whose heatmaps were judged." in page.text and "joined by" not in page.text


def test_an_evaluation_stands_beside_its_prediction_and_no_other(result, evaluation, tmp_path):
    _, page = of(result, tmp_path, evaluation_uri=str(evaluation))
    assert "Class by class" in page.text and "Differs most from the truth" in page.text
    other = write_result(tmp_path / "other", {"a": {"labels": [(0, 0.5)]}}, {"labels": ("a",)})
    with pytest.raises(ConfigError, match="evaluate this result"):
        of(other, tmp_path, evaluation_uri=str(evaluation))
    with pytest.raises(ConfigError, match="are about a prediction"):
        of(evaluation, tmp_path, truth=["x"])


def test_a_truth_that_does_not_fit_is_refused_and_one_of_nothing_is_a_note(result, tmp_path):
    labels = {"labels": [(0, 1.0)], "boxes": [], "mask": np.zeros(SIZE, np.uint8)}
    names = ("another", "table")
    other = write_truth(tmp_path / "t", {EXACT: labels}, {"labels": names, "boxes": names})
    with pytest.raises(ConfigError, match=r"--truth: evaluation\.class_map.* --evaluation"):
        of(result, tmp_path, truth=[str(other)])
    empty = write_result(tmp_path / "empty", {}, {"labels": names})
    report, page = of(empty, tmp_path, truth=[str(other)])
    assert len(report.notes) == 1 and report.notes[0] in page.text


def test_a_training_shows_curves_best_epoch_and_splits(pages):
    page = Page(pages["training"])
    assert "A training of 6 epochs" in page.text and "uri: labels/" in page.text
    labels = [said["aria-label"] for said in page.all("svg", "class", "chart")]
    assert "loss over 6 epochs: from 1 to 0.1667, 0.2 at the best epoch, 5" in labels
    assert len(labels) == 3  # learning rate, loss, accuracy
    accuracy = [said["d"] for said in page.all("path", "class", "curve")][-1]
    assert accuracy.count("M") == 2  # the epoch without a value is a gap


def test_the_same_result_gives_the_same_page(result, pages, truth, tmp_path):
    report, _ = of(result, tmp_path, truth=[str(truth)])
    assert (tmp_path / "page.html").read_bytes() == pages["prediction"].read_bytes()
    assert report.num_bytes == pages["prediction"].stat().st_size


def test_the_page_lies_in_the_result_unless_said_otherwise(tmp_path):
    folder = write_result(tmp_path / "here", {}, {"labels": ("a",)})
    report = write_report(str(folder))
    assert report.report == str(folder / "_cvbatch" / "report.html")
    with pytest.raises(ConfigError, match="is a folder"):
        write_report(str(folder), str(tmp_path))


def test_a_result_in_a_store_has_its_page_there(result, s3):
    uri = store.join(s3.bucket_uri, "page")
    for path in result.rglob("*"):
        if path.is_file():
            Storage().put_bytes(store.join(uri, str(path.relative_to(result))), path.read_bytes())
    report = write_report(uri)
    assert report.report == store.join(uri, "_cvbatch/report.html") and report.num_images == 17
    page = Storage().read_bytes(report.report)
    assert page.startswith(b"<!doctype html>") and len(page) == report.num_bytes


def test_no_secret_comes_onto_the_page(result, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(result, copy)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMIsecret")
    uri = "https://h/x?X-Amz-Signature=abcdef0123456789"
    job = {"source": {"uri": [uri, "s3://key:wJalrXUtnFEMIsecret@bucket/x"]}}
    (copy / "_cvbatch" / "job.json").write_text(json.dumps({"job": job}))
    of(copy, tmp_path)
    text = (tmp_path / "page.html").read_text()
    assert "X-Amz-Signature=***" in text
    assert "abcdef0123456789" not in text and "wJalrXUtnFEMIsecret" not in text


@pytest.mark.parametrize("networks", [5, [], ["x"], [{}]])
def test_networks_whose_cost_is_not_known_are_told_all_the_same(result, tmp_path, networks):
    copy = tmp_path / "copy"
    shutil.copytree(result, copy)
    (copy / "_cvbatch" / "job.json").write_text(json.dumps({"job": {}, "networks": networks}))
    _, page = of(copy, tmp_path)
    assert "17 images through 3 networks" in page.text and "56,789" not in page.text


def test_pictures_never_take_more_than_their_share(result, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "PICTURE_BYTES", 20_000)
    _, page = of(result, tmp_path)
    encoded = [said["src"].partition(",")[2] for said in page.all("img")]
    assert 0 < sum(map(len, encoded)) * 3 / 4 <= 20_000
    assert re.search(r"\d+ layers are left out", page.text)


def test_many_boxes_and_long_names_are_cut(tmp_path):
    classes = ("background", "n" * 5000, "x")
    box = {"x_min": 1.0, "y_min": 1.0, "x_max": 9.0, "y_max": 9.0, "class_id": 1, "score": 0.5}
    mask = {"bytes": sink_mask()}
    said = {"boxes": [{**box, "label": classes[1]}] * 3000, "mask": mask, "labels": []}
    jobs.write_files(tmp_path / "images", {"a.png": picture(*SIZE)})
    answer = {"a.png": {**said, "size": SIZE}}
    folder = predicted(tmp_path / "out", tmp_path / "images", answer, classes=classes)
    report, page = of(folder, tmp_path)
    assert "3,000 boxes, the 50 best drawn" in page.text
    assert report.num_bytes < 120_000


def sink_mask():
    from cvbatch.images.masks import encode_png

    return encode_png(np.zeros(SIZE, np.uint8))


def test_what_is_no_number_is_not_drawn_and_the_rest_is(tmp_path):
    nan, inf = float("nan"), float("inf")
    box = {"x_min": 1.0, "y_min": 1.0, "x_max": 9.0, "y_max": 9.0, "class_id": 1, "label": "cat"}
    said = saw_all(0)
    boxes = [{**box, "score": nan}, {**box, "x_max": inf, "score": 0.5}, {**box, "score": 0.25}]
    said |= {"boxes": boxes, "labels": [{"class_id": 1, "label": "cat", "score": nan}]}
    said["heatmaps"][0]["values"] = [nan] * 6
    jobs.write_files(tmp_path / "images", {"a.png": picture(*SIZE)})
    options = {"classification": {"heatmap": {"layer": "auto"}}}
    folder = predicted(tmp_path / "out", tmp_path / "images", {"a.png": said}, **options)
    _, page = of(folder, tmp_path)
    drawn = [one.get("data-score") for one in page.all("g", "class", "box")]
    assert sorted(drawn) == ["0.25", "nan"]
    (row,) = cvbatch.read(folder)
    assert row.overlay("boxes", "heatmap").size == SIZE[::-1]


def test_a_class_has_one_colour_in_boxes_masks_and_the_legend(pages):
    page = Page(pages["prediction"])
    (legend,) = page.all("ul", "class", "legend")
    assert legend["aria-label"] == "Colours of the classes"
    tints = tints_of({"boxes": CLASSES, "mask": CLASSES})
    assert tints == {label: value for value, label in enumerate(CLASSES)}
    assert tints_of({"boxes": ("a", "b"), "mask": ("none", "b", "a")}) == {
        "none": 0,
        "b": 1,
        "a": 2,
    }
    assert tints_of({"boxes": ("a", "b")}) == {"a": 1, "b": 2}
    edges = {said["stroke"] for said in page.all("rect", "class", "edge")} - {"#ffffff"}
    assert edges == {"#{:02x}{:02x}{:02x}".format(*PALETTE[value]) for value in (1, 2)}


def test_an_image_that_is_gone_is_a_word_on_its_card(result, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(result, copy)
    images = result.parent / "images"
    images.rename(tmp_path / "moved")
    try:
        _, page = of(copy, tmp_path)
    finally:
        (tmp_path / "moved").rename(images)
    assert "no picture: " in page.text and not page.all("img", "class", "photo")
    assert page.all("img", "class", "mask")


def damaged(folder):
    path = sorted(folder.glob("part-*.parquet"))[-1]
    path.write_bytes(path.read_bytes()[:-9])


def of_another_version(folder):
    path = sorted(folder.glob("part-*.parquet"))[-1]
    table = jobs.pq.read_table(path)
    said = json.dumps({"schema_version": 9, "fingerprint": "abc", "models": []}).encode()
    writer.write_part(
        Storage(), str(folder), path.stem.removeprefix("part-"), [table], table.schema, said
    )


def without_a_job(folder):
    shutil.rmtree(folder / "_cvbatch")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (damaged, "is not a part of a prediction's result"),
        (of_another_version, "schema version 9, and this cvbatch reads 1"),
        (without_a_job, "holds no result"),
        (shutil.rmtree, "holds no result"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_and_nothing_is_written(result, tmp_path, change, told):
    copy = tmp_path / "copy"
    shutil.copytree(result, copy)
    change(copy)
    with pytest.raises(SourceError, match=told) as refused:
        of(copy, tmp_path)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "page.html").exists()


def test_a_damaged_evaluation_and_a_damaged_history_are_one_sentence(
    evaluation, training, tmp_path
):
    for source, name in ((evaluation, "metrics.json"), (training, "history.parquet")):
        for number, data in enumerate((b"{", b"[]", b'{"tasks": {"a": 3}}')):
            copy = tmp_path / f"{name}-{number}"
            shutil.copytree(source, copy)
            (copy / name).write_bytes(data)
            with pytest.raises(SourceError, match=name):
                of(copy, tmp_path)


def test_the_command_says_where_the_page_is(result, tmp_path):
    out = tmp_path / "p.html"
    status, said, told = jobs.cvbatch("report", result, "--out", out, "--json")
    assert status == 0 and told.splitlines()[-1].endswith(f"MB into {out}")
    assert (
        json.loads(said)["num_images"] == 17 and out.stat().st_size == json.loads(said)["num_bytes"]
    )
    status, _, told = jobs.cvbatch("report", tmp_path / "absent")
    assert status == 2 and told.count("\n") == 1 and "holds no result" in told
