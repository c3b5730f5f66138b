"""A folder becomes a page: what lies in it is found, looked into, and written as one HTML file."""

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
from cvbatch.core.redaction import hidden
from cvbatch.core.version import __version__
from cvbatch.report import evaluation_page, prediction_page, training_page
from cvbatch.report.disagreements import Comparison, compare
from cvbatch.report.html import Section, count, el, paragraph, shortened
from cvbatch.report.overlays import Budget
from cvbatch.report.prediction_page import Prediction
from cvbatch.report.statistics import collect_statistics
from cvbatch.results.result import Result
from cvbatch.results.run_history import latest
from cvbatch.storage import store
from cvbatch.storage.store import Storage

PICTURE_BYTES = 12_000_000  # a third more as text; with all else a page stays below 25 MB
_DEFAULT = "_cvbatch/report.html"
_MAX_RUNS = 40  # shown


@dataclass(frozen=True)
class Report:
    """What was written, and what it is about."""

    kind: str  # prediction | evaluation | training
    source: str
    report: str
    num_bytes: int
    num_images: int
    notes: list[str]  # what the page lacks, and why

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return asdict(self)


def write_report(
    uri: str,
    out: str | None = None,
    evaluation_uri: str | None = None,
    truth: Sequence[str] = (),
) -> Report:
    """Write a page over a prediction, an evaluation or a training; return where it is.

    out: a file, here or in a store; None: `_cvbatch/report.html` in the folder itself.
    evaluation_uri, truth: of a prediction, its evaluation, or labelled Parquet to hold it against.

    Raises:
        SourceError: the folder holds none of them, or what it holds is damaged.
        ConfigError: `out` is a folder, or what is asked for is about something else.
    """
    storage, uri = Storage(), store.absolute(uri)
    target = store.join(uri, _DEFAULT) if out is None else store.absolute(out)
    if store.Location.of(target).scheme == "file" and Path(target).is_dir():
        raise ConfigError(f"--out {out} is a folder; name a file in it, such as report.html")
    kind = _kind_of(storage, uri)
    if kind != "prediction" and (evaluation_uri or truth):
        raise ConfigError(
            f"--evaluation and --truth are about a prediction, and {uri} holds a {kind}; leave "
            "them out"
        )
    budget, notes, num_images = Budget(PICTURE_BYTES), list[str](), 0
    if kind == "training":
        trained = training_page.find(storage, uri)
        made = training_page.sections(trained)
        title = f"A training of {count(len(trained.history), 'epoch')}"
    elif kind == "evaluation":
        made, num_images = _of_evaluation(evaluation_page.find(storage, uri), budget, notes)
        title = "Predictions against the truth"
    else:
        found = _prediction(storage, uri)
        compared, scores = _against(found, evaluation_uri, truth, budget, notes)
        made = _of_prediction(found, compared, scores, budget, notes)
        num_images, num_models = found.num_images, len(found.result.metadata.get("models", []))
        title = f"{count(num_images, 'image')} through {count(num_models, 'network')}"
    page = compose(title, uri, kind, made)
    storage.put_bytes(target, page)
    return Report(kind, uri, target, len(page), num_images, notes)


def _kind_of(storage: Storage, uri: str) -> str:
    """Return what lies in a folder. Raises SourceError where it is nothing of cvbatch's."""
    marks = {
        "evaluation": [evaluation_page.STATE],
        "training": [training_page.STATE, "history.parquet"],
        "prediction": ["_cvbatch/job.json"],
    }
    try:
        for kind, names in marks.items():
            if any(storage.exists(store.join(uri, name)) for name in names):
                return kind
        if storage.list_names(store.join(uri, "_cvbatch/manifest")):
            return "prediction"
    except (NotFoundError, AccessDeniedError) as error:
        raise SourceError(f"the source cannot be read: {error}") from None
    raise SourceError(
        f"{uri} holds no result: name the sink of a `cvbatch predict`, `evaluate` or `train`"
    )


def _prediction(storage: Storage, uri: str) -> Prediction:
    result = Result(storage, uri)
    runs = tuple(islice(latest(storage, result.uri), _MAX_RUNS))
    return Prediction(result, collect_statistics(result), runs)


def _against(
    found: Prediction,
    evaluation_uri: str | None,
    truth: Sequence[str],
    budget: Budget,
    notes: list[str],
) -> tuple[Comparison | None, list[Section]]:
    """Return the images that differ from what was asked for as the truth, and the figures."""
    if (truth or evaluation_uri) and not found.statistics.num_rows:
        notes.append("The result holds no row yet: there is nothing to hold against the truth.")
        return None, []
    if evaluation_uri is None:
        return (_compare(found, truth, {}) if truth else None), []
    scored = evaluation_page.find(found.result.storage, evaluation_uri)
    identity = scored.state.get("predictions", {}).get("identity")
    if identity != found.result.identity:
        raise ConfigError(
            f"--evaluation {evaluation_uri} is about {scored.predictions} as it was then, not "
            f"about {found.result.uri} as it is; evaluate this result"
        )
    sections = evaluation_page.sections(scored, budget)
    if truth:
        said = scored.state.get("evaluation", {})
        return _compare(found, truth, said), sections
    return _compared(found, scored, notes), sections


def _compare(found: Prediction, truth: Sequence[str], said: dict[str, Any]) -> Comparison:
    """Return the images that differ from the truth that was asked for."""
    try:
        return compare(found.result, truth, None, said)
    except ConfigError as error:
        raise ConfigError(
            f"--truth: {error}; a job file of cvbatch evaluate can say it: then name its sink with "
            "--evaluation"
        ) from None


def _compared(
    found: Prediction, scored: evaluation_page.Evaluation, notes: list[str]
) -> Comparison | None:
    """Return the images that differ from the truth of an evaluation, where it still is."""
    job = scored.state.get("job", {}).get("truth")
    if not job:  # heatmaps were judged, and nothing else
        return None
    try:
        return compare(
            found.result,
            job["uri"],
            job.get("splits"),
            scored.state.get("evaluation", {}),
        )
    except CvbatchError as error:
        notes.append(f"No image is held against its truth here: {error}")
        return None


def _of_evaluation(
    scored: evaluation_page.Evaluation, budget: Budget, notes: list[str]
) -> tuple[list[Section], int]:
    """Return the sections of an evaluation, with those of its prediction where that still is."""
    scores = evaluation_page.sections(scored, budget)
    own = _present(
        [
            prediction_page.job_file(
                scored.state.get("job"), "evaluation-job", "Evaluation's job file"
            )
        ]
    )
    num_images = int(scored.metrics.get("images", {}).get("images", 0))
    try:
        found = _prediction(scored.storage, scored.predictions)
    except CvbatchError as error:
        notes.append(f"The prediction cannot be shown: {error}")
        extra = Section("prediction", "Prediction", prediction_page.notes(notes))
        return [*scores, extra, *own], num_images
    compared = _compared(found, scored, notes)
    return [*_of_prediction(found, compared, scores, budget, notes), *own], num_images


def _of_prediction(
    found: Prediction,
    compared: Comparison | None,
    scores: Sequence[Section],
    budget: Budget,
    notes: list[str],
) -> list[Section]:
    shown = prediction_page.pictures(found, compared, budget)
    shown = shown._replace(body=[*prediction_page.notes(notes), *shown.body])
    glance = prediction_page.counts(found)
    first = [*scores[:1], glance] if scores else [glance]
    rest = [
        shown,
        *scores[1:],
        prediction_page.failures(found),
        prediction_page.classes(found),
        prediction_page.speed(found),
        prediction_page.networks(found),
        prediction_page.job_file(found.result.job.get("job")),
    ]
    return [*first, *_present(rest)]


def _present(sections: Sequence[Section | None]) -> list[Section]:
    return [one for one in sections if one is not None]


def compose(title: str, where: str, kind: str, sections: Sequence[Section]) -> bytes:
    """Return the page. It loads nothing: style and script are in it, named by their hash."""
    files = resources.files("cvbatch.report")
    style, script = (files.joinpath(one).read_text("utf-8") for one in ("page.css", "page.js"))
    rules = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; "
        f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    head = el(
        "head",
        {},
        el("meta", {"charset": "utf-8"}),
        el("meta", {"http-equiv": "Content-Security-Policy", "content": rules}),
        el("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        el("meta", {"name": "color-scheme", "content": "light dark"}),
        el("title", {}, f"{title} · cvbatch"),
        el("style", {}, style),
    )
    menu = el("ul")
    for one in sections:
        menu.append(el("li", {}, el("a", {"href": f"#{one.key}"}, one.title)))
    top = el(
        "header",
        {"class": "top"},
        el("p", {"class": "kind"}, kind),
        el("h1", {}, title),
        el("p", {"class": "where"}, el("code", {}, shortened(hidden(where), 400))),
    )
    main = el("main", {"id": "main"}, *(_section(one) for one in sections))
    foot = el("footer", {}, paragraph(f"Written by cvbatch {__version__}. Nothing here is loaded."))
    body = el(
        "body",
        {"class": "show-boxes"},
        el("a", {"class": "skip", "href": "#main"}, "To the content"),
        top,
        el("nav", {"aria-label": "Sections"}, menu),
        main,
        foot,
        el("script", {}, script),
    )
    page = el("html", {"lang": "en"}, head, body)
    text = tostring(page, encoding="unicode", method="html")
    return f"<!doctype html>\n{text}\n".encode("utf-8", "replace")


def _section(one: Section) -> Element:
    heading = el("h2", {"id": f"{one.key}-title"}, one.title)
    said = {"id": one.key, "aria-labelledby": f"{one.key}-title"}
    return el("section", said, heading, *one.body)


def _hash(text: str) -> str:
    """Return what a content security policy names a piece of text by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
