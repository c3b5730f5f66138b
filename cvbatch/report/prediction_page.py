"""Sections about a prediction: counts, failures, gallery, throughput, networks, job file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

import yaml

from cvbatch.core.redaction import hidden
from cvbatch.report import charts
from cvbatch.report.columns import COLUMN_PAGES, class_colours
from cvbatch.report.disagreements import Comparison
from cvbatch.report.gallery import gallery
from cvbatch.report.html import (
    Cell,
    Child,
    Section,
    code_block,
    el,
    format_bytes,
    format_count,
    format_duration,
    format_percent,
    metric_tiles,
    name_element,
    paragraph,
    shorten,
    table,
)
from cvbatch.report.overlays import ByteBudget
from cvbatch.report.samples import read_cards
from cvbatch.report.statistics import NUM_BINS, RowRef, Statistics
from cvbatch.results.result import Result
from cvbatch.results.run_history import Run

MAX_CLASSES = 200  # rows of a table
_SHOWN_OF_CLASSES = 48  # images that show the classes
_MAX_TEXT = 100_000  # characters of a job file
_GROUPS = {
    "truth": "Differs most from the truth",
    "class": "Some of each class",
    "low": "Least certain",
    "any": "Some images",
}


@dataclass(frozen=True)
class Prediction:
    """A result and what a page shows of it."""

    result: Result
    statistics: Statistics
    runs: tuple[Run, ...]  # the last ones, the last first

    @property
    def num_images(self) -> int:
        """Return how many images are done, failed ones too; of tars those of the sample."""
        planned = sum(ref.num_images for ref in self.result.done)
        num_rows = self.statistics.num_rows
        return num_rows if self.statistics.is_complete else max(planned, num_rows)


def summary_section(prediction: Prediction) -> Section:
    """Return the main figures, and how many rows they were counted in."""
    result, stats = prediction.result, prediction.statistics
    num_missing = len(result.missing)
    figures = [
        ("Images", format_count(prediction.num_images), ""),
        (
            "Failed",
            format_count(stats.num_failed),
            format_percent(stats.num_failed, stats.num_rows),
        ),
        (
            "Files",
            format_count(len(result.done)),
            format_bytes(sum(result.sizes.values()))
            + (f", {num_missing:,} to do" if num_missing else ""),
        ),
    ]
    for column, page in COLUMN_PAGES.items():
        if page.unit and column in result.classes:
            elements = stats.num_elements[page.counted_column].total()
            ok = max(stats.num_rows - stats.num_failed, 1)
            figures.append((page.title, format_count(elements), f"{elements / ok:.3g} an image"))
    if prediction.runs and prediction.runs[0].images_per_second:
        speed = f"{prediction.runs[0].images_per_second:,.4g}"
        figures.append(("Speed", speed, "images/s, last run"))
    body = [metric_tiles(figures)]
    if num_missing:
        body.append(
            paragraph(
                f"{format_count(num_missing, 'chunk')} of the job {'is' if num_missing == 1 else 'are'} "
                "not done: run the same command again to go on.", kind="note"
            )
        )  # fmt: skip
    if not stats.is_complete:
        body.append(
            paragraph(
                f"Counted in {format_count(stats.num_rows, 'row')} of "
                f"{format_count(len(stats.sampled), 'file')}, spread evenly over all "
                f"{format_count(stats.num_chunks)}.", kind="note"
            )
        )  # fmt: skip
    return Section("summary_section", "At a glance", body)


def failures_section(prediction: Prediction) -> Section:
    """Return the failed images by kind, with some examples of each."""
    stats = prediction.statistics
    if not stats.num_failed:
        return Section("failures_section", "Failures", [paragraph("No image failed.")])
    rows = []
    for kind, number in stats.failures.most_common():
        examples = el("ul", {"class": "plain"})
        for image_id, message in stats.examples.get(kind, []):
            reason = el("span", {"class": "quiet"}, f": {shorten(hidden(message), 300)}")
            examples.append(el("li", {}, name_element(image_id), reason))
        rows.append((kind, Cell(format_count(number), number / stats.num_failed), examples))
    title = f"{format_count(stats.num_failed, 'image')} failed, by stage and kind"
    return Section(
        "failures_section", "Failures", [table(title, ("kind", "images", "such as"), rows, "tn")]
    )


def classes_section(prediction: Prediction) -> Section | None:
    """Return how often each class was predicted, and the distribution of scores."""
    stats, body, tables = prediction.statistics, list[Element](), list[Element]()
    class_tables = prediction.result.classes
    drawn = [
        charts.histogram(page.score_title, stats.score_bins[page.counted_column], NUM_BINS)
        for page in COLUMN_PAGES.values()
        if stats.score_bins[page.counted_column]
        and stats.score_range[0] >= 0
        and stats.score_range[1] <= 1
    ]
    if drawn:
        body.append(el("div", {"class": "charts"}, *drawn))
    for column, page in COLUMN_PAGES.items():
        if column not in class_tables:
            continue
        names, num_images = class_tables[column], stats.num_images[page.counted_column]
        order = sorted(range(len(names)), key=lambda k: (-num_images[k], k))[:MAX_CLASSES]
        most = max(num_images.values(), default=1)
        head = ["class", "images" if page.has_one_class else "images with it"]
        head += [page.unit] if page.unit else []
        rows = []
        for k in order:
            share_of_most = num_images[k] / most
            cells: list[Child | Cell] = [
                name_element(names[k]),
                Cell(format_count(num_images[k]), share_of_most),
            ]
            if page.unit:
                cells.append(format_count(stats.num_elements[page.counted_column][k]))
            rows.append(cells)
        more = "" if len(names) <= MAX_CLASSES else f" ({MAX_CLASSES} of {len(names):,} classes)"
        tables.append(table(f"{page.title}{more}", head, rows, "tnn"))
    if tables:
        body.append(el("div", {"class": "side-by-side"}, *tables))
    return Section("classes_section", "Classes", body) if body else None


def gallery_section(
    prediction: Prediction, compared: Comparison | None, budget: ByteBudget
) -> Section:
    """Return the gallery."""
    differing = compared.most_different if compared else {}
    cards = read_cards(prediction.result, _picks(prediction, differing), differing)
    body = []
    if compared is not None:
        body.append(
            paragraph(
                f"{format_count(compared.num_compared)} of {format_count(compared.num_images, 'image')} that "
                f"are on both sides were compared, image by image; the {len(differing)} that "
                "differ most are here."
            )
        )
    return Section(
        "gallery",
        "Gallery",
        [*body, *gallery(cards, _GROUPS, class_colours(prediction.result.classes), budget)],
    )


def _picks(prediction: Prediction, differing: Collection[RowRef]) -> dict[RowRef, set[str]]:
    """Return the rows to show, each with the groups of the gallery that it is in."""
    stats = prediction.statistics
    groups = {
        "truth": differing,
        "class": _of_classes(prediction),
        "low": stats.least_confident_rows(),
    }
    if not any(groups.values()):
        groups = {"any": stats.first_rows[:_SHOWN_OF_CLASSES]}
    picks: dict[RowRef, set[str]] = {}
    for group, rows in groups.items():
        for pick in rows:
            picks.setdefault(pick, set()).add(group)
    return picks


def _of_classes(prediction: Prediction) -> list[RowRef]:
    """Return rows that show the classes of the first column that has any."""
    for column, page in COLUMN_PAGES.items():
        by_class = prediction.statistics.rows_of_class(page.counted_column)
        if column in prediction.result.classes and by_class:
            num_images = prediction.statistics.num_images[page.counted_column]
            order = sorted(by_class, key=lambda k: (-num_images[k], k))[:_SHOWN_OF_CLASSES]
            per_class = max(1, _SHOWN_OF_CLASSES // len(order))
            return list(dict.fromkeys(pick for k in order for pick in by_class[k][:per_class]))
    return []


def runs_section(prediction: Prediction) -> Section | None:
    """Return the images, failures and throughput of every run of the job."""
    if not prediction.runs:
        return None
    fastest = max(run.images_per_second for run in prediction.runs) or 1
    rows = [
        (
            f"{run.ended:%Y-%m-%d %H:%M:%S}",
            format_count(run.num_images),
            format_count(run.num_failed),
            format_count(run.num_chunks),
            format_duration(run.seconds),
            Cell(f"{run.images_per_second:,.4g}", run.images_per_second / fastest),
        )
        for run in prediction.runs
    ]
    head = ("ended (UTC)", "images", "failed", "chunks", "time", "images/s")
    title = f"Runs of the job, the last one first ({len(rows)})"
    return Section("runs", "Throughput", [table(title, head, rows, "tnnnnn")])


def networks_section(prediction: Prediction) -> Section | None:
    """Return the networks of the job with their parameters and multiply-adds, where known."""
    models = prediction.result.metadata.get("models", [])
    if not models:
        return None
    costs = prediction.result.job.get("networks_section")
    if not isinstance(costs, list) or [type(one) for one in costs] != [dict] * len(models):
        costs = [{}] * len(models)
    rows = []
    for model, cost in zip(models, costs, strict=True):
        height, width = model.get("input_size", (0, 0))
        rows.append(
            (
                name_element(hidden(model["name"])),
                model["task"],
                f"{height} × {width}, {model.get('resize', '')}",
                format_count(len(model["classes_section"])),
                _whole(cost.get("parameters")),
                _whole(cost.get("multiply_adds")),
                el("code", {}, str(model.get("weights_sha256", ""))[:12]),
            )
        )
    head = ("network", "task", "input", "classes_section", "parameters", "multiply-adds", "weights")
    body = [table("Networks of the job", head, rows, "ttnnnn")]
    return Section("networks_section", "Networks", body)


def _whole(number: Any) -> str:
    return f"{number:,}" if isinstance(number, int) else "–"


def job_file_section(
    job: Mapping[str, Any] | None, key: str = "job", title: str = "Job file"
) -> Section | None:
    """Return a resolved job as YAML, with secrets hidden."""
    if not job:
        return None
    text = hidden(yaml.safe_dump(_without_nulls(job), sort_keys=False, allow_unicode=True))
    if len(text) > _MAX_TEXT:
        text = f"{text[:_MAX_TEXT]}\n# {len(text) - _MAX_TEXT:,} characters more\n"
    return Section(key, title, [code_block(text, f"{title}, resolved")])


def _without_nulls(value: Any) -> Any:
    """Return a job without the keys that are null: those that were not given."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def note_paragraphs(messages: Sequence[str]) -> list[Element]:
    """Return what is missing on the page, and why, as paragraphs."""
    return [paragraph(hidden(shorten(one, 600)), kind="note") for one in messages]
