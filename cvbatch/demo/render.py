"""Render the images of the demo, with exact labels, boxes and masks.

A scene shows one to four objects over a crop of a photograph. Later objects may partly cover
earlier ones; boxes and masks contain the visible pixels. The main object has at least `MAIN_RATIO`
times the visible area of every other object, and its class is the label of the image.
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

from cvbatch.demo.shapes import CLASSES, Shape, draw_shape
from cvbatch.images.masks import encode_png

SIZES_HW = ((240, 320), (256, 256), (320, 240), (240, 360))
MAIN_RATIO = 1.8
MIN_VISIBLE = 0.8  # fraction of an object's area
MAIN_SIDE = (0.28, 0.42)  # range of √area of the main object / shorter side of the image
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
_GROUND_TRUTH_SCHEMA = pa.schema(
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
    """A rendered image and its ground truth."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    label: int  # class id of the main object
    boxes: np.ndarray  # (M, 4) float32 half-open xyxy, around the visible pixels
    box_class_id: np.ndarray  # (M,) int32, index into CLASSES
    mask: np.ndarray  # (H, W) uint8, index into MASK_CLASSES


def load_backgrounds() -> tuple[np.ndarray, ...]:  # each (H, W, 3) uint8 RGB
    """Return the background photographs; none if scikit-image is not installed."""
    folder = _photograph_folder()
    return () if folder is None else tuple(_read_rgb(folder / name) for name in _BACKGROUNDS)


def render_scene(seed: int, backgrounds: Sequence[np.ndarray] = ()) -> Scene:
    """Return the scene of a seed. The same seed and backgrounds give the same pixels.

    Args:
        seed: 0 or more.
        backgrounds: photographs, (H, W, 3) uint8 RGB; if there are none, the background is smooth
            noise.
    """
    rng = np.random.default_rng(seed)
    height, width = SIZES_HW[rng.integers(len(SIZES_HW))]
    canvas = _background(rng, height, width, backgrounds).astype(np.float32)
    shapes = _place_objects(rng, canvas)
    for shape in shapes:
        alpha = shape.alpha[..., None]
        canvas = canvas * (1.0 - alpha) + shape.paint * alpha
    instance = _instance_map(shapes, height, width)
    class_id = np.array([shape.class_id for shape in shapes], np.int32)
    area = np.bincount(instance.ravel(), minlength=len(shapes) + 1)[1:]
    return Scene(
        image=np.clip(canvas + 0.5, 0, 255).astype(np.uint8),
        label=int(class_id[np.argmax(area)]),
        boxes=np.array([_box(instance == i + 1) for i in range(len(shapes))], np.float32),
        box_class_id=class_id,
        mask=np.concatenate([[0], class_id + 1]).astype(np.uint8)[instance],
    )


def render_archive(folder: str | Path, num_images: int, seed: int) -> None:
    """Write the image archive of the demo and its ground truth into a folder.

    `images` contains the scenes, two photographs if scikit-image is installed, and three broken
    files. `truth.parquet` has one row per scene; its image_id is the path below `images`.

    Args:
        folder: created if it does not exist.
        num_images: number of scenes.
        seed: seed of the archive, 0 or more.
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
        rows.append(_ground_truth_row(image_id, scene))
    pq.write_table(pa.Table.from_pylist(rows, _GROUND_TRUTH_SCHEMA), Path(folder) / "truth.parquet")
    _write_photographs(images / "photos")
    _write_broken(images / "broken")


def scene_seed(seed: int, index: int) -> int:
    """Return the seed of scene `index` of the archive with seed `seed`.

    Archives with different seeds share no scene if each has at most 10 million.
    """
    return seed * 10_000_000 + index


def encode_jpeg(image: np.ndarray) -> bytes:  # (H, W, 3) uint8 RGB
    """Return the image as JPEG with quality `JPEG_QUALITY`."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def _place_objects(rng: np.random.Generator, canvas: np.ndarray) -> list[Shape]:
    """Return the objects in drawing order; candidates that violate a rule are rejected."""
    height, width = canvas.shape[:2]
    shapes = [draw_shape(rng, canvas, rng.uniform(*MAIN_SIDE) * min(height, width))]
    num_others = rng.integers(4)
    for _ in range(4 * num_others):
        if len(shapes) > num_others:
            break
        shape = draw_shape(rng, canvas, rng.uniform(*OTHER_SIDE) * min(height, width))
        # The main object may be drawn before or after the others.
        candidate = [shape, *shapes] if rng.random() < 0.5 else [*shapes, shape]
        if _is_clear(candidate, height, width):
            shapes = candidate
    return shapes


def _is_clear(shapes: list[Shape], height: int, width: int) -> bool:
    """Return whether objects are far enough apart and the main one is the largest by far."""
    for i, shape in enumerate(shapes):
        for other in shapes[:i]:
            contact_distance = shape.radius + other.radius
            if np.hypot(*(shape.center - other.center)) < 0.75 * contact_distance:
                return False
    full_area = np.array([np.count_nonzero(shape.inside) for shape in shapes])
    instance = _instance_map(shapes, height, width)
    visible_area = np.bincount(instance.ravel(), minlength=len(shapes) + 1)[1:]
    second, largest = np.sort(visible_area)[-2:]
    is_visible = (visible_area >= MIN_VISIBLE * full_area).all()
    return bool(is_visible and largest >= MAIN_RATIO * second)


def _instance_map(shapes: list[Shape], height: int, width: int) -> np.ndarray:  # (H, W) uint8
    """Return for each pixel 1 + the index of its topmost object, or 0."""
    instance = np.zeros((height, width), np.uint8)
    for i, shape in enumerate(shapes):
        instance[shape.inside] = i + 1
    return instance


def _background(
    rng: np.random.Generator, height: int, width: int, backgrounds: Sequence[np.ndarray]
) -> np.ndarray:  # (H, W, 3) uint8
    """Return a random crop of a random photograph, or smooth noise if there is none."""
    if not backgrounds:
        coarse = rng.integers(40, 216, (6, 8, 3), dtype=np.uint8)
        return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    photograph = backgrounds[int(rng.integers(len(backgrounds)))]
    max_scale = min(photograph.shape[0] / height, photograph.shape[1] / width)
    scale = rng.uniform(0.5 * max_scale, max_scale)
    crop_h, crop_w = int(height * scale), int(width * scale)
    top = rng.integers(photograph.shape[0] - crop_h + 1)
    left = rng.integers(photograph.shape[1] - crop_w + 1)
    crop = photograph[top : top + crop_h, left : left + crop_w]
    crop = crop[:, ::-1] if rng.random() < 0.5 else crop
    return cv2.resize(np.ascontiguousarray(crop), (width, height), interpolation=cv2.INTER_AREA)


def _box(region: np.ndarray) -> tuple[int, int, int, int]:  # (H, W) bool
    x, y, width, height = cv2.boundingRect(region.astype(np.uint8))
    return x, y, x + width, y + height


def _ground_truth_row(image_id: str, scene: Scene) -> dict[str, object]:
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
    """Return the folder of scikit-image's photographs, without importing it; None if absent."""
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
    jpeg = encode_jpeg(render_scene(0).image)
    (folder / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 3])
    (folder / "not-an-image.jpg").write_text("This was never an image.\n")
    (folder / "empty.png").write_bytes(b"")
