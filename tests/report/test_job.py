"""Reports of predictions, evaluations and trainings: self-contained, bounded, escaped."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pyarrow.parquet as pq
import pytest

import cvbatch
from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.images.drawing import PALETTE
from cvbatch.plots.figure import encode
from cvbatch.plots.learning_curves import draw_learning_curves
from cvbatch.report import job as report_job
from cvbatch.report.columns import class_colours
from cvbatch.report.job import write_report
from cvbatch.results import writer
from cvbatch.storage import store
from cvbatch.storage.store import Storage
from tests.report.conftest import CLASSES, EXACT, HOSTILE, SCRIPT
from tests.support import jobs
from tests.support.datasets import picture
from tests.support.evaluations import write_result, write_truth
from tests.support.results import SIZE, random_row, write_predictions

pytestmark = pytest.mark.process

KINDS = ("prediction", "evaluation", "training")


class Page(HTMLParser):
    """Elements of a page with their attributes, and its visible text."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text, self._open_tags = [], "", []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._open_tags.append(tag)

    def handle_data(self, data):
        if self._open_tags[-1:] not in (["script"], ["style"]):
            self.text += data

    def handle_endtag(self, tag):
        if tag in self._open_tags:
            del self._open_tags[len(self._open_tags) - 1 - self._open_tags[::-1].index(tag) :]

    def all(self, tag, key=None, value=None):
        return [attributes for name, attributes in self.elements if name == tag and (
            key is None or value in (attributes.get(key) or "").split())]  # fmt: skip


def report_of(path, tmp_path, **options):
    out = tmp_path / "page.html"
    return write_report(str(path), str(out), **options), Page(out)


def test_a_report_of_an_empty_result(tmp_path):
    folder = write_result(tmp_path / "empty", {}, {"labels": ("a",)})
    report, page = report_of(folder, tmp_path)
    assert report.kind == "prediction" and report.num_images == 0
    assert "There is no image to show." in page.text and "No image failed." in page.text


def test_reports_of_an_unfinished_training_and_evaluation(tmp_path, evaluation):
    folder = tmp_path / "started" / "_cvbatch"
    folder.mkdir(parents=True)
    (folder / "training.json").write_text("{}")
    assert "No epoch is complete yet." in report_of(folder.parent, tmp_path)[1].text
    half = tmp_path / "half"
    shutil.copytree(evaluation, half)
    state = json.loads((half / "_cvbatch" / "evaluation.json").read_text())
    state["is_complete"] = False
    (half / "_cvbatch" / "evaluation.json").write_text(json.dumps(state))
    assert "is not complete" in report_of(half, tmp_path)[1].text


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_loaded_and_every_image_has_a_text_alternative(pages, kind):
    page = Page(pages[kind])
    for tag, attributes in page.elements:
        for key in ("src", "href", "srcset", "data", "action", "poster", "style"):
            if key in attributes:
                is_link = attributes.get("class") == "original" and key == "href"
                assert is_link or attributes[key].startswith(("data:image/", "#")), attributes[key]
        assert not any(key.startswith("on") for key in attributes), (tag, attributes)
    assert all(len(img["alt"]) > 3 for img in page.all("img"))
    svgs = [svg for svg in page.all("svg") if svg.get("aria-hidden") != "true"]
    assert svgs or kind != "prediction"
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 3 for svg in svgs)
    (policy,) = page.all("meta", "http-equiv", "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy["content"] and "http" not in policy["content"]
    assert len(page.all("h1")) == 1 and page.all("html")[0]["lang"] == "en"
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [link["href"] for link in page.all("a") if link.get("class") != "original"]
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert pages[kind].stat().st_size < 25_000_000


@pytest.mark.parametrize("kind", ["prediction", "evaluation"])
def test_untrusted_names_are_escaped(pages, kind):
    page = Page(pages[kind])
    assert [script.get("id") for script in page.all("script")] == ["facts", None]
    assert not page.all("b", "class", "x") and "x" not in [s.get("src") for s in page.all("img")]
    assert SCRIPT in page.text and HOSTILE in page.text
    assert 'dög "q" & <b>co</b>' in page.text


def test_counts_failures_runs_networks_and_the_job_are_shown(pages):
    text = Page(pages["prediction"]).text
    for expected in ("17 images, 3 networks", "decode/truncated", "broken/text.jpg", "6.25",
                     "1,234", "56,789", "4,321", "2026-01-02 03:04:05", "all 17 images",
                     f"did not read: raw photograph 3 ({HOSTILE}, ...)",
                     "4 of 15 heatmaps of the last run are 0 everywhere",
                     "note: " + SCRIPT[:9]):  # fmt: skip
        assert expected in text, expected


def test_the_gallery_shows_every_image_and_the_differences_of_masks(pages):
    page = Page(pages["prediction"])
    assert len(page.all("figure", "class", "card")) == 17
    alts = [img["alt"] for img in page.all("img", "class", "photo")]
    assert len(alts) == 15 and any(alt.startswith(EXACT) for alt in alts)
    assert len(page.all("img", "class", "truth")) == 15  # of the exact one too: no difference


def test_an_evaluation_shows_the_values_of_metrics_json(pages, evaluation):
    text = Page(pages["evaluation"]).text
    tasks = json.loads((evaluation / "metrics.json").read_text())["tasks"]
    for task in tasks.values():
        for metric, interval in task["overall"].items():
            assert metric.replace("_", " ") in text
            if interval["value"] is not None:
                assert f"{interval['value']:.4f}" in text
    assert "15 compared" in text and "joined by image_id" in text


def test_an_evaluation_whose_prediction_is_missing_has_a_note(evaluation, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(evaluation, copy)
    state = json.loads((copy / "_cvbatch" / "evaluation.json").read_text())
    state["predictions"]["uri"] = str(tmp_path / "gone")
    (copy / "_cvbatch" / "evaluation.json").write_text(json.dumps(state))
    report, page = report_of(copy, tmp_path)
    assert len(report.notes) == 1 and "gone" in report.notes[0]
    assert report.notes[0] in page.text and "Metrics per class" in page.text


def test_a_report_of_a_heatmap_evaluation(evaluation, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(evaluation, copy)
    state = json.loads((copy / "_cvbatch" / "evaluation.json").read_text())
    state["job"]["truth"] = None
    (copy / "_cvbatch" / "evaluation.json").write_text(json.dumps(state))
    metric = {"value": 0.625, "low": None, "high": None, "count": 4}
    overall = {"insertion": metric, "random_insertion": {**metric, "value": None}}
    tasks = {"heatmap": {"overall": overall, "classes": {}, "curves": {"share": [0, 1]}}}
    metrics = {"images": {"images": 4, "heatmaps_judged": 4}, "joined_by": "", "tasks": tasks}
    (copy / "metrics.json").write_text(json.dumps(metrics))
    report, page = report_of(copy, tmp_path)
    assert report.notes == [] and "0.6250" in page.text and "undefined" in page.text
    assert "4 with evaluated heatmaps." in page.text and "joined by" not in page.text


def test_only_the_evaluation_of_a_prediction_is_shown_with_it(result, evaluation, tmp_path):
    _, page = report_of(result, tmp_path, evaluation_uri=str(evaluation))
    assert "Metrics per class" in page.text and "15 of them have ground truth" in page.text
    other = write_result(tmp_path / "other", {"a": {"labels": [(0, 0.5)]}}, {"labels": ("a",)})
    with pytest.raises(ConfigError, match="evaluate this result"):
        report_of(other, tmp_path, evaluation_uri=str(evaluation))
    with pytest.raises(ConfigError, match="need a prediction"):
        report_of(evaluation, tmp_path, truth=["x"])


def test_ground_truth_of_other_classes_is_an_error_and_for_an_empty_result_a_note(result, tmp_path):
    labels = {"labels": [(0, 1.0)], "boxes": [], "mask": np.zeros(SIZE, np.uint8)}
    names = ("another", "table")
    other = write_truth(tmp_path / "t", {EXACT: labels}, {"labels": names, "boxes": names})
    with pytest.raises(ConfigError, match=r"--truth: evaluation\.class_map.* --evaluation"):
        report_of(result, tmp_path, truth=[str(other)])
    empty = write_result(tmp_path / "empty", {}, {"labels": names})
    report, page = report_of(empty, tmp_path, truth=[str(other)])
    assert len(report.notes) == 1 and report.notes[0] in page.text


def test_a_training_shows_curves_best_epoch_and_job_file(pages, training):
    page = Page(pages["training"])
    assert "Training, 6 epochs" in page.text and "uri: labels/" in page.text
    assert "best epoch: 5 of 6, accuracy 0.5" in page.text
    (image,) = page.all("img", "class", "plot")
    assert image["alt"].startswith("Curves of learning_rate, loss, accuracy;")
    rows = pq.read_table(training / "history.parquet").to_pylist()
    svg = base64.b64decode(image["src"].removeprefix("data:image/svg+xml;base64,"))
    assert svg == encode(draw_learning_curves(rows, best_epoch=5), "svg")


def test_an_evaluation_shows_its_plots_as_svg_and_old_ones_as_png(evaluation, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(evaluation, copy)
    for svg in copy.glob("confusion*.svg"):
        svg.unlink()
    _, page = report_of(copy, tmp_path)
    sources = [image["src"] for image in page.all("img", "class", "plot")]
    embedded = sorted(base64.b64decode(source.partition(",")[2]) for source in sources)
    files = [*copy.glob("*.svg"), *copy.glob("confusion*.png")]
    assert len(files) > 10 and embedded == sorted(path.read_bytes() for path in files)


def test_the_same_result_gives_the_same_report(result, pages, truth, tmp_path):
    report, _ = report_of(result, tmp_path, truth=[str(truth)])
    assert (tmp_path / "page.html").read_bytes() == pages["prediction"].read_bytes()
    assert report.num_bytes == pages["prediction"].stat().st_size


def test_the_report_is_in_the_result_by_default(tmp_path):
    folder = write_result(tmp_path / "result", {}, {"labels": ("a",)})
    report = write_report(str(folder))
    assert report.report == str(folder / "_cvbatch" / "report.html")
    with pytest.raises(ConfigError, match="is a folder"):
        write_report(str(folder), str(tmp_path))


def test_the_report_of_a_result_in_s3_is_in_s3(result, s3):
    uri = store.join(s3.bucket_uri, "page")
    for path in result.rglob("*"):
        if path.is_file():
            Storage().put_bytes(store.join(uri, str(path.relative_to(result))), path.read_bytes())
    report = write_report(uri)
    assert report.report == store.join(uri, "_cvbatch/report.html") and report.num_images == 17
    page = Storage().read_bytes(report.report)
    assert page.startswith(b"<!doctype html>") and len(page) == report.num_bytes


def test_a_report_contains_no_secret(result, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(result, copy)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMIsecret")
    uri = "https://h/x?X-Amz-Signature=abcdef0123456789"
    job = {"source": {"uri": [uri, "s3://key:wJalrXUtnFEMIsecret@bucket/x"]}}
    (copy / "_cvbatch" / "job.json").write_text(json.dumps({"job": job}))
    report_of(copy, tmp_path)
    text = (tmp_path / "page.html").read_text()
    assert "X-Amz-Signature=***" in text
    assert "abcdef0123456789" not in text and "wJalrXUtnFEMIsecret" not in text


@pytest.mark.parametrize("networks", [5, [], ["x"], [{}]])
def test_networks_of_unknown_cost_are_listed(result, tmp_path, networks):
    copy = tmp_path / "copy"
    shutil.copytree(result, copy)
    (copy / "_cvbatch" / "job.json").write_text(json.dumps({"job": {}, "networks": networks}))
    _, page = report_of(copy, tmp_path)
    assert "17 images, 3 networks" in page.text and "56,789" not in page.text


def test_images_stay_within_their_byte_budget(result, tmp_path, monkeypatch):
    monkeypatch.setattr(report_job, "IMAGE_BYTES", 20_000)
    _, page = report_of(result, tmp_path)
    encoded = [img["src"].partition(",")[2] for img in page.all("img")]
    assert 0 < sum(map(len, encoded)) * 3 / 4 <= 20_000
    assert re.search(r"\d+ layers are left out", page.text)


def test_many_boxes_and_long_names_are_shortened(tmp_path):
    classes = ("background", "n" * 5000, "x")
    box = {"x_min": 1.0, "y_min": 1.0, "x_max": 9.0, "y_max": 9.0, "class_id": 1, "score": 0.5}
    mask = {"bytes": empty_mask()}
    boxes = [{**box, "label": classes[1]}] * 3000
    prediction = {"boxes": boxes, "mask": mask, "labels": [], "size": SIZE}
    jobs.write_files(tmp_path / "images", {"a.png": picture(*SIZE)})
    predictions = {"a.png": prediction}
    folder = write_predictions(tmp_path / "out", tmp_path / "images", predictions, classes=classes)
    report, page = report_of(folder, tmp_path)
    assert "3,000 boxes, the 50 with the highest scores listed" in page.text
    assert report.num_bytes < 120_000


def empty_mask():
    from cvbatch.images.masks import encode_png

    return encode_png(np.zeros(SIZE, np.uint8))


def test_boxes_with_infinite_corners_are_not_drawn(tmp_path):
    nan, inf = float("nan"), float("inf")
    box = {"x_min": 1.0, "y_min": 1.0, "x_max": 9.0, "y_max": 9.0, "class_id": 1, "label": "cat"}
    prediction = random_row(0)
    boxes = [{**box, "score": nan}, {**box, "x_max": inf, "score": 0.5}, {**box, "score": 0.25}]
    prediction |= {"boxes": boxes, "labels": [{"class_id": 1, "label": "cat", "score": nan}]}
    prediction["heatmaps"][0]["values"] = [nan] * 6
    jobs.write_files(tmp_path / "images", {"a.png": picture(*SIZE)})
    options = {"classification": {"heatmap": {"layer": "auto"}}}
    folder = write_predictions(
        tmp_path / "out", tmp_path / "images", {"a.png": prediction}, **options
    )
    _, page = report_of(folder, tmp_path)
    scores = [box.get("data-score") for box in page.all("g", "class", "box")]
    assert sorted(scores) == ["0.25", "nan"]
    (row,) = cvbatch.read(folder)
    assert row.overlay("boxes", "heatmap").size == SIZE[::-1]


def test_a_class_has_the_same_colour_in_boxes_masks_and_the_legend(pages):
    page = Page(pages["prediction"])
    (legend,) = page.all("ul", "class", "legend")
    assert legend["aria-label"] == "Colours of the classes"
    colours = class_colours({"boxes": CLASSES, "mask": CLASSES})
    assert colours == {label: value for value, label in enumerate(CLASSES)}
    assert class_colours({"boxes": ("a", "b"), "mask": ("none", "b", "a")}) == {
        "none": 0,
        "b": 1,
        "a": 2,
    }
    assert class_colours({"boxes": ("a", "b")}) == {"a": 1, "b": 2}
    edges = {rect["stroke"] for rect in page.all("rect", "class", "edge")}
    edges -= {"#ffffff", "#f0e442"}  # true boxes and misses
    assert edges == {"#{:02x}{:02x}{:02x}".format(*PALETTE[value]) for value in (1, 2)}


def test_a_missing_image_is_reported_on_its_card(result, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(result, copy)
    images = result.parent / "images"
    images.rename(tmp_path / "moved")
    try:
        _, page = report_of(copy, tmp_path)
    finally:
        (tmp_path / "moved").rename(images)
    assert "no image: " in page.text and not page.all("img", "class", "photo")
    assert page.all("img", "class", "mask")


def damage(folder):
    path = sorted(folder.glob("part-*.parquet"))[-1]
    path.write_bytes(path.read_bytes()[:-9])


def change_version(folder):
    path = sorted(folder.glob("part-*.parquet"))[-1]
    table = jobs.pq.read_table(path)
    metadata = json.dumps({"schema_version": 9, "fingerprint": "abc", "models": []}).encode()
    writer.write_part(
        Storage(), str(folder), path.stem.removeprefix("part-"), [table], table.schema, metadata
    )


def remove_job(folder):
    shutil.rmtree(folder / "_cvbatch")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage, "is not a part of a prediction's result"),
        (change_version, "schema version 9, and this cvbatch reads 1"),
        (remove_job, "contains no result"),
        (shutil.rmtree, "does not exist"),
    ],
)
def test_an_unreadable_result_is_a_one_line_error_and_nothing_is_written(
    result, tmp_path, change, message
):
    copy = tmp_path / "copy"
    shutil.copytree(result, copy)
    change(copy)
    with pytest.raises(SourceError, match=message) as error:
        report_of(copy, tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "page.html").exists()


def test_a_damaged_evaluation_or_history_is_an_error(evaluation, training, tmp_path):
    for source, name in ((evaluation, "metrics.json"), (training, "history.parquet")):
        for number, data in enumerate((b"{", b"[]", b'{"tasks": {"a": 3}}')):
            copy = tmp_path / f"{name}-{number}"
            shutil.copytree(source, copy)
            (copy / name).write_bytes(data)
            with pytest.raises(SourceError, match=name):
                report_of(copy, tmp_path)


def test_the_command_prints_the_path_of_the_report(result, tmp_path):
    out = tmp_path / "p.html"
    status, stdout, stderr = jobs.cvbatch("report", result, "--out", out, "--json")
    assert status == 0 and f"MB into {out};" in stderr.splitlines()[-1]
    report = json.loads(stdout)
    assert report["num_images"] == 17 and report["num_bytes"] == out.stat().st_size
    status, _, stderr = jobs.cvbatch("report", tmp_path / "absent")
    assert status == 2 and stderr.count("\n") == 1 and "does not exist" in stderr
