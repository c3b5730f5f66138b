"""Every field of every job file changes the fingerprint, or is listed here with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from cvbatch.config import evaluate, explain, predict, train
from cvbatch.config.evaluate import parse_evaluation
from cvbatch.config.explain import parse_explanation
from cvbatch.config.loader import parse_job
from cvbatch.config.train import parse_training

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")

LOCATION = "changes where the data are, not what they are"
RESOURCES = "changes how fast and where the job runs, not its rows"
LIMIT = "changes when the job stops, not what it writes"
IDENTITY = "is in the identity: the hash of the file and the class names"
MANIFEST = "is stored in the manifest, which refuses other values"
ADDED = "changes which files are planned, not the row of a file"
NO_ROWS = "an explanation has no rows of the source"
CHUNKS = "groups the same rows into other files; the manifest stores the groups"

PREDICT = {
    "source.uri": LOCATION,
    "source.format": "is stored in the manifest, which refuses other values",
    "source.image_column": "is stored in the manifest, which refuses other values",
    "source.members": MANIFEST,
    "source.id_column": MANIFEST,
    "source.unreadable": ADDED,
    "sink.uri": LOCATION,
    "models[0].model": IDENTITY,
    "models[0].weights": IDENTITY,
    "models[0].sha256": IDENTITY,
    "models[0].classes": IDENTITY,
    "run.batch_size": RESOURCES,
    "run.chunk_images": CHUNKS,
    "run.chunk_bytes": CHUNKS,
    "run.max_failure_fraction": LIMIT,
    "run.engine": "is resolved first: the fingerprint contains the engine that runs",
    "run.arrangement": RESOURCES,
    "run.actors": RESOURCES,
    "run.cpus_per_actor": RESOURCES,
    "run.gpus_per_actor": RESOURCES,
    "run.actor_memory_bytes": RESOURCES,
    "run.image_timeout_s": LIMIT,
    "run.request_timeout_s": LIMIT,
    "run.retry_budget_s": LIMIT,
}
TRAIN = {
    "source.uri": LOCATION,
    "sink.uri": LOCATION,
    "model.sha256": IDENTITY,
    "training.keep": "changes how many checkpoints are kept",
    "training.checkpoint_steps": "changes how often a checkpoint is written",
    "run.workers": "is stored in the state of the training, and stays the same when it is resumed",
    "run.cpus_per_worker": RESOURCES,
    "run.gpus_per_worker": RESOURCES,
    "run.worker_memory_bytes": RESOURCES,
    "run.max_failures": LIMIT,
    "run.request_timeout_s": LIMIT,
    "run.retry_budget_s": LIMIT,
}
EVALUATE = {
    "predictions.uri": LOCATION,
    "truth.uri": LOCATION,
    "sink.uri": LOCATION,
    "run.workers": RESOURCES,
    "run.request_timeout_s": LIMIT,
    "run.retry_budget_s": LIMIT,
}
EXPLAIN = {
    "model.model": IDENTITY,
    "model.weights": IDENTITY,
    "model.sha256": IDENTITY,
    "model.classes": IDENTITY,
    "source.uri": LOCATION,
    "source.format": "is stored in the manifest, which refuses other values",
    "source.image_column": "is stored in the manifest, which refuses other values",
    "source.members": MANIFEST,
    "source.id_column": MANIFEST,
    "source.unreadable": ADDED,
    "source.keep_columns": NO_ROWS,
    "sink.uri": LOCATION,
    "run.workers": RESOURCES,
    "run.batch_size": RESOURCES,
    "run.chunk_images": CHUNKS,
    "run.max_failure_fraction": LIMIT,
    "run.image_timeout_s": LIMIT,
    "run.request_timeout_s": LIMIT,
    "run.retry_budget_s": LIMIT,
}
HEATMAP = {"layer": "a", "top_k": 2, "score": "logit"}
TILES = {"size": [8, 8], "overlap": 0.25}
MODEL: dict[str, Any] = {
    "model": "a.keras",
    "image_size": [8, 8],
    "rescale": {"scale": 2.0, "offset": 1.0},
    "output": "b",
    "activation": "none",
    "trust": ["package"],
}
TASKS: list[dict[str, Any]] = [
    {"task": "classification", "heatmap": HEATMAP, "tiles": TILES, **MODEL},
    {"task": "segmentation", "tiles": TILES, **MODEL},
    {"task": "detection", "tiles": TILES, "keep_classes": ["c"], **MODEL},
    {"task": "localization", "heatmap": HEATMAP, **MODEL},
]


def predict_job(task: dict[str, Any]) -> BaseModel:
    return parse_job({"source": {"uri": "in"}, "sink": {"uri": "out"}, "models": [task]})


def train_job() -> BaseModel:
    return parse_training(
        {
            "source": {"uri": "in"},
            "sink": {"uri": "out"},
            "model": {"task": "detection", "model": "yolo", "weights": "random"},
            "training": {"image_sizes": [[64, 64], [96, 96]], "augment": {}},
        }
    )


def evaluate_job() -> BaseModel:
    return parse_evaluation(
        {
            "predictions": {"uri": "a"},
            "truth": {"uri": "b", "splits": ["test"]},
            "sink": {"uri": "c"},
            "evaluation": {"heatmaps": {"sample": 5, "class_map": {"a": "b"}}},
        }
    )


def explain_job() -> BaseModel:
    sections = {"activations": {}, "patterns": {}, "weights": {}, "dream": {"layers": {"a": 1.0}}}
    return parse_explanation(
        {
            "model": {"task": "classification", **MODEL},
            "source": {"uri": "in"},
            "sink": {"uri": "out"},
            **sections,
            "gradcam": {},
        }
    )


Fingerprint = Callable[[Any], str]
JOBS: dict[str, tuple[BaseModel, Fingerprint, dict[str, str]]] = {
    **{
        f"predict-{task['task']}": (
            predict_job(task),
            lambda job: predict.fingerprint(job, ["x"], "litert"),
            PREDICT,
        )
        for task in TASKS
    },
    "train": (train_job(), lambda job: train.fingerprint(job, ["x"]), TRAIN),
    "evaluate": (evaluate_job(), lambda job: evaluate.fingerprint(job, ["x"]), EVALUATE),
    "explain": (explain_job(), lambda job: explain.fingerprint(job, "x"), EXPLAIN),
}


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """Yield the path of every field that is not a section."""
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from leaves(getattr(value, name), f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
        yield from leaves(value[0], f"{path}[0]")
    else:
        yield path


def different(value: Any) -> Any:
    """Return a different value, which need not be valid in a job file."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value}x"
    return "x" if value is None else None


def changed(value: Any, path: str) -> Any:
    """Return a copy of a section with another value at `path`."""
    head, _, rest = path.partition(".")
    name = head.removesuffix("[0]")
    inner = getattr(value, name)
    if head != name:
        new: Any = [changed(inner[0], rest)]
    else:
        new = changed(inner, rest) if rest else different(inner)
    return value.model_copy(update={name: new})


CASES = [(job, path) for job, (value, *_) in JOBS.items() for path in leaves(value)]


@pytest.mark.parametrize(("name", "path"), CASES)
def test_a_field_changes_the_fingerprint_or_is_exempt(name: str, path: str) -> None:
    job, fingerprint, exempt = JOBS[name]
    is_changed = fingerprint(changed(job, path)) != fingerprint(job)
    assert is_changed != (path in exempt), path


def test_only_fields_that_exist_are_exempt() -> None:
    for name, (_, _, exempt) in JOBS.items():
        assert set(exempt) <= {path for job, path in CASES if job == name}, name


def test_keys_that_were_added_change_no_old_job_file() -> None:
    """An old sink stores its job without them, and is resumed with the same files."""
    source = predict_job(TASKS[0]).model_dump(mode="json")["source"]
    assert set(source) == {
        "uri",
        "format",
        "image_column",
        "max_bytes",
        "max_pixels",
        "reduced_jpeg",
    }
    task = {"task": "classification", "model": "a.keras"}
    assert "activation" not in predict_job(task).model_dump(mode="json")["models"][0]
    section = {"uri": "in", "keep_columns": ["a"], "unreadable": "fail"}
    job = parse_job({"source": section, "sink": {"uri": "out"}, "models": [TASKS[0]]})
    stored = job.model_dump(mode="json")
    assert {key: stored["source"][key] for key in section} == {**section, "uri": ["in"]}
    assert parse_job(stored) == job
