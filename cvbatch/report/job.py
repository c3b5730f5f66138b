"""Write the HTML report of a prediction, an evaluation or a training."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, tostring

from cvbatch.core.errors import (
    AccessDeniedError,
    ConfigError,
    CvbatchError,
    NotFoundError,
    SourceError,
)
from cvbatch.core.progress import Listener
from cvbatch.core.redaction import redact
from cvbatch.core.version import __version__
from cvbatch.report import evaluation_page, prediction_page, training_page
from cvbatch.report.disagreements import Comparison, compare_with_labels
from cvbatch.report.html import Section, el, format_count, paragraph, shorten
from cvbatch.report.overlays import ByteBudget
from cvbatch.report.prediction_page import Prediction
from cvbatch.report.statistics import collect_statistics
from cvbatch.report.vectors import vectors_section
from cvbatch.results.result import Result
from cvbatch.results.run_history import latest
from cvbatch.storage import store
from cvbatch.storage.store import Storage

IMAGE_BYTES = 12_000_000  # 16 MB as base64; with everything else a page stays below 25 MB
_DEFAULT = "_cvbatch/report.html"
_MAX_RUNS = 40  # rows of the table


@dataclass(frozen=True)
class Report:
    """Summary of a written report."""

    kind: str  # prediction | evaluation | training
    source: str  # URI of the folder
    report: str  # URI of the page
    num_bytes: int
    num_images: int
    notes: list[str]  # about missing content

    def as_json(self) -> dict[str, Any]:
        """Return the summary as JSON-ready values."""
        return asdict(self)


def write_report(
    uri: str,
    out: str | None = None,
    evaluation_uri: str | None = None,
    truth: Sequence[str] = (),
    listener: Listener | None = None,
) -> Report:
    """Write one HTML page about a prediction, an evaluation or a training.

    Args:
        uri: the sink of the job.
        out: URI of the page; None: `_cvbatch/report.html` in the sink.
        evaluation_uri: only for a prediction: the sink of its evaluation, shown with it.
        truth: only for a prediction: URIs of labelled Parquet to compare it with.
        listener: receives the progress; None: nothing does.

    Raises:
        SourceError: the folder is not a sink of cvbatch, or is damaged.
        ConfigError: `out` is a folder, or an option does not apply to this job.
    """
    listener = listener or Listener()
    storage, uri = Storage(), store.absolute(uri)
    target = store.join(uri, _DEFAULT) if out is None else store.absolute(out)
    if store.Location.of(target).scheme == "file" and Path(target).is_dir():
        raise ConfigError(f"--out {out} is a folder; use a file name, such as {out}/report.html")
    kind = _kind_of(storage, uri)
    if kind != "prediction" and (evaluation_uri or truth):
        raise ConfigError(
            f"--evaluation and --truth need a prediction, but {uri} is of kind {kind!r}; leave "
            "them out"
        )
    budget, notes, num_images = ByteBudget(IMAGE_BYTES), list[str](), 0
    if kind == "training":
        training = training_page.load(storage, uri)
        sections = training_page.sections(training)
        title = f"Training, {format_count(len(training.history), 'epoch')}"
    elif kind == "evaluation":
        sections, num_images = _evaluation_sections(
            evaluation_page.load(storage, uri), budget, notes, listener
        )
        title = "Evaluation"
    else:
        prediction = _load_prediction(storage, uri, listener)
        listener.phase("drawing the report")
        comparison, scores = _compare(prediction, evaluation_uri, truth, budget, notes)
        sections = _prediction_sections(prediction, comparison, scores, budget, notes)
        num_images = prediction.num_images
        num_networks = len(prediction.result.metadata.get("models", []))
        title = f"{format_count(num_images, 'image')}, {format_count(num_networks, 'network')}"
    page = render_page(title, uri, kind, sections)
    storage.put_bytes(target, page)
    return Report(kind, uri, target, len(page), num_images, notes)


def _kind_of(storage: Storage, uri: str) -> str:
    """Return the kind of job that wrote a folder. Raises SourceError if none did."""
    state_files = {
        "evaluation": [evaluation_page.STATE],
        "training": [training_page.STATE, "history.parquet"],
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
        f"{uri} contains no result: use the sink of `cvbatch predict`, `evaluate` or `train`"
    )


def _load_prediction(storage: Storage, uri: str, listener: Listener) -> Prediction:
    result = Result(storage, uri)
    runs = tuple(islice(latest(storage, result.uri), _MAX_RUNS))
    return Prediction(result, collect_statistics(result, listener), runs)


def _compare(
    prediction: Prediction,
    evaluation_uri: str | None,
    truth: Sequence[str],
    budget: ByteBudget,
    notes: list[str],
) -> tuple[Comparison | None, list[Section]]:
    """Return the comparison with labels and the sections of the evaluation, as requested."""
    if (truth or evaluation_uri) and not prediction.statistics.num_rows:
        notes.append("The result has no rows yet, so it cannot be compared with ground truth.")
        return None, []
    if evaluation_uri is None:
        return (_compare_with_labels(prediction, truth, {}) if truth else None), []
    evaluation = evaluation_page.load(prediction.result.storage, evaluation_uri)
    identity = evaluation.state.get("predictions", {}).get("identity")
    if identity != prediction.result.identity:
        raise ConfigError(
            f"--evaluation {evaluation_uri} does not match the current state of "
            f"{prediction.result.uri}: it is of {evaluation.predictions}; evaluate this result"
        )
    sections = evaluation_page.sections(evaluation, budget)
    if truth:
        options = evaluation.state.get("evaluation", {})
        return _compare_with_labels(prediction, truth, options), sections
    return _compare_with_evaluation(prediction, evaluation, notes), sections


def _compare_with_labels(
    prediction: Prediction, truth: Sequence[str], options: dict[str, Any]
) -> Comparison:
    """Compare with the labels of --truth; options: an `evaluation` section."""
    try:
        return compare_with_labels(prediction.result, truth, None, options)
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
        return compare_with_labels(
            prediction.result,
            labels["uri"],
            labels.get("splits"),
            evaluation.state.get("evaluation", {}),
        )
    except CvbatchError as error:
        notes.append(f"No image is compared with its labels: {error}")
        return None


def _evaluation_sections(
    evaluation: evaluation_page.Evaluation,
    budget: ByteBudget,
    notes: list[str],
    listener: Listener,
) -> tuple[list[Section], int]:
    """Return the sections of an evaluation, and of its prediction if that still exists."""
    scores = evaluation_page.sections(evaluation, budget)
    job_file = prediction_page.job_file_section(
        evaluation.state.get("job"), "evaluation-job", "Job file of the evaluation"
    )
    job_section = _not_none([job_file])
    num_images = int(evaluation.metrics.get("images", {}).get("images", 0))
    try:
        prediction = _load_prediction(evaluation.storage, evaluation.predictions, listener)
    except CvbatchError as error:
        notes.append(f"The prediction cannot be shown: {error}")
        note = Section("prediction", "Prediction", prediction_page.note_paragraphs(notes))
        return [*scores, note, *job_section], num_images
    listener.phase("drawing the report")
    comparison = _compare_with_evaluation(prediction, evaluation, notes)
    sections = _prediction_sections(prediction, comparison, scores, budget, notes)
    return [*sections, *job_section], num_images


def _prediction_sections(
    prediction: Prediction,
    comparison: Comparison | None,
    scores: Sequence[Section],
    budget: ByteBudget,
    notes: list[str],
) -> list[Section]:
    gallery = prediction_page.gallery_section(prediction, comparison, budget)
    gallery = gallery._replace(body=[*prediction_page.note_paragraphs(notes), *gallery.body])
    summary = prediction_page.summary_section(prediction)
    first = [*scores[:1], summary] if scores else [summary]
    rest = [
        gallery,
        *scores[1:],
        prediction_page.failures_section(prediction),
        prediction_page.classes_section(prediction),
        vectors_section(prediction),
        prediction_page.runs_section(prediction),
        prediction_page.networks_section(prediction),
        prediction_page.job_file_section(prediction.result.job.get("job")),
    ]
    return [*first, *_not_none(rest)]


def _not_none(sections: Sequence[Section | None]) -> list[Section]:
    return [section for section in sections if section is not None]


def render_page(title: str, source: str, kind: str, sections: Sequence[Section]) -> bytes:
    """Return a self-contained HTML page.

    Style and script are embedded. The content security policy allows them by their hash and blocks
    everything else, so a page opened from an untrusted archive makes no request.

    Args:
        title: of the page.
        source: URI of the folder, shown without credentials.
        kind: of the job, shown above the title.
        sections: in order.
    """
    files = resources.files("cvbatch.report")
    style, script = (files.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    menu = el("ul")
    for section in sections:
        menu.append(el("li", {}, el("a", {"href": f"#{section.key}"}, section.title)))
    header = el(
        "header",
        {"class": "top"},
        el("p", {"class": "kind"}, kind),
        el("h1", {}, title),
        el("p", {"class": "where"}, el("code", {}, shorten(redact(source), 400))),
    )
    main = el("main", {"id": "main"}, *map(_section_element, sections))
    text = f"Written by cvbatch {__version__}. This page makes no requests."
    footer = el("footer", {}, paragraph(text))
    body = el(
        "body",
        {"class": "show-boxes"},
        el("a", {"class": "skip", "href": "#main"}, "Skip to content"),
        header,
        el("nav", {"aria-label": "Sections"}, menu),
        main,
        footer,
        el("script", {}, script),
    )
    page = el("html", {"lang": "en"}, _head(title, style, script), body)
    html = tostring(page, encoding="unicode", method="html")
    return f"<!doctype html>\n{html}\n".encode("utf-8", "replace")


def _head(title: str, style: str, script: str) -> Element:
    """Return the head of the page, with the content security policy and the style."""
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; "
        f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    return el(
        "head",
        {},
        el("meta", {"charset": "utf-8"}),
        el("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        el("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        el("meta", {"name": "color-scheme", "content": "light dark"}),
        el("title", {}, f"{title} · cvbatch"),
        el("style", {}, style),
    )


def _section_element(section: Section) -> Element:
    title_id = f"{section.key}-title"
    heading = el("h2", {"id": title_id}, section.title)
    attributes = {"id": section.key, "aria-labelledby": title_id}
    return el("section", attributes, heading, *section.body)


def _hash(text: str) -> str:
    """Return the hash source of an inline style or script for a content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
