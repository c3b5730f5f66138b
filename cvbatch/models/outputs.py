"""Select the outputs of a model by name and rank; errors for outputs that do not match a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvbatch.core.errors import ModelError


def by_name(outputs: Any) -> dict[str, Any]:
    """Return a model's outputs (one tensor, a list or a dict) as a dict."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if isinstance(outputs, (list, tuple)):
        return {f"output_{i}": tensor for i, tensor in enumerate(outputs)}
    return {"output": outputs}


def output_mismatch(task: str, wants: str, found: Mapping[str, Any]) -> ModelError:
    """Return the error for a model whose outputs do not match its task.

    Args:
        task: name of the task.
        expected: what the task requires, such as "class scores (B, classes)".
        outputs: tensors by name.
    """
    shapes = ", ".join(f"{name} {_shape(tensor)}" for name, tensor in outputs.items())
    return ModelError(f"task {task} requires {expected}, but the model's outputs are {shapes}")


def select_output(
    task: str, wants: str, found: Mapping[str, Any], name: str | None, rank: int
) -> Any:
    """Return the output called `name`, or the only one of that rank.

    Raises:
        ModelError: there is none, or several and none was named.
    """
    fitting = {key: tensor for key, tensor in found.items() if len(tensor.shape) == rank}
    if name is not None:
        fitting = {key: tensor for key, tensor in fitting.items() if key == name}
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    if len(fitting) > 1:
        raise ModelError(
            f"task {task}: the outputs {', '.join(fitting)} all fit; choose one by `output: NAME`"
        )
    raise output_mismatch(task, wants if name is None else f"{wants} called {name!r}", found)


def _shape(tensor: Any) -> str:
    return "(" + ", ".join("B" if i == 0 else str(n) for i, n in enumerate(tensor.shape)) + ")"
