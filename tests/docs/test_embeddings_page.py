"""The SQL of docs/embeddings.md on a real result, compared with brute force in NumPy."""

from __future__ import annotations

import re
import shutil
from itertools import combinations
from pathlib import Path

import cv2
import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

import cvbatch
from tests.support import jobs
from tests.support.datasets import picture
from tests.support.in_process import predict_in_process
from tests.support.results import SIZE, random_row, write_predictions

pytestmark = [
    pytest.mark.keras,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
PAGE = (Path(__file__).parents[2] / "docs" / "embeddings.md").read_text(encoding="utf-8")
QUERIES = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
COPIED = "set-0/image 002.jpg"


@pytest.fixture(scope="module")
def folder(keras_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result over 12 images, the larger PNG of one of them, and two broken files."""
    root = tmp_path_factory.mktemp("embeddings")
    jobs.write_files(root / "images", jobs.archive_files(12))
    pixels = cv2.imread(str(root / "images" / COPIED))
    cv2.imwrite(str(root / "images" / "copy.png"), cv2.resize(pixels, None, fx=2, fy=2))
    model = str(keras_files / "nested_classifier.keras")
    section = {"task": "embedding", "model": model, "layer": "auto"}
    predict_in_process(root / "images", root / "result", [section])
    return root / "result"


@pytest.fixture(scope="module")
def vectors(folder: Path) -> dict[str, np.ndarray]:
    """image_id → vector of unit length, read with pyarrow file by file."""
    rows = jobs.rows(folder)
    found = {row["image_id"]: np.array(row["embedding"]) for row in rows if row["embedding"]}
    return {str(name): vector / np.linalg.norm(vector) for name, vector in found.items()}


def run(query: str, folder: Path, **changes: str) -> list[tuple[object, ...]]:
    size = {"1280": "12"} if "1280" in query else {}
    for before, after in {"'result/": f"'{folder}/", **size, **changes}.items():
        assert before in query
        query = query.replace(before, after)
    return duckdb.sql(query).fetchall()


def test_near_duplicates_are_the_pairs_above_the_threshold(
    folder: Path, vectors: dict[str, np.ndarray]
) -> None:
    similarity = {
        (a, b): float(vectors[a] @ vectors[b]) for a, b in combinations(sorted(vectors), 2)
    }
    threshold = float(np.quantile(list(similarity.values()), 0.9))
    found = run(QUERIES[0], folder, **{"0.999": str(threshold)})
    expected = sorted(
        (pair for pair in similarity if similarity[pair] > threshold),
        key=lambda pair: -similarity[pair],
    )
    assert [tuple(row[:2]) for row in found] == expected
    assert found[0][:2] == ("copy.png", COPIED)
    np.testing.assert_allclose(
        [row[2] for row in found], [similarity[pair] for pair in expected], atol=1e-6
    )


def test_most_similar_images_are_ordered_by_cosine(
    folder: Path, vectors: dict[str, np.ndarray]
) -> None:
    found = run(QUERIES[1], folder, **{"set/a.jpg": COPIED})
    expected = sorted(vectors, key=lambda name: -(vectors[name] @ vectors[COPIED]))[:10]
    assert [row[0] for row in found] == expected
    assert expected[:2] == [COPIED, "copy.png"]


def test_errors_of_a_regression_are_those_of_keras(tmp_path: Path) -> None:
    from keras import metrics

    names = [f"i {n:02d}.png" for n in range(12)]
    jobs.write_files(tmp_path / "images", dict.fromkeys(names, picture(*SIZE)) | jobs.BROKEN)
    rows = {name: random_row(n) for n, name in enumerate(names)}
    result = write_predictions(
        tmp_path / "out", tmp_path / "images", rows, ("classification", "regression")
    )
    truth = {name: row["values"][0] + 0.1 * n for n, (name, row) in enumerate(rows.items())}
    lines = [f"{name},{age}\n" for name, age in truth.items()]
    (tmp_path / "ages.csv").write_text("image_id,age\n" + "".join(lines))
    ((mae, rmse, r2),) = run(QUERIES[2], result, **{"ages.csv": str(tmp_path / "ages.csv")})
    kinds = metrics.MeanAbsoluteError(), metrics.RootMeanSquaredError(), metrics.R2Score()
    predicted = np.array([[row["values"][0]] for row in rows.values()], np.float32)
    for kind in kinds:
        kind.update_state(np.array([[age] for age in truth.values()], np.float32), predicted)
    np.testing.assert_allclose([mae, rmse, r2], [float(kind.result()) for kind in kinds], rtol=1e-5)


def test_the_column_is_a_list_of_a_fixed_size_and_null_for_failed_images(folder: Path) -> None:
    path = next(iter(sorted(folder.glob("*.parquet"))))
    assert (
        str(pq.read_schema(path).field("embedding").type) == "fixed_size_list<element: float>[12]"
    )
    types = duckdb.sql(f"select distinct typeof(embedding) from '{path}'").fetchall()
    assert types == [("FLOAT[]",)]
    for row in cvbatch.read(folder):
        assert (row.embedding is None) == (row.error is not None)
        assert row.embedding is None or row.embedding.shape == (12,)
        assert row.values is None
    (model,) = cvbatch.read(folder).metadata["models"]
    assert (model["task"], model["dimension"], model["classes"]) == ("embedding", 12, [])


def test_vectors_are_those_of_keras(folder: Path, keras_files: Path) -> None:
    import keras

    from cvbatch.core.types import InputKey
    from cvbatch.images.decode import Decoded, Limits, decode

    network = keras.models.load_model(keras_files / "nested_classifier.keras")
    part = keras.Model(network.inputs, network.layers[-1].input)
    images = folder.parent / "images"
    for row in list(cvbatch.read(folder))[:4]:
        if row.error is None:
            data = (images / row.image_id).read_bytes()
            decoded = decode(data, [InputKey(32, 32, "stretch")], Limits())
            assert isinstance(decoded, Decoded)
            (pixels,) = decoded.pixels.values()
            expected = part.predict(pixels[None].astype("float32"), verbose=0)[0]
            np.testing.assert_allclose(row.embedding, expected, atol=1e-5)


def test_a_second_run_writes_the_same_bytes(
    folder: Path, tmp_path: Path, keras_files: Path
) -> None:
    model = str(keras_files / "nested_classifier.keras")
    section = {"task": "embedding", "model": model, "layer": "auto"}
    shutil.copytree(folder.parent / "images", tmp_path / "images")
    predict_in_process(folder.parent / "images", tmp_path / "again", [section])
    assert jobs.parts(tmp_path / "again") == jobs.parts(folder)
