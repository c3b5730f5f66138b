"""Draw the pictures of README and docs: of the demo, of the tutorial, and the plots of examples.

Run: python -m tests.docs.pictures FOLDER

FOLDER keeps what the commands write; an existing result is drawn again. It
takes a few minutes on two cores, most of it the training of the tutorial, and needs chromium.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

import cvbatch
from cvbatch.results.row import Row
from tests.docs import plots
from tests.docs.markdown import ROOT, blocks
from tests.docs.test_walk import TUTORIAL, draw_data, shell
from tests.report.test_browser import BINARY, FLAGS

DOCS = ROOT / "docs"
WIDTH, HEIGHT = 1180, 1150  # of a screenshot, in pixels
ROWS, HEIGHT_OF_ROW, GAP = 4, 150, 6
LAYERS = ("boxes", "mask", "heatmap")


def draw_overlays(result: Path, target: Path) -> None:
    """Draw images of a result, each with boxes, with its mask and with its heatmap."""
    rows = [row for row in cvbatch.read(str(result)) if row.error is None and row.boxes]
    page = Image.new("RGB", (WIDTH, ROWS * (HEIGHT_OF_ROW + GAP)), "white")
    for n in range(ROWS):
        x = 0
        while rows and (strip := _strip(rows[0])).width <= WIDTH - x:
            page.paste(strip, (x, n * (HEIGHT_OF_ROW + GAP)))
            x += strip.width + 4 * GAP
            rows.pop(0)
    page.save(target, quality=85)


def _strip(row: Row) -> Image.Image:
    """Return the overlays of an image side by side."""
    overlays = [row.overlay(layer) for layer in LAYERS]
    overlays = [
        overlay.resize((round(overlay.width * HEIGHT_OF_ROW / overlay.height), HEIGHT_OF_ROW))
        for overlay in overlays
    ]
    width = overlays[0].width
    strip = Image.new("RGB", (len(overlays) * (width + GAP) - GAP, HEIGHT_OF_ROW), "white")
    for i, overlay in enumerate(overlays):
        strip.paste(overlay, (i * (width + GAP), 0))
    return strip


def draw_gallery(
    browser: Browser, folder: Path, report: str, target: str, layers: set[str]
) -> None:
    """Draw the gallery of an HTML report: images with boxes, with these layers switched on.

    Args:
        report: below `folder`, whose path is left out of the picture.
        target: file in docs/.
    """
    tab = browser.new_page(viewport={"width": WIDTH, "height": 3 * HEIGHT})
    text = (folder / report).read_text(encoding="utf-8")
    tab.set_content(text.replace(f"{folder}/", ""))
    for layer in layers:
        tab.get_by_role("checkbox", name=layer, exact=True).check()
    tab.locator("#status").select_option("boxes")
    top = tab.locator("#gallery-title").bounding_box()["y"]
    place = {"x": 0, "y": top - 20, "width": WIDTH, "height": HEIGHT}
    tab.screenshot(path=DOCS / target, type="jpeg", quality=85, clip=place)
    tab.close()


def main() -> None:
    """Run demo and tutorial where they have no result, and the examples; draw all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "demo-out" / "report.html").exists():
        shell("cvbatch demo", folder)
    if not (folder / "result-evaluation").exists():
        draw_data(folder)
        shell("\n".join(blocks(TUTORIAL, "sh")[1:]), folder)
    draw_overlays(folder / "demo-out" / "result", DOCS / "pictures.jpg")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BINARY, args=list(FLAGS))
        page = "demo-out/report.html"
        draw_gallery(browser, folder, page, "page.jpg", {"Boxes", "Heatmap"})
        page = "result/_cvbatch/report.html"
        draw_gallery(browser, folder, page, "tutorial.jpg", {"Boxes", "Ground truth"})
        browser.close()
    plots.main()


if __name__ == "__main__":
    main()
