"""Report section of vectors: values of a regression, norms and similar pairs of embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np

from cvbatch.report import charts
from cvbatch.report.html import Section, el, format_count, name_element, paragraph, table
from cvbatch.report.prediction_page import Prediction
from cvbatch.report.statistics import NUM_BINS, damage_reported

MAX_HISTOGRAMS = 12  # of the values of a regression
MAX_COMPARED = 2048  # embeddings, each compared with all others
NUM_PAIRS = 8
_BATCH_ROWS = 2048


class _Vectors(NamedTuple):
    """Vectors of some rows, those of failed images left out."""

    image_ids: list[str]  # n
    values: np.ndarray  # (n, D) float32


def vectors_section(prediction: Prediction) -> Section | None:
    """Return the values and embeddings of the rows that the statistics count.

    Raises:
        SourceError: a part file is damaged, or has rows that cvbatch never writes.
    """
    columns = prediction.result.footer.columns
    body: list[Element] = []
    if "values" in columns:
        batches = [vectors.values for vectors in _vectors(prediction, "values")]
        body += _value_charts(prediction, np.concatenate(batches)) if batches else []
    if "embedding" in columns:
        body += _embedding_elements(_first_vectors(prediction, "embedding", MAX_COMPARED))
    return Section("vectors", "Values and embeddings", body) if body else None


def _vectors(prediction: Prediction, column: str) -> Iterator[_Vectors]:
    """Yield the vectors of a column, batch by batch; batches without vectors are left out."""
    result = prediction.result
    for ref in prediction.statistics.sampled:
        with damage_reported(result, ref):
            for batch in result.batches(ref, ["image_id", column], _BATCH_ROWS):
                rows = batch.filter(batch[column].is_valid())
                if rows.num_rows:
                    values = rows[column].flatten().to_numpy(zero_copy_only=False)
                    matrix = values.reshape(rows.num_rows, -1).astype(np.float32)
                    yield _Vectors(rows["image_id"].to_pylist(), matrix)


def _first_vectors(prediction: Prediction, column: str, count: int) -> list[_Vectors]:
    """Return batches with at least the first `count` vectors of a column."""
    batches, num_rows = [], 0
    for batch in _vectors(prediction, column):
        batches.append(batch)
        num_rows += len(batch.image_ids)
        if num_rows >= count:
            break
    return batches


def _value_charts(prediction: Prediction, values: np.ndarray) -> list[Element]:  # (n, D)
    """Return a histogram of each value."""
    models = prediction.result.metadata.get("models", [])
    names = [name for model in models if model["task"] == "regression" for name in model["classes"]]
    shown = zip(names[:MAX_HISTOGRAMS], values.T, strict=False)
    histograms = [_histogram(name, column) for name, column in shown]
    return [el("div", {"class": "charts"}, *histograms)]


def _histogram(title: str, values: np.ndarray) -> Element:  # (n,)
    finite = values[np.isfinite(values)].astype(np.float64)
    if not len(finite):
        return paragraph(f"{title}: no value")
    counts, edges = np.histogram(finite, NUM_BINS)
    limits = float(edges[0]), float(edges[-1])
    text = f"{title}: mean {finite.mean():.4g}, {limits[0]:.4g} to {limits[1]:.4g}"
    return charts.histogram(text, dict(enumerate(counts.tolist())), NUM_BINS, limits)


def _embedding_elements(batches: list[_Vectors]) -> list[Element]:
    """Return the dimension, a histogram of the norms and the most similar pairs."""
    if not batches:
        return []
    names = [name for batch in batches for name in batch.image_ids][:MAX_COMPARED]
    vectors = np.concatenate([batch.values for batch in batches])[:MAX_COMPARED]
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    images = format_count(len(names), "image")
    text = (
        f"Embeddings have {vectors.shape[1]:,} numbers. Norms and pairs are those of {images} from "
        "the beginning of the result."
    )
    pairs = [
        (name_element(names[a]), name_element(names[b]), f"{similarity:.4f}")
        for a, b, similarity in _similar_pairs(vectors, norms)
    ]
    head = ("image", "most similar other image", "cosine similarity")
    elements = [paragraph(text), el("div", {"class": "charts"}, _histogram("L2 norm", norms))]
    return elements + ([table("Most similar pairs", head, pairs, "ttn")] if pairs else [])


def _similar_pairs(
    vectors: np.ndarray,  # (n, D)
    norms: np.ndarray,  # (n,)
) -> list[tuple[int, int, float]]:
    """Return NUM_PAIRS pairs of rows a < b with the largest cosine similarity, largest first."""
    unit = vectors / np.where(norms > 0, norms, 1)[:, None].astype(np.float32)
    a, b = np.triu_indices(len(unit), 1)
    similarity = (unit @ unit.T)[a, b]
    best = np.argsort(-similarity, kind="stable")[:NUM_PAIRS]
    return list(zip(*(values[best].tolist() for values in (a, b, similarity)), strict=True))
