"""Pictures of docs/evaluation.md and docs/training.md: python -m tests.docs.plots.

They are the plots of two example jobs with the networks of the demo.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "plots"
EVALUATION = ("precision_recall_detection", "confusion_detection", "classes_segmentation")
# Command → further options of its example job, and the plots.
PLOTS = {"evaluate": ([], EVALUATION), "train": (["--set", "training.epochs=6"], ("curves",))}


def main() -> None:
    """Run both jobs and copy their plots."""
    PICTURES.mkdir(exist_ok=True)
    for command, (more, names) in PLOTS.items():
        config = ROOT / "jobs" / "examples" / f"{command}-smoke.yaml"
        with tempfile.TemporaryDirectory(prefix="cvbatch-plots-") as folder:
            options = ["--config", str(config), "--set", f"sink.uri={folder}/out", *more]
            subprocess.run([sys.executable, "-m", "cvbatch", command, *options], check=True)
            for name in names:
                picture = (Path(folder) / "out" / f"{name}.png").read_bytes()
                (PICTURES / f"{name}.png").write_bytes(picture)


if __name__ == "__main__":
    main()
