"""The report in Chromium: no requests, controls, keyboard, contrast, small screens."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shutil

import cv2
import numpy as np
import pytest

BINARY = shutil.which("chromium") or shutil.which("chromium-browser")
KINDS = ("prediction", "evaluation", "training", "comparison", "explanation")
# Headless, without a sandbox and without background requests.
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 740}
TEXTS = (
    "h1", "h2", "nav a", ".kind", ".tiles dt", ".tiles span", "thead th", "tbody td", "footer p",
    ".card p", ".chips li", ".note", "pre",
)  # fmt: skip
LAYERS = ("boxes", "mask", "heatmap", "truth")
NUM_VISIBLE = "(all) => all.filter((e) => e.getBoundingClientRect().width > 0).length"


@pytest.fixture(scope="module")
def browser():
    if BINARY is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=BINARY, args=list(FLAGS))
        yield launched
        launched.close()


@pytest.fixture
def open_report(browser, pages):
    """Function that opens a report; requests and messages of the page are recorded on it."""
    contexts = []

    def open_kind(kind, viewport=DESKTOP, **options):
        context = browser.new_context(viewport=viewport, reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.requested_urls, page.messages = [], []
        page.on("request", lambda request: page.requested_urls.append(request.url))
        page.on("console", lambda message: page.messages.append(message.text))
        page.on("pageerror", lambda error: page.messages.append(str(error)))
        page.on("dialog", lambda dialog: (page.messages.append(dialog.message), dialog.dismiss()))
        page.goto(pages[kind].as_uri())
        return page

    yield open_kind
    for context in contexts:
        context.close()


def screenshot_of(page):
    """Return the pixels of all cards, also of those outside of the window."""
    page.evaluate("""() => {
        document.styleSheets[0].insertRule(".card { content-visibility: visible !important }", 0);
        return Promise.all([...document.images].map((image) => {
            image.loading = "eager";
            return image.decode();
        }));
    }""")
    return page.locator("#cards").screenshot(scale="css")


def num_visible(page, selector):
    return page.locator(selector).evaluate_all(NUM_VISIBLE)


@pytest.mark.parametrize("kind", KINDS)
def test_no_errors_and_no_requests(open_report, pages, kind):
    page = open_report(kind)
    for box in page.locator("[data-layer]").all():
        box.set_checked(True)
    page.evaluate("() => document.querySelectorAll('img').forEach((e) => { e.loading = 'eager'; })")
    page.wait_for_function("() => [...document.images].every((e) => e.complete)")
    urls = [url for url in page.requested_urls if not url.startswith("data:image/")]
    assert urls == [pages[kind].as_uri()]
    assert page.messages == []
    broken = "(all) => all.filter((e) => !e.complete || !e.naturalWidth).length"
    assert page.locator("img").evaluate_all(broken) == 0
    assert page.title().endswith("· cvbatch")  # no name was executed as a script


def test_requests_are_blocked(open_report):
    page = open_report("prediction")
    page.evaluate("""() => {
        const image = document.createElement("img");
        image.src = "http://127.0.0.1:9/x.png";
        document.body.append(image);
    }""")
    page.wait_for_function("() => [...document.images].at(-1).complete")
    assert any("Content Security Policy" in line for line in page.messages)
    assert page.evaluate("() => fetch('http://127.0.0.1:9/').then(() => 1, () => 0)") == 0


def test_every_layer_switch_changes_the_pixels(open_report):
    page = open_report("prediction")
    for layer in LAYERS:
        page.locator(f"[data-layer={layer}]").uncheck()
    page.locator("[data-layer=miss]").uncheck()
    shots = [screenshot_of(page)]
    for layer in LAYERS:
        assert num_visible(page, f".layer.{layer}") == 0
        page.locator(f"[data-layer={layer}]").check()
        assert num_visible(page, f".layer.{layer}") > 0
        shots.append(screenshot_of(page))
        page.locator(f"[data-layer={layer}]").uncheck()
    assert len(set(shots)) == 5
    assert screenshot_of(page) == shots[0]


def test_overlay_opacity_changes_the_pixels(open_report):
    page = open_report("prediction")
    page.locator("[data-layer=mask]").check()
    before = screenshot_of(page)
    page.locator("#strength").fill("0.3")
    assert screenshot_of(page) != before


def test_the_slider_hides_the_boxes_below_it(open_report):
    page = open_report("prediction")
    page.locator("#threshold").fill("0")
    scores = [box[1] for fact in facts_of(page) for box in fact["boxes"] or []]
    chips = page.locator("li.scored").evaluate_all(
        "(all) => all.map((e) => Number(e.dataset.score))"
    )
    boxes = ".boxes .box"
    assert num_visible(page, boxes) == len(chips) > len(scores) > 10
    before = screenshot_of(page)
    for minimum in (0.3, 0.5, 0.75, 1):
        page.locator("#threshold").fill(str(minimum))
        above = [score for score in chips if score >= minimum]
        assert num_visible(page, boxes) == len(above) < len(chips)
        assert page.locator("#threshold-value").text_content() == f"{minimum:.2f}"
    assert screenshot_of(page) != before
    assert num_visible(page, "ul[aria-label=Labels] li") == 2 * 15
    page.locator("#threshold").fill("0")
    assert screenshot_of(page) == before


def facts_of(page):
    return page.evaluate("() => JSON.parse(document.getElementById('facts').textContent).cards")


def classes_of(page):
    return page.evaluate("() => JSON.parse(document.getElementById('facts').textContent).classes")


def passes(fact, low, name="", class_index=None, status="", limits=(None, None)):
    """The filters of the page in Python."""
    scores = dict(fact["boxes"] or [])
    has_box = any(score >= low for score in scores.values())
    found = fact.get("found")
    is_status = {
        "": True,
        "ok": fact["status"] == "ok",
        "failed": fact["status"] == "failed",
        "correct": fact.get("correct") is True,
        "wrong": fact.get("correct") is False,
        "boxes": has_box,
        "no-boxes": fact["boxes"] is not None and not has_box,
        "false-positive": fact.get("false_positive") is not None and fact["false_positive"] >= low,
        "miss": fact.get("missed") or (found is not None and found < low),
    }
    in_class = class_index is None or (
        class_index in fact["classes"] or scores.get(class_index, -1) >= low
    )
    score, (first, last) = fact["score"], limits
    in_range = (first is None or (score is not None and score >= first)) and (
        last is None or (score is not None and score <= last)
    )
    return name.lower() in fact["id"].lower() and in_class and is_status[status] and in_range


SET_FILTERS = """(values) => {
    for (const [id, value] of Object.entries(values)) {
        const input = document.getElementById(id);
        input.value = value;
        input.dispatchEvent(new Event("input", { bubbles: true }));
    }
}"""


def shown_ids(page):
    return page.locator("#cards .card:not([hidden]) h3").all_text_contents()


def test_combined_filters_equal_brute_force(open_report):
    page = open_report("prediction")
    facts = facts_of(page)
    assert page.locator("#threshold").input_value() == "0.25"
    statuses = page.locator("#status option").evaluate_all("(all) => all.map((e) => e.value)")
    assert len(statuses) == 9
    combinations = itertools.product(
        ("", "I 0", "png"), (None, 0, 1), statuses, (0.25, 0.6), ((None, None), (0.5, 0.9))
    )
    counts = set()
    for name, class_index, status, low, limits in itertools.islice(combinations, 0, None, 7):
        first, last = ("" if limit is None else str(limit) for limit in limits)
        page.evaluate(SET_FILTERS, {
            "search": name, "class": "" if class_index is None else str(class_index),
            "status": status, "threshold": str(low), "from": first, "to": last,
        })  # fmt: skip
        expected = [f["id"] for f in facts if passes(f, low, name, class_index, status, limits)]
        assert sorted(shown_ids(page)) == sorted(expected), (name, class_index, status, low, limits)
        text = page.locator("#shown").text_content()
        assert text == f"{len(expected)} of {len(facts)} images shown"
        counts.add(len(expected))
    assert len(counts) > 5
    page.locator("button[type=reset]").click()
    page.wait_for_function("() => !document.querySelector('.card[hidden]')")


ORDERS = {
    "order": lambda fact: 0,
    "name": lambda fact: fact["id"],
    "agreement": lambda fact: last_if_none(fact.get("agreement")),
    "loss": lambda fact: last_if_none(fact.get("loss"), -1),
    "low": lambda fact: last_if_none(fact["score"]),
    "high": lambda fact: last_if_none(fact["score"], -1),
    "large": lambda fact: -fact["width"] * fact["height"],
    "small": lambda fact: fact["width"] * fact["height"],
}


def last_if_none(number, sign=1):
    return math.inf if number is None else sign * number


def test_every_order_equals_that_of_python(open_report):
    page = open_report("prediction")
    facts = facts_of(page)
    assert page.locator("#sort").input_value() == "agreement"
    for order, key in ORDERS.items():
        page.locator("#sort").select_option(order)
        assert shown_ids(page) == [fact["id"] for fact in sorted(facts, key=key)], order


def test_the_csv_is_the_list_that_is_shown(open_report, tmp_path):
    page = open_report("prediction")
    facts = {fact["id"]: fact for fact in facts_of(page)}
    page.locator("#status").select_option("wrong")
    page.locator("#sort").select_option("name")
    with page.expect_download() as download:
        page.locator("#csv").click()
    download.value.save_as(tmp_path / "list.csv")
    with (tmp_path / "list.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image_id"] for row in rows] == shown_ids(page)
    assert 0 < len(rows) < len(facts)
    for row in rows:
        fact = facts[row["image_id"]]
        for key in ("uri", "status", "predicted", "truth"):
            assert row[key] == fact[key]
        assert float(row["score"]) == fact["score"]
        assert float(row["agreement"]) == fact["agreement"]
        assert row["correct"] == "false"


def test_a_csv_field_is_not_run_as_a_formula(open_report):
    page = open_report("prediction")
    fields = page.evaluate("""() => ["=1+1", "@x", "-2", "+a", 'a"b', "a,b", -2, null, "x"]
        .map(csvField)""")
    assert fields == ["'=1+1", "'@x", "'-2", "'+a", '"a""b"', '"a,b"', "-2", "", "x"]


def test_a_cell_of_the_confusion_matrix_shows_its_images(open_report):
    page = open_report("evaluation")
    facts, classes = facts_of(page), classes_of(page)
    cells = page.locator("a.confusion")
    assert cells.count() > 8
    for cell in cells.all():
        cell.dispatch_event("click")
        column, true, predicted = json.loads(cell.get_attribute("data-cell"))
        key = [column, classes.index(true), classes.index(predicted) if predicted else -1]
        expected = [fact["id"] for fact in facts if key in fact.get("cells", [])]
        assert sorted(shown_ids(page)) == sorted(expected) != []
        if column == "labels":
            assert len(expected) == int(cell.text_content())
    assert page.locator("#cell").is_visible()
    page.locator("button[type=reset]").click()
    page.wait_for_function("() => !document.querySelector('.card[hidden]')")
    assert not page.locator("#cell").is_visible()


def test_the_colours_of_a_mask_are_those_of_the_legend(open_report):
    page = open_report("prediction")
    page.locator("[data-layer=boxes]").uncheck()
    page.locator("[data-layer=mask]").check()
    page.locator("#strength").fill("1")
    colours = {
        (item.text_content(), item.locator("rect").get_attribute("fill"))
        for item in page.locator(".legend li").all()
    }
    script = """(image) => { const canvas = document.createElement("canvas");
        canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
        const context = canvas.getContext("2d"); context.drawImage(image, 0, 0);
        const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
        const found = new Set();
        for (let i = 0; i < data.length; i += 4)
            if (data[i + 3]) found.add([...data.slice(i, i + 4)].join(","));
        return [...found]; }"""
    painted = set(page.locator("img.mask").first.evaluate(script))
    expected = {
        ",".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5)) + ",255"
        for name, colour in colours if name != "background"
    }  # fmt: skip
    assert painted == expected and len(painted) == 2


def test_outcomes_are_coloured_and_hidden_by_their_switches(open_report):
    page = open_report("prediction")
    page.locator("#threshold").fill("0")
    for outcome in ("tp", "fp"):
        assert num_visible(page, f".boxes .{outcome}") > 0
        page.locator(f"[data-layer={outcome}]").uncheck()
        assert num_visible(page, f".boxes .{outcome}") == 0
    page.locator("[data-layer=fp]").check()
    stroke = "(e) => getComputedStyle(e).stroke"
    edge = page.locator(".boxes .fp .edge").first
    by_outcome = edge.evaluate(stroke)
    page.locator("[data-layer=by-outcome]").uncheck()
    assert edge.evaluate(stroke) != by_outcome == "rgb(213, 94, 0)"


FOCUSABLE = """() => [...document.querySelectorAll(
    "a[href], button, input, select, summary, [tabindex]")]
    .filter((e) => e.checkVisibility())"""


@pytest.mark.parametrize("kind", KINDS)
def test_every_control_is_reached_by_keyboard(open_report, kind):
    page = open_report(kind)
    num_focusable = page.evaluate(f"() => ({FOCUSABLE})().length")
    page.evaluate("() => { window.focused = new Set(); }")
    for _ in range(num_focusable + 3):
        page.keyboard.press("Tab")
        page.evaluate("() => { window.focused.add(document.activeElement); }")
    html = "(e) => e.outerHTML.slice(0, 80)"
    missed = page.evaluate(
        f"() => ({FOCUSABLE})().filter((e) => !window.focused.has(e)).map({html})"
    )
    assert missed == []


def test_the_controls_work_by_keyboard(open_report):
    page = open_report("prediction")
    page.locator("[data-layer=mask]").focus()
    page.keyboard.press("Space")
    assert num_visible(page, "img.mask") > 0
    page.locator("#threshold").focus()
    page.keyboard.press("End")
    assert num_visible(page, ".boxes .box") == 0
    page.keyboard.press("Home")
    first = page.locator(".card .open").first
    first.focus()
    page.keyboard.press("Enter")
    viewer = page.locator("#viewer")
    assert viewer.is_visible()
    titles = [page.locator("#viewer h3").text_content()]
    page.keyboard.press("ArrowRight")
    titles.append(page.locator("#viewer h3").text_content())
    page.keyboard.press("ArrowLeft")
    assert page.locator("#viewer h3").text_content() == titles[0] != titles[1]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    assert not viewer.is_visible()
    focused = page.evaluate("() => document.activeElement.closest('.card').querySelector('h3')"
                            ".textContent")  # fmt: skip
    assert focused == titles[1]  # the last image that was enlarged


def test_the_viewer_enlarges_an_image_with_its_layers(open_report):
    page = open_report("prediction")
    card = page.locator(".card").first
    small = card.locator(".stage").bounding_box()
    card.locator(".open").click()
    stage = page.locator("#viewer .stage")
    large = stage.bounding_box()
    assert large["width"] * large["height"] > 3 * small["width"] * small["height"]
    before = stage.screenshot()
    page.evaluate("() => document.body.classList.add('show-heatmap')")
    assert stage.screenshot() != before
    page.get_by_label("Close").click()
    assert not page.locator("#viewer").is_visible()


NOT_SCROLLED_BY_KEYBOARD = """() => [...document.querySelectorAll("main *")].filter((e) =>
    e.scrollWidth > e.clientWidth && getComputedStyle(e).overflowX === "auto"
    && !e.hasAttribute("tabindex")).map((e) => e.outerHTML.slice(0, 80))"""


def luminance(colour):
    rgb = [int(c) / 255 for c in colour.removeprefix("rgb(").removesuffix(")").split(", ")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def text_colours(page, selector):
    """Return the colour of a text and its background colour."""
    return page.locator(selector).first.evaluate("""(element) => {
        let parent = element;
        while (getComputedStyle(parent).backgroundColor === "rgba(0, 0, 0, 0)") {
            parent = parent.parentElement;
        }
        return [getComputedStyle(element).color, getComputedStyle(parent).backgroundColor];
    }""")


@pytest.mark.parametrize("kind", KINDS)
def test_dark_mode_is_dark_and_contrast_is_sufficient(open_report, kind):
    shots = {}
    for scheme in ("light", "dark"):
        page = open_report(kind, color_scheme=scheme)
        shots[scheme] = page.screenshot()
        background = luminance(text_colours(page, "h1")[1])
        assert background > 0.8 if scheme == "light" else background < 0.05
        for selector in TEXTS:
            if page.locator(selector).count():
                lights = sorted(map(luminance, text_colours(page, selector)))
                contrast = (lights[1] + 0.05) / (lights[0] + 0.05)
                assert contrast >= 4.5, (scheme, selector, contrast)  # WCAG 2.2, 1.4.3
    assert shots["light"] != shots["dark"]


@pytest.mark.parametrize("kind", ["evaluation", "training"])
def test_plots_are_readable_in_both_modes(open_report, kind):
    for scheme in ("light", "dark"):
        plot = open_report(kind, color_scheme=scheme).locator("img.plot").first
        png = np.frombuffer(plot.screenshot(), np.uint8)
        brightness = cv2.imdecode(png, cv2.IMREAD_GRAYSCALE)
        background = np.median(brightness)
        text = brightness.min() if scheme == "light" else brightness.max()
        assert background > 230 if scheme == "light" else background < 50
        assert abs(float(background) - float(text)) > 150


@pytest.mark.parametrize("kind", KINDS)
def test_a_phone_scrolls_vertically_only(open_report, kind):
    page = open_report(kind, PHONE)
    widths = "() => [document.documentElement.scrollWidth, window.innerWidth]"
    assert page.evaluate(widths) == [375, 375]
    assert page.evaluate(NOT_SCROLLED_BY_KEYBOARD) == []
    if kind != "training":
        page.locator(".card .open").first.click()
        assert page.evaluate(widths) == [375, 375]
        box = page.locator("#viewer").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 375


def test_without_javascript_only_masks_and_heatmaps_are_hidden(open_report):
    page = open_report("prediction", java_script_enabled=False)
    assert page.locator(".card img.photo").first.is_visible()
    assert page.locator(".card .box text").first.is_visible()
    assert not page.locator(".card img.mask").first.is_visible()
    for found in page.locator(".miss[data-found]").all():
        score = float(found.get_attribute("data-found"))
        assert found.is_visible() == (score < 0.25)
    assert page.locator("caption").first.is_visible()
