"""The demo's archive is drawn here, because only a drawn image has exact labels, boxes and masks.

A scene shows one to four objects over a crop of a photograph. Objects are drawn in turn, so a
later one may cover a little of an earlier one; boxes and masks tell what is still visible.
The main object covers at least `MAIN_RATIO` times the visible area of every other one, and its
class is the image's label.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

from cvbatch.demo.shapes import CLASSES, Shape, draw
from cvbatch.images.masks import encode_png

SIZES_HW = ((240, 320), (256, 256), (320, 240), (240, 360))
MAIN_RATIO = 1.8
MIN_VISIBLE = 0.8  # of an object's own area, whatever is drawn over it later
MAIN_SIDE = (0.28, 0.42)  # square root of an object's area, in shorter sides of the image
OTHER_SIDE = (0.15, 0.26)
JPEG_QUALITY = 92

_BACKGROUNDS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png",
    "grass.png", "gravel.png", "ihc.png", "motorcycle_left.png", "rocket.jpg",
)  # fmt: skip
_PHOTOGRAPHS = ("astronaut.png", "coffee.png")

_BOX = pa.struct(
    [pa.field(name, pa.float32()) for name in ("x_min", "y_min", "x_max", "y_max")]
    + [("class_id", pa.int32()), ("label", pa.string()), ("score", pa.float32())]
)
_TRUTH = pa.schema(
    [
        ("image_id", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("label", pa.string()),
        ("boxes", pa.list_(_BOX)),
        ("mask", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    ]
)


@dataclass(frozen=True)
class Scene:
    """A drawn image and the truth about it."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    label: int  # of `CLASSES`: the main object's
    boxes: np.ndarray  # (M, 4) float32 xyxy, half-open pixels, tight around what is visible
    box_class_id: np.ndarray  # (M,) int32, of `CLASSES`
    mask: np.ndarray  # (H, W) uint8, of `MASK_CLASSES`


def load_backgrounds() -> tuple[np.ndarray, ...]:  # each (H, W, 3) uint8 RGB
    """Return the photographs that scenes are drawn over; none where scikit-image is absent."""
    folder = _photograph_folder()
    return () if folder is None else tuple(_read_rgb(folder / name) for name in _BACKGROUNDS)


def render_scene(seed: int, backgrounds: Sequence[np.ndarray] = ()) -> Scene:
    """Return the scene of that seed: the same seed and backgrounds give the same pixels.

    seed: not negative. backgrounds: photographs, (H, W, 3) uint8 RGB; without any, the ground
    is smooth noise.
    """
    rng = np.random.default_rng(seed)
    height, width = SIZES_HW[rng.integers(len(SIZES_HW))]
    canvas = _ground(rng, height, width, backgrounds).astype(np.float32)
    shapes = _place(rng, canvas)
    for shape in shapes:
        cover = shape.alpha[..., None]
        canvas = canvas * (1.0 - cover) + shape.paint * cover
    order = _instances(shapes, height, width)
    class_id = np.array([shape.class_id for shape in shapes], np.int32)
    area = np.bincount(order.ravel(), minlength=len(shapes) + 1)[1:]
    return Scene(
        image=np.clip(canvas + 0.5, 0, 255).astype(np.uint8),
        label=int(class_id[np.argmax(area)]),
        boxes=np.array([_box(order == i + 1) for i in range(len(shapes))], np.float32),
        box_class_id=class_id,
        mask=np.concatenate([[0], class_id + 1]).astype(np.uint8)[order],
    )


def render_archive(folder: str | Path, num_images: int, seed: int) -> None:
    """Write the demo's archive under `folder`.

    `folder`/images is the archive itself: `num_images` scenes, two photographs where
    scikit-image is installed, and three broken files. `folder`/truth.parquet has a row for
    every scene, its image_id being the file's path below `folder`/images.
    """
    images = Path(folder) / "images"
    for name in ("scenes", "photos", "broken"):
        (images / name).mkdir(parents=True, exist_ok=True)
    backgrounds = load_backgrounds()
    rows = []
    for i in range(num_images):
        scene = render_scene(scene_seed(seed, i), backgrounds)
        image_id = f"scenes/scene-{i:05d}.jpg"
        (images / image_id).write_bytes(encode_jpeg(scene.image))
        rows.append(_truth_row(image_id, scene))
    pq.write_table(pa.Table.from_pylist(rows, _TRUTH), Path(folder) / "truth.parquet")
    _write_photographs(images / "photos")
    _write_broken(images / "broken")


def scene_seed(seed: int, index: int) -> int:
    """Return the seed of scene `index` of an archive: no two archives share a scene."""
    return seed * 10_000_000 + index


def encode_jpeg(image: np.ndarray) -> bytes:  # (H, W, 3) uint8 RGB
    """Return the image as a JPEG of quality `JPEG_QUALITY`."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def _place(rng: np.random.Generator, canvas: np.ndarray) -> list[Shape]:
    """Return the objects in drawing order; what breaks the rules of a scene is not placed."""
    height, width = canvas.shape[:2]
    shapes = [draw(rng, canvas, rng.uniform(*MAIN_SIDE) * min(height, width))]
    wanted = rng.integers(4)
    for _ in range(4 * wanted):
        if len(shapes) > wanted:
            break
        shape = draw(rng, canvas, rng.uniform(*OTHER_SIDE) * min(height, width))
        # The main object may come to lie over or under the others.
        candidate = [shape, *shapes] if rng.random() < 0.5 else [*shapes, shape]
        if _is_clear(candidate, height, width):
            shapes = candidate
    return shapes


def _is_clear(shapes: list[Shape], height: int, width: int) -> bool:
    """Tell whether objects keep their distance and the main one is far the largest."""
    for i, one in enumerate(shapes):
        for other in shapes[:i]:
            reach = one.radius + other.radius
            if np.hypot(*(one.center - other.center)) < 0.75 * reach:
                return False
    full = np.array([np.count_nonzero(shape.inside) for shape in shapes])
    order = _instances(shapes, height, width)
    visible = np.bincount(order.ravel(), minlength=len(shapes) + 1)[1:]
    second, largest = np.sort(visible)[-2:]
    return bool((visible >= MIN_VISIBLE * full).all() and largest >= MAIN_RATIO * second)


def _instances(shapes: list[Shape], height: int, width: int) -> np.ndarray:  # (H, W) uint8
    """Return for each pixel 1 + the index of the object seen there, or 0."""
    order = np.zeros((height, width), np.uint8)
    for i, shape in enumerate(shapes):
        order[shape.inside] = i + 1
    return order


def _ground(
    rng: np.random.Generator, height: int, width: int, backgrounds: Sequence[np.ndarray]
) -> np.ndarray:  # (H, W, 3) uint8
    """Return a random crop of a random photograph, or smooth noise where there is none."""
    if not backgrounds:
        coarse = rng.integers(40, 216, (6, 8, 3), dtype=np.uint8)
        return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    photograph = backgrounds[int(rng.integers(len(backgrounds)))]
    room = min(photograph.shape[0] / height, photograph.shape[1] / width)
    scale = rng.uniform(0.5 * room, room)
    crop_h, crop_w = int(height * scale), int(width * scale)
    top = rng.integers(photograph.shape[0] - crop_h + 1)
    left = rng.integers(photograph.shape[1] - crop_w + 1)
    crop = photograph[top : top + crop_h, left : left + crop_w]
    crop = crop[:, ::-1] if rng.random() < 0.5 else crop
    return cv2.resize(np.ascontiguousarray(crop), (width, height), interpolation=cv2.INTER_AREA)


def _box(seen: np.ndarray) -> tuple[int, int, int, int]:  # (H, W) bool
    x, y, width, height = cv2.boundingRect(seen.astype(np.uint8))
    return x, y, x + width, y + height


def _truth_row(image_id: str, scene: Scene) -> dict[str, object]:
    names = ("x_min", "y_min", "x_max", "y_max")
    boxes = [
        dict(zip(names, box, strict=True), class_id=k, label=CLASSES[k], score=1.0)
        for box, k in zip(scene.boxes.tolist(), scene.box_class_id.tolist(), strict=True)
    ]
    return {
        "image_id": image_id,
        "width": scene.mask.shape[1],
        "height": scene.mask.shape[0],
        "label": CLASSES[scene.label],
        "boxes": boxes,
        "mask": {"bytes": encode_png(scene.mask), "path": None},
    }


def _photograph_folder() -> Path | None:
    """Return where scikit-image keeps the photographs of its wheel, without importing it."""
    spec = importlib.util.find_spec("skimage")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "data"


def _read_rgb(path: Path) -> np.ndarray:  # (H, W, 3) uint8
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _write_photographs(folder: Path) -> None:
    source = _photograph_folder()
    if source is None:
        return
    for name in _PHOTOGRAPHS:
        image = _read_rgb(source / name)
        (folder / name).with_suffix(".jpg").write_bytes(encode_jpeg(image))


def _write_broken(folder: Path) -> None:
    whole = encode_jpeg(render_scene(0).image)
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 3])
    (folder / "not-an-image.jpg").write_text("This was never an image.\n")
    (folder / "empty.png").write_bytes(b"")
