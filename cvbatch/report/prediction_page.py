"""Report sections of a prediction: counts, failures, gallery, throughput, networks, job file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

import yaml

from cvbatch.core.progress import Listener
from cvbatch.core.redaction import redact
from cvbatch.report import charts
from cvbatch.report.cards import CardStyle
from cvbatch.report.columns import COLUMN_PAGES, class_colours
from cvbatch.report.disagreements import Comparison
from cvbatch.report.facts import Facts
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
from cvbatch.report.samples import is_sample, read_cards
from cvbatch.report.statistics import NUM_BINS, RowRef, Statistics
from cvbatch.results.result import Result
from cvbatch.results.run_history import Run

MAX_CLASSES = 200  # rows of a table
_MAX_TEXT = 100_000  # characters of a job file


@dataclass(frozen=True)
class Prediction:
    """A result with its statistics, its run history, and the rows of the gallery."""

    result: Result
    statistics: Statistics
    runs: tuple[Run, ...]  # the latest first
    chosen: Sequence[RowRef]
    description: str  # how the rows were chosen

    @property
    def num_images(self) -> int:
        """Return the number of processed images, failed ones included.

        If only a sample of the part files was counted, tar files count with the sampled rows only.
        """
        planned = sum(ref.num_images for ref in self.result.done)
        num_rows = self.statistics.num_rows
        return num_rows if self.statistics.is_complete else max(planned, num_rows)


def summary_section(prediction: Prediction) -> Section:
    """Return the main figures, and how many rows were counted."""
    result, stats = prediction.result, prediction.statistics
    num_missing = len(result.missing)
    file_note = format_bytes(sum(result.sizes.values()))
    if num_missing:
        file_note += f", {num_missing:,} pending"
    failed_share = format_percent(stats.num_failed, stats.num_rows)
    files = f"{format_count(len(result.done), 'file')}, {file_note}"
    tiles = [
        ("Images", format_count(prediction.num_images), files),
        ("Failed", format_count(stats.num_failed), failed_share),
    ]
    for column, page in COLUMN_PAGES.items():
        if column in result.classes:
            tiles += page.tiles(result.classes[column], stats)
    if prediction.runs and prediction.runs[0].images_per_second:
        throughput = f"{prediction.runs[0].images_per_second:,.4g}"
        tiles.append(("Throughput", throughput, "images/s, last run"))
    notes = [paragraph(note, kind="note") for note in _summary_notes(prediction)]
    return Section("counts", "Summary", [metric_tiles(tiles), *notes])


def _summary_notes(prediction: Prediction) -> Iterator[str]:
    """Yield what is pending, was not read, is empty, or was not counted."""
    stats, num_missing = prediction.statistics, len(prediction.result.missing)
    if num_missing:
        verb = "is" if num_missing == 1 else "are"
        chunks = format_count(num_missing, "chunk")
        yield f"{chunks} of the job {verb} pending: run the same command again to resume."
    for run in prediction.runs[:1]:
        if run.ignored:
            names = redact(run.ignored.text)
            yield f"Files of the source that the last run did not read: {names}."
        if run.num_empty_heatmaps:
            total = format_count(run.num_heatmaps, "heatmap")
            yield f"{run.num_empty_heatmaps:,} of {total} of the last run are 0 everywhere."
    if not stats.is_complete:
        yield (
            f"Counted in {format_count(stats.num_rows, 'row')} of "
            f"{format_count(len(stats.sampled), 'file')}, a sample at equal distances of all "
            f"{format_count(stats.num_chunks)}."
        )


def failures_section(
    failures: Counter[str], examples: Mapping[str, Sequence[tuple[str, str]]]
) -> Section:
    """Return the failed images by stage and kind.

    Args:
        failures: "stage/kind" → images.
        examples: "stage/kind" → image id and message of some of them.
    """
    num_failed = failures.total()
    if not num_failed:
        return Section("failures", "Failures", [paragraph("No image failed.")])
    rows = []
    for kind, number in failures.most_common():
        shown = el("ul", {"class": "plain"})
        for image_id, message in examples.get(kind, ()):
            reason = el("span", {"class": "quiet"}, f": {shorten(redact(message), 300)}")
            shown.append(el("li", {}, name_element(image_id), reason))
        rows.append((kind, Cell(format_count(number), number / num_failed), shown))
    title = f"{format_count(num_failed, 'image')} failed, by stage and kind"
    return Section(
        "failures", "Failures", [table(title, ("kind", "images", "examples"), rows, "tn")]
    )


def classes_section(prediction: Prediction) -> Section | None:
    """Return the number of predictions of each class, and the distribution of scores."""
    stats, result = prediction.statistics, prediction.result
    histograms = [
        charts.histogram(page.score_title, stats.score_bins[page.counted_column], NUM_BINS)
        for page in COLUMN_PAGES.values()
        if stats.score_bins[page.counted_column]
        and stats.score_range[0] >= 0
        and stats.score_range[1] <= 1
    ]
    tables = [
        _class_table(prediction, column) for column in COLUMN_PAGES if column in result.classes
    ]
    body = [el("div", {"class": "charts"}, *histograms)] if histograms else []
    body += [el("div", {"class": "side-by-side"}, *tables)] if tables else []
    return Section("classes", "Classes", body) if body else None


def _class_table(prediction: Prediction, column: str) -> Element:
    """Return the number of images and elements of each class, the most frequent class first."""
    page, stats = COLUMN_PAGES[column], prediction.statistics
    names, num_images = prediction.result.classes[column], stats.num_images[page.counted_column]
    present = sorted((k for k in num_images if num_images[k]), key=lambda k: (-num_images[k], k))
    max_images = max(num_images.values(), default=1)
    head = ["class", "images" if page.has_one_class else "images with it"]
    head += [page.unit] if page.unit else []
    rows = []
    for k in present[:MAX_CLASSES]:
        image_cell = Cell(format_count(num_images[k]), num_images[k] / max_images)
        cells: list[Child | Cell] = [name_element(names[k]), image_cell]
        if page.unit:
            cells.append(format_count(stats.num_elements[page.counted_column][k]))
        rows.append(cells)
    of_all = f"{len(present):,} of {format_count(len(names), 'class', 'classes')} occur"
    more = "" if len(present) <= MAX_CLASSES else f", the {MAX_CLASSES} most frequent are listed"
    return table(f"{page.title}: {of_all}{more}", head, rows, "tnn")


def gallery_section(
    prediction: Prediction,
    comparison: Comparison | None,
    images: ByteBudget,
    page_uri: str,
    listener: Listener,
) -> Section:
    """Return the gallery.

    Args:
        prediction: the result.
        comparison: with labels, whose lowest agreement is shown too; None: there are none.
        images: limit of the bytes of all images.
        page_uri: of the page.
        listener: receives the number of drawn images.
    """
    result = prediction.result
    lowest, comparisons = (comparison.lowest, comparison.rows) if comparison else ((), {})
    shown = list(dict.fromkeys([*prediction.chosen, *lowest]))
    if not shown:
        return Section("gallery", "Images", [paragraph("There is no image to show.")])
    cards = read_cards(result, shown, comparisons, images)
    links_files = result.reader.format.key == ""
    style = CardStyle(class_colours(result.classes), page_uri, links_files)
    text = paragraph(f"Shown: {_description(prediction, comparison)}.")
    facts = Facts(is_multi_label=result.is_multi_label)
    body = gallery(cards, len(shown), style, facts, images, listener)
    return Section("gallery", "Images", [text, *body])


def _description(prediction: Prediction, comparison: Comparison | None) -> str:
    """Return which images are shown, as text."""
    text = prediction.description
    if comparison and comparison.lowest:
        text += (
            f", and the {len(comparison.lowest)} with the lowest agreement among "
            f"{format_count(comparison.num_searched)}"
        )
    if is_sample(prediction.statistics):
        text += f", of {format_count(prediction.num_images)} in the result"
    if comparison:
        text += f"; {format_count(len(comparison.rows))} of them have ground truth"
    return text


def runs_section(prediction: Prediction) -> Section | None:
    """Return images, failures and throughput of every run of the job."""
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
    title = f"Runs of the job, latest first ({len(rows)})"
    return Section("runs", "Throughput", [table(title, head, rows, "tnnnnn")])


def networks_section(prediction: Prediction) -> Section | None:
    """Return the networks of the job, with parameters and multiply-adds if they are known."""
    models = prediction.result.metadata.get("models", [])
    if not models:
        return None
    costs = prediction.result.job.get("networks")
    if not isinstance(costs, list) or [type(cost) for cost in costs] != [dict] * len(models):
        costs = [{}] * len(models)
    rows = []
    for model, cost in zip(models, costs, strict=True):
        height, width = model.get("input_size", (0, 0))
        rows.append(
            (
                name_element(redact(model["name"])),
                model["task"],
                f"{height} × {width}, {model.get('resize', '')}",
                format_count(len(model["classes"])),
                _integer(cost.get("parameters")),
                _integer(cost.get("multiply_adds")),
                el("code", {}, str(model.get("weights_sha256", ""))[:12]),
            )
        )
    head = ("network", "task", "input", "classes", "parameters", "multiply-adds", "weights")
    body = [table("Networks of the job", head, rows, "ttnnnn")]
    return Section("networks", "Networks", body)


def _integer(number: Any) -> str:
    return f"{number:,}" if isinstance(number, int) else "–"


def job_file_section(
    job: Mapping[str, Any] | None, key: str = "job", title: str = "Job file"
) -> Section | None:
    """Return a resolved job as YAML, without secrets."""
    if not job:
        return None
    text = redact(yaml.safe_dump(_without_nulls(job), sort_keys=False, allow_unicode=True))
    if len(text) > _MAX_TEXT:
        text = f"{text[:_MAX_TEXT]}\n# {len(text) - _MAX_TEXT:,} more characters\n"
    return Section(key, title, [code_block(text, f"{title}, resolved")])


def _without_nulls(value: Any) -> Any:
    """Return a job without the keys whose value is null: those that are not set."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def note_paragraphs(messages: Sequence[str]) -> list[Element]:
    """Return messages about missing content as paragraphs."""
    return [paragraph(redact(shorten(message, 600)), kind="note") for message in messages]
