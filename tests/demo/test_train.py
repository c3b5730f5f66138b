"""Recipes of the demo networks are valid training jobs, and the training script works."""

import itertools
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from cvbatch.config.train import parse_training
from cvbatch.demo import train
from cvbatch.demo.shapes import CLASSES
from cvbatch.models.metadata import read_card


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", train.RECIPES)
def test_a_recipe_has_the_same_images_per_step_on_any_number_of_workers(name, workers):
    recipe = train.RECIPES[name]
    locations = {"source": {"uri": "scenes"}, "sink": {"uri": "trained"}}
    job = parse_training({**locations, **recipe.job(f"demo_{name}", workers)})
    assert job.run.workers == workers
    assert job.training.batch_size * workers == recipe.images_per_step
    assert job.training.epochs == recipe.epochs


def test_no_scene_is_in_two_splits():
    ranges = sorted((seed * 10_000_000, count) for seed, count in train.SPLITS.values())
    for (start, count), (next_start, _) in itertools.pairwise(ranges):
        assert start + count <= next_start


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.keras
def test_a_short_training_writes_a_network_with_its_card(tmp_path):
    arguments = ["--out", tmp_path, "--only", "classifier", "--epochs", 1, "--scenes", 32]
    command = [sys.executable, "-m", "cvbatch.demo.train", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("classifier: accuracy 0.")
    rows = pq.read_table(tmp_path / "trainings/classifier/history.parquet").to_pylist()
    assert [row["step"] for row in rows] == [2]
    assert read_card(tmp_path / "classifier.keras").classes == CLASSES
