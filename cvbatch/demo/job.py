"""Run the demo: render an image archive, predict over it, write the report."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvbatch.config.loader import load
from cvbatch.config.predict import JobConfig
from cvbatch.core.errors import ConfigError
from cvbatch.core.extras import require_tensorflow
from cvbatch.core.progress import Listener
from cvbatch.demo.render import render_archive
from cvbatch.predict.job import predict
from cvbatch.predict.summary import Summary
from cvbatch.report.job import write_report

SEED = 20_260  # differs from the seeds of the training scenes
_JOB = """\
# cvbatch predict --config {folder}/job.yaml
# The job of the demo: three small networks over rendered images.
source:
  uri: {folder}/images
  format: images
sink:
  uri: {folder}/result
models:
  - task: classification
    model: demo_classifier
    weights: demo
    top_k: 3
    heatmap: {{layer: auto, top_k: 1}}
  - task: segmentation
    model: demo_segmenter
    weights: demo
  - task: detection
    model: demo_detector
    weights: demo
run:
  batch_size: 16
  chunk_images: 16
  max_failure_fraction: 0.1         # the archive contains three broken files on purpose
"""


@dataclass(frozen=True)
class DemoResult:
    """Summary of the prediction, and the paths of what the demo wrote."""

    summary: Summary
    result: Path
    page: Path
    job_file: Path

    def as_json(self) -> dict[str, Any]:
        """Return the summary and the paths as JSON-ready values."""
        paths = {
            "result": self.result,
            "page": self.page,
            "job_file": self.job_file,
        }
        return {**self.summary.as_json(), **{key: str(path) for key, path in paths.items()}}

    def as_text(self) -> str:
        """Return the summary and the paths as text for the terminal."""
        failed = "; ".join(f"{kind}: {n}" for kind, n in sorted(self.summary.failures.items()))
        return (
            f"images     {self.summary.num_images}, of which failed {self.summary.num_failed}"
            f" ({failed})\n"
            f"rows       {self.result}/part-*.parquet\n"
            f"page       {self.page}\n"
            f"job file   {self.job_file}"
        )


def run_demo(folder: str, num_images: int, listener: Listener) -> DemoResult:
    """Render an archive into `folder`, predict over it, and write the report.

    Args:
        folder: empty, or the folder of an earlier demo, which is replaced.
        num_images: number of scenes; photographs and broken files are added.
        listener: receives the progress.

    Raises:
        ConfigError: the folder contains other files.
        ModelError: TensorFlow is not installed.
    """
    require_tensorflow()
    root = Path(folder).absolute()
    _clear(root)
    listener.info(f"rendering {num_images} scenes, two photographs and three broken files")
    root.mkdir(parents=True, exist_ok=True)
    job_file = root / "job.yaml"
    job_file.write_text(_JOB.format(folder=root), encoding="utf-8")
    render_archive(root, num_images, SEED)
    summary = predict(load(JobConfig, job_file), listener)
    page = root / "report.html"
    write_report(str(root / "result"), str(page))
    return DemoResult(summary, root / "result", page, job_file)


def _clear(root: Path) -> None:
    """Remove an earlier demo, and nothing else."""
    if not root.exists() or not any(root.iterdir()):
        return
    if not (root / "job.yaml").is_file():
        raise ConfigError(
            f"--out {root}: the folder is not empty and not of an earlier demo; use another folder"
        )
    for name in ("images", "result"):
        shutil.rmtree(root / name, ignore_errors=True)
