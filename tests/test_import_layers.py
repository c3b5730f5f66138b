"""Imports go down the house, never up, and a worker never meets TensorFlow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cvbatch

ROOT = Path(cvbatch.__file__).parent
# A room may import rooms of lower floors, and its own. `data` and `models` share a floor and
# never see each other.
TRAINING = {
    "train", "step", "supply", "replicas", "judging", "recipes", "features", "schedules",
    "checkpoints", "history", "taught",
}  # fmt: skip
EXPLANATION = {"explainer", "inside"}
EVALUATION = {"evaluate", "classmap", "scorecard", "scoreplots", "faithful", "heatmapcard"}
FLOORS = [
    {
        "errors",
        "credentials",
        "types",
        "config",
        "jobfile",
        "trainfile",
        "evalfile",
        "explainfile",
        "wire",
        "py",
        "naming",
        "stopping",
        "logs",
        "effort",
    },
    {"arrays"},
    {"data", "models"},
    {"tasks", "explain"},
    {"modelfiles", "apart"},
    {"engines", "serving", "programs", "build", "predict", "worker", "reading", "page", "sheet"}
    | TRAINING
    | EVALUATION
    | EXPLANATION,
    {"run"},
    {"demo", "catalog"},
    {"cli"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# What compiles is one room with an entrance: programs → build → serving → engines.
SAME_FLOOR = {"engines", "serving", "programs", "build", "predict", "worker"} | FLOORS[0]
SAME_FLOOR |= {"reading", "page", "sheet"}
SAME_FLOOR |= TRAINING | EVALUATION | EXPLANATION


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cvbatch"):
            parts = (node.module or "").split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            rooms |= {parts[1] for parts in names if parts[0] == "cvbatch" and len(parts) > 1}
    return {room for room in rooms if not room.startswith("__")}


MODULES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_go_down(path):
    room = room_of(path)
    for other in imported_rooms(path) - {room}:
        same_allowed = room in SAME_FLOOR and other in SAME_FLOOR
        assert FLOOR_OF[other] < FLOOR_OF[room] or (
            same_allowed and FLOOR_OF[other] == FLOOR_OF[room]
        ), f"{room} imports {other}"


def test_only_run_imports_ray():
    for path in MODULES:
        names = {
            alias.name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert "ray" not in names or room_of(path) == "run", path


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("cvbatch.data.plan", {"tensorflow", "keras", "ray"}),
        ("cvbatch.data.decode", {"tensorflow", "keras", "ray"}),
        ("cvbatch.worker", {"tensorflow", "keras", "ray"}),
        ("cvbatch.reading", {"tensorflow", "keras", "ray"}),
        ("cvbatch.page.writing", {"tensorflow", "keras", "ray"}),
        ("cvbatch.run.prediction", {"tensorflow", "keras"}),
        ("cvbatch.run.training", {"tensorflow", "keras", "ray"}),
        ("cvbatch.run.evaluation", {"tensorflow", "keras", "ray"}),
        ("cvbatch.run.explaining", {"tensorflow", "keras", "ray"}),
        ("cvbatch.cli", {"tensorflow", "keras", "ray", "pyarrow"}),
    ],
)
def test_importing_does_not_load(module, absent):
    code = f"import sys, {module}; print(*sorted({absent} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
