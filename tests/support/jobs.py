"""Image archives and job files for tests that run whole jobs."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from cvbatch.core.progress import Listener

BROKEN = {"broken/text.jpg": b"not an image", "broken/empty.png": b""}
SIZES = [(40, 30), (32, 32), (25, 61)]


def encoded_image(index: int) -> bytes:
    """Return a small encoded image, different for each index: every third is PNG, others JPEG."""
    height, width = SIZES[index % len(SIZES)]
    rng = np.random.default_rng(index)
    coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".png" if index % 3 == 0 else ".jpg", image)[1].tobytes()


def archive_files(count: int, first: int = 0) -> dict[str, bytes]:
    """Return `count` images and two broken files: name → bytes."""
    images = {
        f"set-{i % 2}/image {i:03d}{'.png' if i % 3 == 0 else '.jpg'}": encoded_image(i)
        for i in range(first, first + count)
    }
    return images | BROKEN


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_parquet(path: Path, files: dict[str, bytes], row_group_size: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"image": {"bytes": data, "path": name}} for name, data in sorted(files.items())]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)
    return path


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def job(source: str | Path, sink: str | Path, models: Path, **run: object) -> dict[str, object]:
    """Return a job of three tasks as plain values."""
    return {
        "source": {"uri": str(source)},
        "sink": {"uri": str(sink)},
        "models": [
            {
                "task": "classification",
                "model": str(models / "nested_classifier.keras"),
                "top_k": 2,
                "heatmap": {"layer": "auto"},
            },
            {
                "task": "segmentation",
                "model": str(models / "segmenter.keras"),
                "resize": "letterbox",
            },
            {
                "task": "detection",
                "model": str(models / "detector.keras"),
                "score_threshold": 0.1,
            },
        ],
        "run": {"batch_size": 4, "chunk_images": 6, "max_failure_fraction": 0.5, **run},
    }


def write_job(path: Path, values: dict[str, object]) -> Path:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def parts(sink: Path) -> dict[str, bytes]:
    """Return the result files: name → bytes."""
    return {path.name: path.read_bytes() for path in sorted(sink.glob("*.parquet"))}


def rows(sink: Path) -> list[dict[str, object]]:
    """Return all rows of a result, sorted by image id."""
    all_rows = [
        row for path in sorted(sink.glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]
    return sorted(all_rows, key=lambda row: str(row["image_id"]))


def carry_programs(done: Path, sink: Path) -> Path:
    """Copy the compiled programs of a finished sink to a new one: compiling takes seconds."""
    target = sink / "_cvbatch" / "programs"
    shutil.copytree(done / "_cvbatch" / "programs", target)
    return sink


def cvbatch(*arguments: object, **options: object) -> tuple[int, str, str]:
    """Run the command in a subprocess; return its exit status, stdout and stderr."""
    command = [sys.executable, "-m", "cvbatch", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode >= 0, f"killed by signal {-done.returncode}\n{done.stderr}"
    return done.returncode, done.stdout, done.stderr


class RecordingListener(Listener):
    """A listener that stores the lines it receives."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, line: str) -> None:
        self.lines.append(line)


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(name, data)
    return path
