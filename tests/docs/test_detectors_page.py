"""The page on detectors: its job files are valid, and its table has every format."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from cvbatch.config.loader import parse_job
from cvbatch.config.models import DetectorFormat

PAGE = (Path(__file__).parents[2] / "docs" / "detectors.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
FORMATS = set(get_args(DetectorFormat)) - {"auto"}


@pytest.mark.parametrize("text", BLOCKS)
def test_every_block_is_a_valid_job_file(text):
    (model,) = parse_job(yaml.safe_load(text)).models
    assert model.task == "detection"


def test_every_format_is_in_the_table_and_in_a_job_file():
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == FORMATS
    shown = {parse_job(yaml.safe_load(text)).models[0].detector for text in BLOCKS}
    assert shown - {"auto"} == FORMATS - {"boxes_scores"}


@pytest.mark.keras
def test_every_format_is_a_row_with_the_box_format_of_the_page():
    from cvbatch.inference.detector_formats import DETECTORS

    assert set(DETECTORS) == FORMATS
    rows = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]*?) \|", PAGE, re.MULTILINE))
    for name, detector in DETECTORS.items():
        if name != "retinanet":
            assert rows[name] == (detector.box_format or "`box_format`")
