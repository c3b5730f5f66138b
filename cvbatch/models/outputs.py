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


def output_mismatch(task: str, expected: str, outputs: Mapping[str, Any]) -> ModelError:
    """Return the error for a model whose outputs do not match its task.

    Args:
        task: name of the task.
        expected: what the task requires, such as "class scores (B, classes)".
        outputs: tensors by name.
    """
    return ModelError(
        f"task {task} requires {expected}, but the model's outputs are {describe(outputs)}"
    )


def describe(outputs: Mapping[str, Any]) -> str:
    """Return names and shapes of tensors as text."""
    return ", ".join(f"{name} {shape_text(tensor)}" for name, tensor in outputs.items())


def select_output(
    task: str, expected: str, outputs: Mapping[str, Any], name: str | None, rank: int
) -> Any:
    """Return the output called `name`, or the only one of that rank.

    Args:
        task: name of the task.
        expected: what the task requires, such as "class scores (B, classes)".
        outputs: tensors by name.
        name: the output to select; None: the only one of `rank`.
        rank: number of dimensions, the batch among them.

    Raises:
        ModelError: no output matches, or several do and `name` is None.
    """
    matches = {key: tensor for key, tensor in outputs.items() if len(tensor.shape) == rank}
    if name is not None:
        matches = {key: tensor for key, tensor in matches.items() if key == name}
    if len(matches) == 1:
        return next(iter(matches.values()))
    if len(matches) > 1:
        raise ModelError(
            f"task {task}: the outputs {', '.join(matches)} all match; "
            "choose one with `output: NAME`"
        )
    if name is not None:
        expected = f"{expected} called {name!r}"
    raise output_mismatch(task, expected, outputs)


def shape_text(tensor: Any) -> str:
    """Return the shape of a batch for messages, such as (B, 7, 7, 1280)."""
    return "(" + ", ".join("B" if i == 0 else str(n) for i, n in enumerate(tensor.shape)) + ")"
