"""`cvbatch.predict` gives the rows of a job, without Ray and without TensorFlow in this process."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cvbatch
from cvbatch.core.errors import ConfigError, SourceError
from tests.support import jobs

PHOTOS = Path(__file__).parents[2] / "jobs" / "examples" / "images"

pytestmark = [pytest.mark.keras, pytest.mark.process]


@pytest.fixture(scope="module")
def rows():
    paths = sorted(PHOTOS.iterdir(), reverse=True)
    return paths, cvbatch.predict(paths, model="demo_classifier", top_k=2)


def test_rows_are_in_the_order_of_the_images(rows):
    paths, result = rows
    assert [row.image_id.partition("#")[2] for row in result] == list(map(str, paths))
    assert {row.error.kind for row in result if row.error} == {"not_an_image"}
    assert all(len(row.labels) == 2 for row in result if not row.error)


@pytest.mark.ray
def test_the_numbers_are_those_of_the_job(rows, tmp_path):
    paths, result = rows
    command = ["predict", PHOTOS, "--model", "demo_classifier", "--out", tmp_path / "job"]
    status, _, stderr = jobs.cvbatch(
        *command, "--set", "models.0.top_k=2", "--set", "run.max_failure_fraction=1"
    )
    assert status == 0, stderr
    by_name = {row.image_id: row.labels for row in cvbatch.read(tmp_path / "job")}
    assert {path.name: row.labels for path, row in zip(paths, result, strict=True)} == by_name


def test_arrays_and_pictures_are_images_and_repeated_paths_are_rows():
    array = np.asarray(Image.open(PHOTOS / "scene-01.jpg").convert("RGB"))
    images = [array, Image.fromarray(array), array[..., 0]] + [PHOTOS / "broken.jpg"] * 2
    first, second, grey, *broken = cvbatch.predict(images, model="demo_classifier")
    assert first.labels == second.labels != grey.labels
    assert np.array_equal(np.asarray(first.image()), array)
    assert len({row.image_id for row in broken}) == 2


def test_pictures_of_other_modes_and_orientations_are_those_of_their_files(tmp_path):
    upright = Image.open(PHOTOS / "scene-01.jpg").convert("RGB")
    rotated = tmp_path / "rotated.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.rotate(90, expand=True).save(rotated, exif=exif)
    cmyk = upright.convert("CMYK")
    images = [rotated, Image.open(rotated), cmyk, cmyk.convert("RGB")]
    of_file, of_picture, of_cmyk, of_rgb = cvbatch.predict(images, model="demo_classifier")
    assert of_file.labels == of_picture.labels
    assert of_cmyk.labels == of_rgb.labels


def test_what_is_no_image_is_refused():
    with pytest.raises(ConfigError, match=r"image 1 has shape \(3,\) and type float64"):
        cvbatch.predict([PHOTOS / "scene-01.jpg", np.zeros(3)], model="demo_classifier")
    with pytest.raises(ConfigError, match="no images"):
        cvbatch.predict([], model="demo_classifier")
    with pytest.raises(ConfigError, match="topk"):
        cvbatch.predict([PHOTOS / "scene-01.jpg"], model="demo_classifier", topk=3)


def test_a_temporary_result_is_deleted_with_its_object():
    result = cvbatch.predict(PHOTOS / "scene-01.jpg", model="demo_classifier")
    folder = result.uri
    assert Path(folder).is_dir()
    del result
    gc.collect()
    with pytest.raises(SourceError):
        cvbatch.read(folder)


def test_neither_ray_nor_tensorflow_is_loaded():
    code = (
        "import sys, cvbatch\n"
        "if __name__ == '__main__':\n"
        f"    rows = cvbatch.predict({str(PHOTOS / 'scene-01.jpg')!r}, model='demo_classifier')\n"
        "    print(len(rows), 'ray' in sys.modules, 'tensorflow' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False", "False"]
