"""Task and weights of a model that a job names without them; Keras is not loaded."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from cvbatch.config.base import NAMED_WEIGHTS
from cvbatch.core.errors import ModelError
from cvbatch.core.model_formats import format_of, refusal
from cvbatch.core.suggestions import hint
from cvbatch.core.tasks import Task
from cvbatch.models.metadata import read_card
from cvbatch.models.zoo_table import read_summaries, unknown_network

ASSUMED_TASK: Task = "classification"
_PRESET_TASKS: dict[str, Task] = {  # end of the name of a KerasHub class
    "ImageClassifier": "classification",
    "ImageSegmenter": "segmentation",
    "ObjectDetector": "detection",
}


class Completed(NamedTuple):
    """A model section with task and weights.

    Attributes:
        section: of the job file.
        note: what was assumed, in one sentence; "" if nothing was.
    """

    section: dict[str, Any]
    note: str


def complete_model(section: dict[str, Any]) -> Completed:
    """Add the task and weights that a model section lacks.

    A network of the zoo has a task, and so have a .keras file that cvbatch wrote and a KerasHub
    preset. Any other model is taken for a classifier: the build compares its outputs with the task.
    Weights are those that exist: of the demo, or ImageNet's.

    Raises:
        ModelError: no network has that name, it has no pretrained weights, or none are called so;
            or the model file cannot be read, or has a format that does not run.
    """
    name = str(section.get("model", ""))
    if "outputs" in section:  # each has a task
        return Completed(section, "")
    network = next((network for network in read_summaries() if network.name == name), None)
    if network is not None:
        completed = {"model": name, "task": network.task, "weights": network.weights, **section}
        _check_weights(name, completed["weights"])
        return Completed(completed, "")
    if name and format_of(name).key == "zoo":
        raise unknown_network(name)
    if "task" in section or not name:
        return Completed(section, "")
    if message := refusal(name):
        raise ModelError(message)
    if task := _stored_task(name):
        return Completed({"model": name, "task": task, **section}, "")
    note = (
        f"model {name}: its task is not known, {ASSUMED_TASK} is assumed; if not, set task (--task)"
    )
    return Completed({"model": name, "task": ASSUMED_TASK, **section}, note)


def _check_weights(name: str, weights: Any) -> None:
    """Refuse a network of the zoo without weights, and weights that are neither a name nor a file.

    The types of values are checked later, with all others of the job.
    """
    if not weights:
        raise ModelError(
            f"network {name!r} has no pretrained weights: to train it, set weights to random "
            "(--weights random); to predict, set model to the .keras file of the training, or "
            "weights to a weights file"
        )
    last = str(weights).rpartition("/")[2]
    if last not in NAMED_WEIGHTS and "." not in last:
        raise ModelError(
            f"weights {weights!r} of {name} are neither {', '.join(NAMED_WEIGHTS)} nor a .h5 or "
            f".keras file; {hint(last, NAMED_WEIGHTS)}"
        )


def _stored_task(uri: str) -> str:
    """Return the task in the card of a .keras file or in a KerasHub preset; "" if it is unknown."""
    from cvbatch.models import model_files  # pyarrow is not needed for a network's name
    from cvbatch.storage.store import Storage

    storage, model_format = Storage(), format_of(uri)
    if model_format.key == "keras":
        card = read_card(model_files.fetch(storage, uri))
        return card.task if card else ""
    if not model_format.is_folder:
        return ""
    try:
        class_name = str(json.loads(model_files.read_preset(storage, uri))["registered_name"])
    except (ValueError, LookupError, TypeError, RecursionError):  # another folder; refused later
        return ""
    return next((task for end, task in _PRESET_TASKS.items() if class_name.endswith(end)), "")
