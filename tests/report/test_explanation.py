"""The page of an explanation: all pictures, failures, and no file outside of the sink."""

from __future__ import annotations

import shutil

import pyarrow as pa
import pytest

from cvbatch.core.errors import SourceError
from cvbatch.report import explanation_page
from cvbatch.report.job import write_report
from cvbatch.storage.store import Storage
from tests.report.conftest import HOSTILE, SCRIPT
from tests.report.test_gallery import facts_in
from tests.support import jobs
from tests.support.datasets import picture


def test_the_page_shows_every_picture_and_the_failures(pages):
    facts = facts_in(pages["explanation"])
    shown = {(card["id"], *card["changes"]) for card in facts["cards"]}
    assert shown == {
        ("conv", "weights"), (HOSTILE, "gradcam"), (HOSTILE, "dream"), (HOSTILE, "activations"),
    }  # fmt: skip
    assert facts["classes"] == [SCRIPT]
    text = pages["explanation"].read_text("utf-8")
    assert text.count('class="photo"') == 4
    assert "Explanation of 2 images" in text and "decode/truncated" in text
    assert SCRIPT not in text


def test_a_picture_outside_of_the_pictures_of_the_sink_is_not_read(explanation, tmp_path):
    jobs.write_files(tmp_path, {"secret.png": picture(9, 9)})
    loaded = explanation_page.load(Storage(), str(explanation))
    for path in ("../secret.png", "pictures/../../secret.png", f"{tmp_path}/secret.png", ""):
        entry = explanation_page.Picture("dream", "x", path, "")
        assert explanation_page._encode(loaded, entry, 1e6) is None
    inside = loaded.of_images[HOSTILE][0]
    assert explanation_page._encode(loaded, inside, 1e6)


def test_many_pictures_are_a_sample_of_the_images(explanation, monkeypatch):
    monkeypatch.setattr(explanation_page, "MAX_PICTURES", 9)
    loaded = explanation_page.load(Storage(), str(explanation))
    pictures = loaded.of_images[HOSTILE]
    loaded.of_images = {f"image {n}": pictures for n in range(10)}
    chosen, text = explanation_page._choose(loaded)
    assert len(chosen) == 1 + 2 * len(pictures)
    assert text == "Shown: pictures of 2 at equal distances of 10 images and of the network."


def test_a_damaged_or_unfinished_explanation(explanation, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(explanation, copy)
    (copy / "_cvbatch" / "explain.json").write_text("{}")
    write_report(str(copy), str(tmp_path / "page.html"))
    assert "is not complete" in (tmp_path / "page.html").read_text("utf-8")
    (copy / "weights" / "conv.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match="explain again"):
        write_report(str(copy), str(tmp_path / "page.html"))
    jobs.pq.write_table(pa.table({"layer": ["x"]}), copy / "weights" / "conv.parquet")
    with pytest.raises(SourceError, match="explain again"):
        write_report(str(copy), str(tmp_path / "page.html"))
