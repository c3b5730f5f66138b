"""Draw boxes, masks and captions over an image; contact sheets of many images."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from cvbatch.core.types import VOID_CLASS, InputKey
from cvbatch.geometry.resize import Rectangle, make_placement, resize_image

TILE_HW = (240, 320)
CAPTION_HEIGHT = 24
MARGIN = 8

# Seven colours for colour-blind readers (Okabe and Ito, "Color Universal Design", 2008).
_HUES = np.array(
    [
        (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
        (0, 114, 178), (213, 94, 0), (204, 121, 167),
    ],
    np.float32,
)  # fmt: skip
_SHADES = (0.0, -0.4, 0.5, -0.65, 0.75)  # towards black below 0, towards white above
_BLACK = (0, 0, 0)
_WHITE = (255, 255, 255)
_FONT = cv2.FontFace("sans")
_TEXT_WEIGHT = 500


def _palette() -> np.ndarray:  # (256, 3) uint8 RGB
    """Return a colour for each value of a mask: black for class 0, then five shades of the hues."""
    shaded = np.concatenate([_HUES * (1 - abs(s)) + 255 * max(s, 0) for s in _SHADES])
    cycled = np.resize(shaded, (VOID_CLASS, 3))
    return np.concatenate([np.zeros((1, 3)), cycled]).round().astype(np.uint8)


PALETTE = _palette()


def palette_value(class_id: int) -> int:
    """Return the row of `PALETTE` for a class of a detector, which has no background class."""
    return 1 + class_id % (VOID_CLASS - 1)


def paint_mask(
    image: np.ndarray,  # (h, w, 3) uint8 RGB
    mask: np.ndarray,  # (h, w) uint8
    opacity: float,
) -> np.ndarray:  # (h, w, 3) uint8 RGB
    """Blend the colours of a mask over an image.

    Args:
        image: the image; it is not changed.
        mask: class ids. Pixels of `VOID_CLASS` keep their colour; class 0, most often the
            background, is black in `PALETTE` and darkens its pixels.
        opacity: of the mask, in 0..1.
    """
    painted = cv2.addWeighted(image, 1 - opacity, PALETTE[mask], opacity, 0)
    return np.where((mask == VOID_CLASS)[..., None], image, painted)


def draw_boxes(
    image: np.ndarray,  # (h, w, 3) uint8 RGB
    xyxy: np.ndarray,  # (M, 4)
    names: Sequence[str],  # M
    scores: np.ndarray,  # (M,)
    class_id: np.ndarray | None = None,  # (M,)
) -> np.ndarray:  # (h, w, 3) uint8 RGB
    """Draw boxes with their names and scores over an image; the first box is on top.

    Args:
        image: the image; it is not changed.
        xyxy: boxes in pixels of the image.
        names: text of each box, most often its class.
        scores: score of each box.
        class_id: class k has the colour k + 1 of `PALETTE`, as a detector has no background class.
            None: all boxes have one colour.
    """
    canvas = image.copy()
    shorter = min(image.shape[:2])
    thickness, text_size = max(1, round(shorter / 160)), max(11, round(shorter / 18))
    classes = np.zeros(len(names), np.int64) if class_id is None else class_id
    for m in reversed(range(len(names))):
        red, green, blue = PALETTE[palette_value(int(classes[m]))].tolist()
        left, top, right, bottom = np.rint(xyxy[m]).astype(int).tolist()
        last = (max(left, right - 1), max(top, bottom - 1))
        cv2.rectangle(canvas, (left, top), last, (red, green, blue), thickness)
        label = f"{names[m]} {scores[m]:.2f}"
        _draw_label(canvas, label, left, top, text_size, (red, green, blue))
    return canvas


def contact_sheet(
    tiles: Sequence[np.ndarray],  # each (h, w, 3) uint8 RGB
    captions: Sequence[str],
    columns: int,
) -> np.ndarray:  # (H, W, 3) uint8 RGB
    """Arrange images on a white page, row by row, each scaled to a tile above its caption.

    Args:
        tiles: images of any size.
        captions: one of each image; too long captions are cut, unprintable characters become "?".
        columns: tiles of a row.
    """
    pitch_hw = TILE_HW[0] + CAPTION_HEIGHT + MARGIN, TILE_HW[1] + MARGIN
    rows = -(-len(tiles) // columns)
    page = np.full((MARGIN + rows * pitch_hw[0], MARGIN + columns * pitch_hw[1], 3), 255, np.uint8)
    for i, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        top = MARGIN + i // columns * pitch_hw[0]
        left = MARGIN + i % columns * pitch_hw[1]
        scaled, fitted = _fit_to_tile(tile)
        y, x = top + fitted.top, left + fitted.left
        page[y : y + fitted.height, x : x + fitted.width] = scaled
        baseline = (left, top + TILE_HW[0] + CAPTION_HEIGHT * 3 // 4)
        write_text(page, caption, baseline, TILE_HW[1], CAPTION_HEIGHT * 5 // 8)
    return page


def write_text(
    canvas: np.ndarray,  # (h, w, 3) uint8, changed in place
    text: str,
    baseline: tuple[int, int],  # x, y
    width: int,
    size: int,
) -> None:
    """Write black text.

    Args:
        canvas: the image that is written on.
        text: any text; unprintable characters become "?".
        baseline: left end of the text's baseline.
        width: maximum width in pixels; longer text is cut and ends with an ellipsis.
        size: of the font in pixels.
    """
    _put_text(canvas, _shorten(text, width, size), baseline, size, _BLACK)


def _fit_to_tile(tile: np.ndarray) -> tuple[np.ndarray, Rectangle]:
    """Scale an image to a tile; return it with its rectangle in the tile."""
    height, width = tile.shape[:2]
    fitted = make_placement(height, width, InputKey(*TILE_HW, "letterbox")).target
    stretch = InputKey(fitted.height, fitted.width, "stretch")
    return resize_image(tile, make_placement(height, width, stretch)), fitted


def _draw_label(
    canvas: np.ndarray,  # (h, w, 3) uint8, changed in place
    text: str,
    left: int,
    top: int,
    size: int,
    background: tuple[int, int, int],
) -> None:
    """Draw text on a filled background above a box's top left corner, inside the canvas."""
    height, width = canvas.shape[:2]
    plate_hw = size * 4 // 3, _text_width(_printable(text), size) + size // 2
    left = max(0, min(left, width - plate_hw[1]))
    bottom = min(height, max(top, plate_hw[0]))
    last = (left + plate_hw[1] - 1, bottom - 1)
    cv2.rectangle(canvas, (left, bottom - plate_hw[0]), last, background, cv2.FILLED)
    is_light = float(np.dot(background, (0.299, 0.587, 0.114))) > 127
    baseline = (left + size // 4, bottom - size // 3)
    _put_text(canvas, _printable(text), baseline, size, _BLACK if is_light else _WHITE)


def _put_text(
    canvas: np.ndarray, text: str, baseline: tuple[int, int], size: int, ink: tuple[int, int, int]
) -> None:
    cv2.putText(canvas, text, baseline, ink, _FONT, size, _TEXT_WEIGHT)


def _printable(text: str) -> str:
    """Replace unprintable characters: file names may contain any, lone surrogates included."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _shorten(text: str, width: int, size: int) -> str:
    text = _printable(text[: width + 1])  # every character is at least one pixel wide
    if _text_width(text, size) <= width:
        return text
    while text and _text_width(f"{text}…", size) > width:
        text = text[:-1]
    return f"{text}…"


def _text_width(text: str, size: int) -> int:
    box = cv2.getTextSize((0, 0), text, (0, 0), _FONT, size, _TEXT_WEIGHT)
    return int(box[2])


def to_png(
    image: np.ndarray,  # (H, W) grey or (H, W, 3) RGB, uint8
) -> bytes:
    """Encode an image as PNG."""
    pixels = image if image.ndim == 2 else image[..., ::-1]
    _, data = cv2.imencode(".png", np.ascontiguousarray(pixels))
    return data.tobytes()
