"""Task and weights of a model that a job names without them; Keras is not loaded."""

from __future__ import annotations

from typing import Any, NamedTuple

from cvbatch.core.errors import ModelError
from cvbatch.core.model_formats import format_of, refusal
from cvbatch.core.tasks import Task
from cvbatch.models.metadata import Card, read_card
from cvbatch.models.zoo_table import read_summaries, unknown_network

ASSUMED_TASK: Task = "classification"


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

    A network of the zoo has a task, and so has a .keras file that cvbatch wrote. Any other file is
    taken for a classifier: the build compares its outputs with the task. Weights are those that
    exist: of the demo, or ImageNet's. A network that has none keeps the section without weights,
    which is refused later.

    Raises:
        ModelError: no network has that name, or the model file cannot be read, or has a format that
            does not run.
    """
    name = str(section.get("model", ""))
    if "outputs" in section:  # each has a task
        return Completed(section, "")
    network = next((network for network in read_summaries() if network.name == name), None)
    if network is not None:
        weights = {"weights": network.weights} if network.weights else {}
        return Completed({"model": name, "task": network.task, **weights, **section}, "")
    model_format = format_of(name).key
    if model_format == "zoo" and name:
        raise unknown_network(name)
    if "task" in section or not name:
        return Completed(section, "")
    if message := refusal(name):
        raise ModelError(message)
    card = _card_of(name) if model_format == "keras" else None
    if card is not None:
        return Completed({"model": name, "task": card.task, **section}, "")
    note = f"model {name}: its task is not known, {ASSUMED_TASK} is assumed; if not, set task"
    return Completed({"model": name, "task": ASSUMED_TASK, **section}, note)


def _card_of(uri: str) -> Card | None:
    from cvbatch.models import model_files  # pyarrow is not needed for a network's name
    from cvbatch.storage.store import Storage

    return read_card(model_files.fetch(Storage(), uri))
