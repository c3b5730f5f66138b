"""The page in a real browser: it keeps to itself, its switches work, and so does the keyboard."""

from __future__ import annotations

import shutil

import pytest

BINARY = shutil.which("chromium") or shutil.which("chromium-browser")
KINDS = ("prediction", "evaluation", "training")
# A headless browser that is a guest on this machine: no sandbox of its own, no calls home.
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 740}
TEXTS = (
    "h1", "h2", "nav a", ".kind", ".tiles dt", ".tiles span", "thead th", "tbody td", "footer p",
    ".card p", ".chips li", ".note", "pre",
)  # fmt: skip
SEEN = "(all) => all.filter((one) => one.getBoundingClientRect().width > 0).length"


@pytest.fixture(scope="module")
def browser():
    if BINARY is None:
        pytest.skip("these tests drive chromium, and there is none: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=BINARY, args=list(FLAGS))
        yield launched
        launched.close()


@pytest.fixture
def opened(browser, pages):
    """Open a page; what it asks for and what it complains of is kept on it."""
    contexts = []

    def open_(kind, viewport=DESK, **options):
        context = browser.new_context(viewport=viewport, reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.asked, page.told = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.told.append(message.text))
        page.on("pageerror", lambda error: page.told.append(str(error)))
        page.on("dialog", lambda dialog: (page.told.append(dialog.message), dialog.dismiss()))
        page.goto(pages[kind].as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()


def shot(page):
    return page.locator("#cards").screenshot(scale="css")


def num_seen(page, selector):
    return page.locator(selector).evaluate_all(SEEN)


@pytest.mark.parametrize("kind", KINDS)
def test_it_loads_without_a_complaint_and_asks_for_nothing(opened, pages, kind):
    page = opened(kind)
    for box in page.locator("[data-layer]").all():
        box.set_checked(True)
    asked = [url for url in page.asked if not url.startswith("data:image/")]
    assert asked == [pages[kind].as_uri()]
    assert page.told == []
    broken = "(all) => all.filter((one) => !one.complete || !one.naturalWidth).length"
    assert page.locator("img").evaluate_all(broken) == 0
    assert page.title().endswith("· cvbatch")  # no name on the page was run as a script


def test_what_a_page_would_ask_for_is_refused(opened):
    page = opened("prediction")
    page.evaluate("""() => {
        const image = document.createElement("img");
        image.src = "http://127.0.0.1:9/x.png";
        document.body.append(image);
    }""")
    page.wait_for_function("() => [...document.images].at(-1).complete")
    assert any("Content Security Policy" in line for line in page.told)
    assert page.evaluate("() => fetch('http://127.0.0.1:9/').then(() => 1, () => 0)") == 0


def test_every_switch_changes_the_pixels_in_its_own_way_and_back(opened):
    page = opened("prediction")
    for box in page.locator("[data-layer]").all():
        box.set_checked(False)
    shots = [shot(page)]
    for layer in ("boxes", "mask", "heatmap", "truth"):
        assert num_seen(page, f".layer.{layer}") == 0
        page.locator(f"[data-layer={layer}]").check()
        assert num_seen(page, f".layer.{layer}") > 0
        shots.append(shot(page))
        page.locator(f"[data-layer={layer}]").uncheck()
    assert len(set(shots)) == 5
    assert shot(page) == shots[0]


def test_the_strength_of_layers_changes_the_pixels(opened):
    page = opened("prediction")
    page.locator("[data-layer=mask]").check()
    before = shot(page)
    page.locator("#strength").fill("0.3")
    assert shot(page) != before


def test_the_slider_hides_boxes_and_labels_under_it(opened):
    page = opened("prediction")
    scores = page.locator(".box[data-score]").evaluate_all(
        "(all) => all.map((one) => Number(one.dataset.score))"
    )
    drawn = num_seen(page, ".box[data-score]")
    assert drawn == len(scores) > 10
    before = shot(page)
    for least in (0.3, 0.5, 0.75, 1):
        page.locator("#threshold").fill(str(least))
        over = [score for score in scores if score >= least]
        assert num_seen(page, ".box[data-score]") == len(over) < drawn
        assert page.locator("#threshold-value").text_content() == f"{least:.2f}"
    assert shot(page) != before
    assert num_seen(page, "ul[aria-label=Labels] li") == 0  # their scores are 0.7 and 0.2
    page.locator("#threshold").fill("0")
    assert num_seen(page, ".box[data-score]") == drawn
    assert shot(page) == before


def test_a_sample_and_a_class_choose_the_images(opened):
    page = opened("prediction")
    total = page.locator(".card").count()
    page.locator("#group").select_option("low")
    scores = page.locator(".card:visible").evaluate_all(
        "(all) => all.map((one) => Number(one.dataset.score))"
    )
    assert scores == sorted(scores) and len(scores) <= total
    page.locator("#group").select_option("truth")
    agreed = page.locator(".card:visible").evaluate_all(
        "(all) => all.map((one) => Number(one.dataset.agreement))"
    )
    assert agreed == sorted(agreed) and len(agreed) == 14
    page.locator("#group").select_option("")
    page.locator("#class").select_option(index=1)
    name = page.locator("#class").input_value()
    shown = page.locator(".card:visible")
    assert all(
        name in (card.get_attribute("data-classes") or "").split("\n") for card in shown.all()
    )
    told = page.locator("#shown").text_content()
    assert told == f"{shown.count()} of {total} images shown"


FOCUSABLE = """() => [...document.querySelectorAll(
    "a[href], button, input, select, summary, [tabindex]")]
    .filter((one) => one.checkVisibility())"""


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_reached_by_keyboard(opened, kind):
    page = opened(kind)
    wanted = page.evaluate(f"() => ({FOCUSABLE})().length")
    page.evaluate("() => { window.seen = new Set(); }")
    for _ in range(wanted + 3):
        page.keyboard.press("Tab")
        page.evaluate("() => { window.seen.add(document.activeElement); }")
    words = "(one) => one.outerHTML.slice(0, 80)"
    missed = page.evaluate(
        f"() => ({FOCUSABLE})().filter((one) => !window.seen.has(one)).map({words})"
    )
    assert missed == []


def test_the_controls_work_by_keyboard(opened):
    page = opened("prediction")
    page.locator("[data-layer=mask]").focus()
    page.keyboard.press("Space")
    assert num_seen(page, "img.mask") > 0
    page.locator("#threshold").focus()
    page.keyboard.press("End")
    assert num_seen(page, ".box[data-score]") == 0
    page.keyboard.press("Home")
    first = page.locator(".card .open").first
    first.focus()
    page.keyboard.press("Enter")
    viewer = page.locator("#viewer")
    assert viewer.is_visible()
    seen = [page.locator("#viewer h3").text_content()]
    page.keyboard.press("ArrowRight")
    seen.append(page.locator("#viewer h3").text_content())
    page.keyboard.press("ArrowLeft")
    assert page.locator("#viewer h3").text_content() == seen[0] != seen[1]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    assert not viewer.is_visible()
    focused = page.evaluate("() => document.activeElement.closest('.card').querySelector('h3')"
                            ".textContent")  # fmt: skip
    assert focused == seen[1]  # where the reader left off


def test_a_picture_is_larger_in_the_viewer_with_its_layers(opened):
    page = opened("prediction")
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


SCROLLED_BY_MOUSE_ALONE = """() => [...document.querySelectorAll("main *")].filter((one) =>
    one.scrollWidth > one.clientWidth && getComputedStyle(one).overflowX === "auto"
    && !one.hasAttribute("tabindex")).map((one) => one.outerHTML.slice(0, 80))"""


def luminance(colour):
    parts = [int(one) / 255 for one in colour.removeprefix("rgb(").removesuffix(")").split(", ")]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def behind(page, selector):
    """Return the colours of a text and of what it stands on."""
    return page.locator(selector).first.evaluate("""(one) => {
        const ink = getComputedStyle(one).color;
        let paper = one;
        while (getComputedStyle(paper).backgroundColor === "rgba(0, 0, 0, 0)") {
            paper = paper.parentElement;
        }
        return [ink, getComputedStyle(paper).backgroundColor];
    }""")


@pytest.mark.parametrize("kind", KINDS)
def test_dark_mode_is_dark_and_texts_can_be_read_in_both(opened, kind):
    shots = {}
    for scheme in ("light", "dark"):
        page = opened(kind, color_scheme=scheme)
        shots[scheme] = page.screenshot()
        paper = luminance(behind(page, "h1")[1])
        assert paper > 0.8 if scheme == "light" else paper < 0.05
        for selector in TEXTS:
            if page.locator(selector).count():
                lights = sorted(map(luminance, behind(page, selector)))
                contrast = (lights[1] + 0.05) / (lights[0] + 0.05)
                assert contrast >= 4.5, (scheme, selector, contrast)  # WCAG 2.2, 1.4.3
    assert shots["light"] != shots["dark"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_phone_scrolls_in_one_direction(opened, kind):
    page = opened(kind, PHONE)
    wide = "() => [document.documentElement.scrollWidth, window.innerWidth]"
    assert page.evaluate(wide) == [375, 375]
    assert page.evaluate(SCROLLED_BY_MOUSE_ALONE) == []
    if kind != "training":
        page.locator(".card .open").first.click()
        assert page.evaluate(wide) == [375, 375]
        box = page.locator("#viewer").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 375


def test_without_a_script_all_but_masks_and_heatmaps_is_there(opened):
    page = opened("prediction", java_script_enabled=False)
    assert page.locator(".card img.photo").first.is_visible()
    assert page.locator(".card .box text").first.is_visible()
    assert not page.locator(".card img.mask").first.is_visible()
    assert page.locator("caption").first.is_visible()
