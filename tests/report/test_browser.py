"""The report in Chromium: no requests, controls, keyboard, contrast, small screens."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest

BINARY = shutil.which("chromium") or shutil.which("chromium-browser")
KINDS = ("prediction", "evaluation", "training")
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
    return page.locator("#cards").screenshot(scale="css")


def num_visible(page, selector):
    return page.locator(selector).evaluate_all(NUM_VISIBLE)


@pytest.mark.parametrize("kind", KINDS)
def test_no_errors_and_no_requests(open_report, pages, kind):
    page = open_report(kind)
    for box in page.locator("[data-layer]").all():
        box.set_checked(True)
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
    for box in page.locator("[data-layer]").all():
        box.set_checked(False)
    shots = [screenshot_of(page)]
    for layer in ("boxes", "mask", "heatmap", "truth"):
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


def test_the_slider_hides_boxes_and_labels_below_it(open_report):
    page = open_report("prediction")
    scores = page.locator(".box[data-score]").evaluate_all(
        "(all) => all.map((e) => Number(e.dataset.score))"
    )
    num_boxes = num_visible(page, ".box[data-score]")
    assert num_boxes == len(scores) > 10
    before = screenshot_of(page)
    for minimum in (0.3, 0.5, 0.75, 1):
        page.locator("#threshold").fill(str(minimum))
        above = [score for score in scores if score >= minimum]
        assert num_visible(page, ".box[data-score]") == len(above) < num_boxes
        assert page.locator("#threshold-value").text_content() == f"{minimum:.2f}"
    assert screenshot_of(page) != before
    assert num_visible(page, "ul[aria-label=Labels] li") == 0  # their scores are 0.7 and 0.2
    page.locator("#threshold").fill("0")
    assert num_visible(page, ".box[data-score]") == num_boxes
    assert screenshot_of(page) == before


def test_group_and_class_filter_the_images(open_report):
    page = open_report("prediction")
    total = page.locator(".card").count()
    page.locator("#group").select_option("low")
    scores = page.locator(".card:visible").evaluate_all(
        "(all) => all.map((e) => Number(e.dataset.score))"
    )
    assert scores == sorted(scores) and len(scores) <= total
    page.locator("#group").select_option("truth")
    agreements = page.locator(".card:visible").evaluate_all(
        "(all) => all.map((e) => Number(e.dataset.agreement))"
    )
    assert agreements == sorted(agreements) and len(agreements) == 14
    page.locator("#group").select_option("")
    page.locator("#class").select_option(index=1)
    name = page.locator("#class").input_value()
    shown = page.locator(".card:visible")
    assert all(
        name in (card.get_attribute("data-classes") or "").split("\n") for card in shown.all()
    )
    text = page.locator("#shown").text_content()
    assert text == f"{shown.count()} of {total} images shown"


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
    assert num_visible(page, ".box[data-score]") == 0
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
    assert page.locator("caption").first.is_visible()
