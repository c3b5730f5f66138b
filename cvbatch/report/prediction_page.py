"""The parts of a page that are about a prediction: counts, failures, pictures, speed, networks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

import yaml

from cvbatch.core.redaction import hidden
from cvbatch.report import charts
from cvbatch.report.disagreements import Comparison
from cvbatch.report.gallery import gallery, tints_of
from cvbatch.report.html import (
    Cell,
    Child,
    Section,
    count,
    duration,
    el,
    listing,
    name,
    paragraph,
    share,
    shortened,
    size,
    table,
    tiles,
)
from cvbatch.report.overlays import Budget
from cvbatch.report.samples import read_cards
from cvbatch.report.statistics import BINS, Pick, Survey
from cvbatch.results.result import Result
from cvbatch.results.run_history import Run

MAX_CLASSES = 200  # rows of a table
_SHOWN_OF_CLASSES = 48  # images that show the classes
_MAX_TEXT = 100_000  # characters of a job file
_COLUMNS = {"labels": "labels", "boxes": "boxes", "mask_areas": "mask"}  # → that has its classes
_GROUPS = {
    "truth": "Differs most from the truth",
    "class": "Some of each class",
    "low": "Least certain",
    "any": "Some images",
}


@dataclass(frozen=True)
class Prediction:
    """A result, as far as a page looks into it."""

    result: Result
    survey: Survey
    classes: dict[str, tuple[str, ...]]  # of labels, boxes and mask
    runs: tuple[Run, ...]  # the last ones, the last first

    @property
    def num_images(self) -> int:
        """Return how many images are done, those that failed too; of tars those looked at."""
        planned = sum(ref.num_images for ref in self.result.parts.done)
        return self.survey.num_rows if self.survey.has_all else max(planned, self.survey.num_rows)


def counts(found: Prediction) -> Section:
    """Return the figures at a glance, and where what is counted was counted."""
    parts, seen = found.result.parts, found.survey
    kept = sum(parts.sizes.get(parts.uri_of(ref).rpartition("/")[2], 0) for ref in parts.done)
    left = len(parts.missing)
    figures = [
        ("Images", count(found.num_images), ""),
        ("Failed", count(seen.num_failed), share(seen.num_failed, seen.num_rows)),
        ("Files", count(len(parts.done)), f"{size(kept)}" + (f", {left:,} to do" if left else "")),
    ]
    boxes = sum(seen.found.get("boxes", {}).values())
    if "boxes" in found.classes:
        ok = max(seen.num_rows - seen.num_failed, 1)
        figures.append(("Boxes", count(boxes), f"{boxes / ok:.3g} an image"))
    if found.runs and found.runs[0].images_per_second:
        speed = f"{found.runs[0].images_per_second:,.4g}"
        figures.append(("Speed", speed, "images/s, last run"))
    body = [tiles(figures)]
    if left:
        body.append(
            paragraph(
                f"{count(left, 'chunk')} of the job {'is' if left == 1 else 'are'} not done: run "
                "the same command again to go on.", kind="note"
            )
        )  # fmt: skip
    if not seen.has_all:
        body.append(
            paragraph(
                f"Counted in {count(seen.num_rows, 'row')} of {count(len(seen.files), 'file')}, "
                f"spread evenly over all {count(seen.num_files)}.", kind="note"
            )
        )  # fmt: skip
    return Section("counts", "At a glance", body)


def failures(found: Prediction) -> Section:
    """Return what failed, by kind, with some images of each."""
    seen = found.survey
    if not seen.num_failed:
        return Section("failures", "Failures", [paragraph("No image failed.")])
    rows = []
    for kind, number in seen.failures.most_common():
        examples = el("ul", {"class": "plain"})
        for image_id, message in seen.examples.get(kind, []):
            said = el("span", {"class": "quiet"}, f": {shortened(hidden(message), 300)}")
            examples.append(el("li", {}, name(image_id), said))
        rows.append((kind, Cell(count(number), number / seen.num_failed), examples))
    title = f"{count(seen.num_failed, 'image')} failed, by stage and kind"
    return Section(
        "failures", "Failures", [table(title, ("kind", "images", "such as"), rows, "tn")]
    )


def classes(found: Prediction) -> Section | None:
    """Return how often each class was found, and how sure the models were."""
    seen, body, tables = found.survey, list[Element](), list[Element]()
    drawn = [
        charts.histogram(title, seen.scores[column], BINS)
        for column, title in (("labels", "Score of the best label"), ("boxes", "Scores of boxes"))
        if column in seen.scores and seen.score_range[0] >= 0 and seen.score_range[1] <= 1
    ]
    if drawn:
        body.append(el("div", {"class": "charts"}, *drawn))
    titles = {
        "labels": ("Best labels", ("class", "images")),
        "boxes": ("Boxes", ("class", "images with it", "boxes")),
        "mask_areas": ("Masks", ("class", "images with it")),
    }
    for column, of in _COLUMNS.items():
        if of not in found.classes:
            continue
        names = found.classes[of]
        with_it = seen.images_with.get(column, Counter[int]())
        order = sorted(range(len(names)), key=lambda k: (-with_it[k], k))[:MAX_CLASSES]
        most = max(with_it.values(), default=1)
        title, head = titles[column]
        rows = []
        for k in order:
            cells: list[Child | Cell] = [name(names[k]), Cell(count(with_it[k]), with_it[k] / most)]
            if column == "boxes":
                cells.append(count(seen.found.get(column, Counter[int]())[k]))
            rows.append(cells)
        more = "" if len(names) <= MAX_CLASSES else f" ({MAX_CLASSES} of {len(names):,} classes)"
        tables.append(table(f"{title}{more}", head, rows, "tnn"))
    if tables:
        body.append(el("div", {"class": "side-by-side"}, *tables))
    return Section("classes", "Classes", body) if body else None


def pictures(found: Prediction, compared: Comparison | None, budget: Budget) -> Section:
    """Return the gallery."""
    picks = _picks(found, compared)
    against = {}
    if compared is not None:
        refs = {found.result.parts.uri_of(ref): ref for ref in found.result.parts.done}
        against = {Pick(refs[uri], row): one for uri, row, one in compared.found if uri in refs}
    cards = read_cards(found.result, picks, against)
    body = []
    if compared is not None:
        body.append(
            paragraph(
                f"{count(compared.num_compared)} of {count(compared.num_images, 'image')} that "
                f"are on both sides were compared, image by image; the {len(compared.found)} that "
                "differ most are here."
            )
        )
    return Section(
        "gallery", "Gallery", [*body, *gallery(cards, _GROUPS, tints_of(found.classes), budget)]
    )


def _picks(found: Prediction, compared: Comparison | None) -> dict[Pick, set[str]]:
    """Return the rows to show, each with the samples it belongs to."""
    picks: dict[Pick, set[str]] = {}
    parts = found.result.parts
    if compared is not None:
        refs = {parts.uri_of(ref): ref for ref in parts.done}
        for uri, row, _ in compared.found:
            if uri in refs:
                picks.setdefault(Pick(refs[uri], row), set()).add("truth")
    for pick in _of_classes(found):
        picks.setdefault(pick, set()).add("class")
    for pick in found.survey.picks_lowest():
        picks.setdefault(pick, set()).add("low")
    if not picks:
        for ref in found.survey.files[:_SHOWN_OF_CLASSES]:
            picks.setdefault(Pick(ref, 0), set()).add("any")
    return picks


def _of_classes(found: Prediction) -> list[Pick]:
    """Return rows that show the classes, those of the first column that names any."""
    chosen: list[Pick] = []
    for column, of in _COLUMNS.items():
        by_class = found.survey.picks_of_class(column)
        if of not in found.classes or not by_class:
            continue
        with_it = found.survey.images_with[column]
        order = sorted(by_class, key=lambda k: (-with_it[k], k))[:_SHOWN_OF_CLASSES]
        each = max(1, _SHOWN_OF_CLASSES // len(order))
        chosen += [pick for k in order for pick in by_class[k][:each]]
        break
    return list(dict.fromkeys(chosen))


def speed(found: Prediction) -> Section | None:
    """Return what every run of the job did, and how fast."""
    if not found.runs:
        return None
    fastest = max(run.images_per_second for run in found.runs) or 1
    rows = [
        (
            f"{run.ended:%Y-%m-%d %H:%M:%S}",
            count(run.num_images),
            count(run.num_failed),
            count(run.num_chunks),
            duration(run.seconds),
            Cell(f"{run.images_per_second:,.4g}", run.images_per_second / fastest),
        )
        for run in found.runs
    ]
    head = ("ended (UTC)", "images", "failed", "chunks", "time", "images/s")
    title = f"Runs of the job, the last one first ({len(rows)})"
    return Section("runs", "Throughput", [table(title, head, rows, "tnnnnn")])


def networks(found: Prediction) -> Section | None:
    """Return the networks of the job with what they cost, as far as it was counted."""
    models = found.result.metadata.get("models", [])
    if not models:
        return None
    costs = (found.result.job or {}).get("networks")
    if not isinstance(costs, list) or [type(one) for one in costs] != [dict] * len(models):
        costs = [{}] * len(models)
    rows = []
    for model, cost in zip(models, costs, strict=True):
        height, width = model.get("input_size", (0, 0))
        rows.append(
            (
                name(hidden(model["name"])),
                model["task"],
                f"{height} × {width}, {model.get('resize', '')}",
                count(len(model["classes"])),
                _whole(cost.get("parameters")),
                _whole(cost.get("multiply_adds")),
                el("code", {}, str(model.get("weights_sha256", ""))[:12]),
            )
        )
    head = ("network", "task", "input", "classes", "parameters", "multiply-adds", "weights")
    body = [table("Networks of the job", head, rows, "ttnnnn")]
    return Section("networks", "Networks", body)


def _whole(number: Any) -> str:
    return f"{number:,}" if isinstance(number, int) else "–"


def job_file(
    job: Mapping[str, Any] | None, key: str = "job", title: str = "Job file"
) -> Section | None:
    """Return a resolved job as YAML, without anything secret."""
    if not job:
        return None
    text = hidden(yaml.safe_dump(_said(job), sort_keys=False, allow_unicode=True))
    if len(text) > _MAX_TEXT:
        text = f"{text[:_MAX_TEXT]}\n# {len(text) - _MAX_TEXT:,} characters more\n"
    return Section(key, title, [listing(text, f"{title}, resolved")])


def _said(value: Any) -> Any:
    """Return a job without the keys that are null: those that were not said."""
    if isinstance(value, Mapping):
        return {key: _said(one) for key, one in value.items() if one is not None}
    return [_said(one) for one in value] if isinstance(value, list) else value


def notes(said: Sequence[str]) -> list[Element]:
    """Return what the page lacks, and why."""
    return [paragraph(hidden(shortened(one, 600)), kind="note") for one in said]
