"""Write the HTML report of a prediction, an evaluation, a training or an explanation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from cvbatch.core.errors import (
    AccessDeniedError,
    ConfigError,
    CvbatchError,
    NotFoundError,
    SourceError,
)
from cvbatch.core.progress import Listener
from cvbatch.report import (
    comparison_page,
    evaluation_page,
    explanation_page,
    prediction_page,
    training_page,
)
from cvbatch.report.disagreements import Comparison, compare_with_labels
from cvbatch.report.html import Section, format_count
from cvbatch.report.overlays import ByteBudget
from cvbatch.report.page import render_page
from cvbatch.report.prediction_page import Prediction
from cvbatch.report.result_changes import find_changes
from cvbatch.report.samples import choose_rows, is_sample
from cvbatch.report.statistics import collect_statistics
from cvbatch.report.vectors import vectors_section
from cvbatch.results.result import Result
from cvbatch.results.run_history import latest
from cvbatch.storage import store
from cvbatch.storage.store import Storage

IMAGE_BYTES = 11_500_000  # 15.3 MB as base64; with everything else a page stays below 25 MB
_DEFAULT, _COMPARISON = "_cvbatch/report.html", "_cvbatch/comparison.html"
_MAX_RUNS = 40  # rows of the table


@dataclass(frozen=True)
class Report:
    """Summary of a written report."""

    kind: str  # prediction | evaluation | training | explanation | comparison
    source: str  # URI of the folder
    report: str  # URI of the page
    num_bytes: int
    num_images: int
    notes: list[str]  # about missing content

    def as_json(self) -> dict[str, Any]:
        """Return the summary as JSON-ready values."""
        return asdict(self)


@dataclass
class _Draft:
    """A page that is written: its source, its URI, its limits and notes."""

    storage: Storage
    uri: str  # of the folder
    target: str  # URI of the page
    listener: Listener
    evaluation_uri: str | None = None  # as the arguments of write_report
    truth: Sequence[str] = ()
    images: ByteBudget = field(default_factory=lambda: ByteBudget(IMAGE_BYTES))
    notes: list[str] = field(default_factory=list)


class _Content(NamedTuple):
    title: str
    sections: Sequence[Section]
    num_images: int = 0


def write_report(
    uri: str,
    out: str | None = None,
    evaluation_uri: str | None = None,
    truth: Sequence[str] = (),
    listener: Listener | None = None,
) -> Report:
    """Write one HTML page about a prediction, an evaluation, a training or an explanation.

    Args:
        uri: the sink of the job.
        out: URI of the page; None: `_cvbatch/report.html` in the sink.
        evaluation_uri: only for a prediction: the sink of its evaluation, shown with it.
        truth: only for a prediction: URIs of labelled Parquet to compare it with.
        listener: receives the progress.

    Raises:
        SourceError: the folder is not a sink of cvbatch, or is damaged.
        ConfigError: `out` is a folder, or an option does not apply to this job.
    """
    storage, uri = Storage(), store.absolute(uri)
    target = _target(uri, out, _DEFAULT)
    kind = _kind_of(storage, uri)
    if kind != "prediction" and (evaluation_uri or truth):
        raise ConfigError(
            f"--evaluation and --truth need a prediction, but {uri} is of kind {kind!r}; leave "
            "them out"
        )
    draft = _Draft(storage, uri, target, listener or Listener(), evaluation_uri, truth)
    return _write(draft, kind, _CONTENTS[kind](draft))


def _write(draft: _Draft, kind: str, content: _Content) -> Report:
    page = render_page(content.title, draft.uri, kind, content.sections)
    draft.storage.put_bytes(draft.target, page)
    return Report(kind, draft.uri, draft.target, len(page), content.num_images, draft.notes)


def write_comparison(
    uri_a: str, uri_b: str, out: str | None = None, listener: Listener | None = None
) -> Report:
    """Write one HTML page about the differences between two predictions.

    Args:
        uri_a: sink of the first prediction.
        uri_b: sink of the second one, whose images and predictions are shown.
        out: URI of the page; None: `_cvbatch/comparison.html` in `uri_b`.
        listener: receives the progress.

    Raises:
        SourceError: a folder is not the result of a prediction, or is damaged.
        ConfigError: `out` is a folder, or the results have no image in common.
    """
    storage = Storage()
    a, b = (Result(storage, uri, needs_rows=True) for uri in (uri_a, uri_b))
    target = _target(b.uri, out, _COMPARISON)
    draft = _Draft(storage, b.uri, target, listener or Listener())
    changes = find_changes(a, b, draft.listener)
    sections = comparison_page.sections(changes, draft.images, target, draft.listener)
    title = f"{format_count(len(changes.images), 'image')} of {changes.num_compared:,} changed"
    return _write(draft, "comparison", _Content(title, sections, changes.num_common))


def _target(uri: str, out: str | None, default: str) -> str:
    """Return the URI of the page. Raises ConfigError if it is a folder."""
    if out is None:
        return store.join(uri, default)
    target = store.absolute(out)
    if store.Location.of(target).scheme == "file" and Path(target).is_dir():
        raise ConfigError(f"--out {out} is a folder; use a file name, such as {out}/report.html")
    return target


def _kind_of(storage: Storage, uri: str) -> str:
    """Return the kind of job that wrote a folder. Raises SourceError if none did."""
    state_files = {
        "evaluation": [evaluation_page.STATE],
        "training": [training_page.STATE, "history.parquet"],
        "explanation": [explanation_page.STATE],
        "prediction": ["_cvbatch/job.json"],
    }
    try:
        for kind, names in state_files.items():
            if any(storage.exists(store.join(uri, name)) for name in names):
                return kind
        if storage.list_names(store.join(uri, "_cvbatch/manifest")):
            return "prediction"
    except (NotFoundError, AccessDeniedError) as error:
        raise SourceError(f"the source cannot be read: {error}") from None
    raise SourceError(
        store.missing_path(uri)
        or f"{uri} contains no result; use the sink of `cvbatch predict`, `evaluate`, `train` or "
        "`explain`"
    )


def _training_content(draft: _Draft) -> _Content:
    training = training_page.load(draft.storage, draft.uri)
    title = f"Training, {format_count(len(training.history), 'epoch')}"
    return _Content(title, training_page.sections(training))


def _explanation_content(draft: _Draft) -> _Content:
    explanation = explanation_page.load(draft.storage, draft.uri)
    title = f"Explanation of {format_count(explanation.num_images, 'image')}"
    sections = explanation_page.sections(explanation, draft.images)
    return _Content(title, sections, explanation.num_images)


def _prediction_content(draft: _Draft) -> _Content:
    prediction = _load_prediction(draft.storage, draft.uri, draft.listener)
    comparison, scores = _compare(draft, prediction)
    sections = _prediction_sections(draft, prediction, comparison, scores)
    num_networks = len(prediction.result.metadata.get("models", []))
    images = format_count(prediction.num_images, "image")
    title = f"{images}, {format_count(num_networks, 'network')}"
    return _Content(title, sections, prediction.num_images)


def _load_prediction(storage: Storage, uri: str, listener: Listener) -> Prediction:
    result = Result(storage, uri)
    runs = tuple(islice(latest(storage, result.uri), _MAX_RUNS))
    statistics = collect_statistics(result, listener)
    return Prediction(result, statistics, runs, *choose_rows(result, statistics))


def _compare(draft: _Draft, prediction: Prediction) -> tuple[Comparison | None, list[Section]]:
    """Return the comparison with labels and the sections of the evaluation, as requested."""
    evaluation_uri, truth = draft.evaluation_uri, draft.truth
    if (truth or evaluation_uri) and not prediction.statistics.num_rows:
        draft.notes.append(
            "The result has no rows yet, so it cannot be compared with ground truth."
        )
        return None, []
    if evaluation_uri is None:
        return (_compare_with_truth(prediction, truth, {}) if truth else None), []
    evaluation = evaluation_page.load(prediction.result.storage, evaluation_uri)
    identity = evaluation.state.get("predictions", {}).get("identity")
    if identity != prediction.result.identity:
        raise ConfigError(
            f"--evaluation {evaluation_uri} does not match the current state of "
            f"{prediction.result.uri}: it is of {evaluation.predictions}; evaluate this result"
        )
    sections = evaluation_page.sections(evaluation, draft.images)
    if truth:
        options = evaluation.state.get("evaluation", {})
        return _compare_with_truth(prediction, truth, options), sections
    return _compare_with_evaluation(prediction, evaluation, draft.notes), sections


def _compare_with_labels(
    prediction: Prediction,
    label_uris: Sequence[str],
    splits: Sequence[str] | None,
    options: dict[str, Any],
) -> Comparison:
    """Compare the rows of the gallery with labels; options: an `evaluation` section."""
    is_part = is_sample(prediction.statistics)
    return compare_with_labels(
        prediction.result, label_uris, splits, options, prediction.chosen, is_sample=is_part
    )


def _compare_with_truth(
    prediction: Prediction, truth: Sequence[str], options: dict[str, Any]
) -> Comparison:
    """Compare with the labels of --truth; options: an `evaluation` section."""
    try:
        return _compare_with_labels(prediction, truth, None, options)
    except ConfigError as error:
        raise ConfigError(
            f"--truth: {error}; or set it in a job file of cvbatch evaluate and use its sink as "
            "--evaluation"
        ) from None


def _compare_with_evaluation(
    prediction: Prediction, evaluation: evaluation_page.Evaluation, notes: list[str]
) -> Comparison | None:
    """Compare with the labels of an evaluation; None if they are missing or were not used."""
    labels = evaluation.state.get("job", {}).get("truth")
    if not labels:  # only heatmaps were evaluated
        return None
    try:
        options = evaluation.state.get("evaluation", {})
        return _compare_with_labels(prediction, labels["uri"], labels.get("splits"), options)
    except CvbatchError as error:
        notes.append(f"No image is compared with its labels: {error}")
        return None


def _evaluation_content(draft: _Draft) -> _Content:
    """Return the sections of an evaluation, and of its prediction if that still exists."""
    evaluation = evaluation_page.load(draft.storage, draft.uri)
    scores = evaluation_page.sections(evaluation, draft.images)
    job_file = prediction_page.job_file_section(
        evaluation.state.get("job"), "evaluation-job", "Job file of the evaluation"
    )
    job_section = _not_none([job_file])
    num_images = int(evaluation.metrics.get("images", {}).get("images", 0))
    try:
        prediction = _load_prediction(draft.storage, evaluation.predictions, draft.listener)
    except CvbatchError as error:
        draft.notes.append(f"The prediction cannot be shown: {error}")
        note = Section("prediction", "Prediction", prediction_page.note_paragraphs(draft.notes))
        return _Content("Evaluation", [*scores, note, *job_section], num_images)
    comparison = _compare_with_evaluation(prediction, evaluation, draft.notes)
    sections = _prediction_sections(draft, prediction, comparison, scores)
    return _Content("Evaluation", [*sections, *job_section], num_images)


_CONTENTS = {
    "prediction": _prediction_content,
    "training": _training_content,
    "explanation": _explanation_content,
    "evaluation": _evaluation_content,
}


def _prediction_sections(
    draft: _Draft,
    prediction: Prediction,
    comparison: Comparison | None,
    scores: Sequence[Section],
) -> list[Section]:
    gallery = prediction_page.gallery_section(
        prediction, comparison, draft.images, draft.target, draft.listener
    )
    notes = prediction_page.note_paragraphs(draft.notes)
    gallery = gallery._replace(body=[*notes, *gallery.body])
    summary = prediction_page.summary_section(prediction)
    first = [*scores[:1], summary] if scores else [summary]
    rest = [
        gallery,
        *scores[1:],
        prediction_page.failures_section(
            prediction.statistics.failures, prediction.statistics.examples
        ),
        prediction_page.classes_section(prediction),
        vectors_section(prediction),
        prediction_page.runs_section(prediction),
        prediction_page.networks_section(prediction),
        prediction_page.job_file_section(prediction.result.job.get("job")),
    ]
    return [*first, *_not_none(rest)]


def _not_none(sections: Sequence[Section | None]) -> list[Section]:
    return [section for section in sections if section is not None]
