"""What `cvbatch models` shows: the zoo at a glance, or one network layer by layer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvbatch.core.errors import ModelError
from cvbatch.models import zoo_table as figures

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from cvbatch.models.cost import Cost

_ADAM_SLOTS = 2  # numbers it keeps for each weight


@dataclass(frozen=True)
class Table:
    """Rows of text under titles; columns of numbers stand flush right."""

    titles: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    num_text_columns: int  # the first ones; numbers follow

    def as_text(self) -> str:
        """Return the table in plain aligned columns."""
        everything = [self.titles, *self.rows]
        widths = [max(map(len, column)) for column in zip(*everything, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i < self.num_text_columns else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in everything
        )

    def as_rich(self) -> RichTable:
        """Return the table for a terminal."""
        from rich.table import Table as RichTable

        drawn = RichTable()
        for i, title in enumerate(self.titles):
            drawn.add_column(
                title, justify="left" if i < self.num_text_columns else "right", overflow="fold"
            )
        for row in self.rows:
            drawn.add_row(*row)
        return drawn


def zoo_table(networks: Sequence[figures.NetworkSummary]) -> Table:
    """Return the zoo, a network a row."""
    return Table(figures.column_titles(), [one.cells for one in networks], num_text_columns=3)


def describe_network(
    name: str,
    num_classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Cost:
    """Return what a network costs. Imports TensorFlow.

    name: in the zoo, or the path or URI of a .keras file. image_size: (height, width) in pixels.
    options: of a network in the zoo, such as its width.

    Raises:
        ModelError: there is no such network or file, or it cannot have that size or number of
            classes.
    """
    from cvbatch.core.child_process import silent_stderr

    is_fixed = num_classes is not None or bool(options)
    file = _fetch(name, is_fixed) if name.endswith(".keras") else None
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with silent_stderr():  # TensorFlow tells the terminal of its start
        from cvbatch.models import cost, registry

        if file is not None:
            return cost.compute_cost(registry.load_file(name, file), image_size)
        with cost.skip_weight_allocation():
            model = registry.build(name, num_classes, image_size, options)
        return cost.compute_cost(model)


def _fetch(uri: str, is_fixed: bool) -> Path:
    from cvbatch.models import model_files  # it loads pyarrow, which the list does without
    from cvbatch.storage.store import Storage

    if is_fixed:
        raise ModelError(
            f"--classes or --build for {uri}: a .keras file is built already; leave them out"
        )
    return model_files.fetch(Storage(), uri)


def layer_table(cost: Cost) -> Table:
    """Return a network, a call of a layer a row."""
    rows = [
        (
            row.path,
            row.kind,
            ", ".join("×".join(map(str, shape[1:])) or "1" for shape in row.output_shapes),
            f"{row.parameters:,}",
            "?" if row.multiply_adds is None else f"{row.multiply_adds:,}",
            f"{row.output_bytes:,}",
        )
        for row in cost.layers
    ]
    titles = ("layer", "kind", "output", "parameters", "multiply-adds", "bytes")
    return Table(titles, rows, num_text_columns=3)


def batch_bytes(cost: Cost, batch_size: int) -> dict[str, int]:
    """Return what a batch takes in float32, its network's weights included.

    In training the weights that are trained come with a gradient and the two numbers that Adam
    keeps for each.
    """
    from cvbatch.distributed.memory import training_need

    training = training_need(
        cost.weight_bytes, cost.trainable_bytes, cost.training_bytes, _ADAM_SLOTS
    )
    return {
        "batch_size": batch_size,
        "inference_bytes": cost.weight_bytes + batch_size * cost.inference_bytes,
        "training_bytes": training.of(batch_size),
    }


def totals_text(cost: Cost, batch_size: int | None = None) -> str:
    """Return the totals of a network, and of a batch where one is asked for."""
    at_least = "at least " if cost.is_at_least else ""
    lines = [
        ("parameters", f"{cost.parameters:,}, of which trainable {cost.trainable_parameters:,}"),
        ("multiply-adds", f"{at_least}{cost.multiply_adds:,} for one image"),
        ("weights", f"{cost.weight_bytes:,} bytes"),
        ("inference", f"{cost.inference_bytes:,} bytes an image: what its largest maps take"),
        ("training", f"{cost.training_bytes:,} bytes an image of the batch: every map"),
    ]
    if batch_size is not None:
        said = batch_bytes(cost, batch_size)
        lines.append(
            (
                f"batch of {batch_size:,}",
                f"{said['inference_bytes']:,} bytes with the weights; {said['training_bytes']:,} "
                "in training, with gradients and Adam's state",
            )
        )
    return "\n".join(f"{title:<17} {text}" for title, text in lines)
