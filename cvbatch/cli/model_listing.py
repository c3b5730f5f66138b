"""Tables of `cvbatch models`: all built-in networks, or the layers of one network."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvbatch.core.errors import ModelError
from cvbatch.core.model_formats import format_of, not_keras_error, own_weights_error, refusal
from cvbatch.models import zoo_table as summaries

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from cvbatch.models.cost import Cost

_HUB_FAMILIES = {  # of KerasHub; tests/models/test_hub_presets.py compares them
    "classifiers": (
        *("DeiT", "DenseNet", "EfficientNet", "MobileNet", "ResNet", "Swin Transformer", "VGG"),
        *("ViT", "Xception"),
    ),
    "segmenters": ("DeepLabV3", "SegFormer"),
    "detectors": ("D-FINE", "RetinaNet"),
}
_ADAM_SLOTS = 2  # optimizer variables per weight


@dataclass(frozen=True)
class Table:
    """A table of text; columns of numbers are right-aligned."""

    titles: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    num_text_columns: int  # the first columns; the others contain numbers

    def as_text(self) -> str:
        """Return the table as aligned plain text."""
        lines = [self.titles, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i < self.num_text_columns else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in lines
        )

    def as_rich(self) -> RichTable:
        """Return the table as a `rich` table, for a terminal."""
        from rich.table import Table as RichTable

        table = RichTable()
        for i, title in enumerate(self.titles):
            table.add_column(
                title, justify="left" if i < self.num_text_columns else "right", overflow="fold"
            )
        for row in self.rows:
            table.add_row(*row)
        return table


def zoo_table(networks: Sequence[summaries.NetworkSummary]) -> Table:
    """Return the table of all built-in networks, one row per network."""
    return Table(
        summaries.column_titles(), [network.cells for network in networks], num_text_columns=3
    )


def hub_text() -> str:
    """Return the families of KerasHub presets that are tested; "" if it is not installed."""
    if find_spec("keras_hub") is None:
        return ""
    kinds = "; ".join(f"{kind} {', '.join(families)}" for kind, families in _HUB_FAMILIES.items())
    return f"KerasHub presets, by folder or as keras_hub://NAME from its cache: {kinds}"


def describe_network(
    name: str,
    num_classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Cost:
    """Return layers, parameters, multiply-adds and memory of a network. Imports TensorFlow.

    Args:
        name: a built-in network, or the path or URI of a model file or folder.
        num_classes: None: that of the network.
        image_size: (height, width) in pixels; None: that of the network.
        options: build options of a built-in network, such as its width.

    Raises:
        ModelError: the network or file does not exist, or the size, the number of classes or an
            option is not possible.
    """
    is_configured = num_classes is not None or bool(options)
    is_built_in = format_of(name).key == "zoo"
    if message := refusal(name) or not_keras_error(name):
        raise ModelError(message)
    if is_built_in and name not in (network.name for network in summaries.read_summaries()):
        raise summaries.unknown_network(name)
    if is_configured and not is_built_in:
        raise ModelError(own_weights_error("--classes or --build", name))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryDirectory(prefix="cvbatch-model-") as folder:
        copy = None if is_built_in else _download(name, Path(folder))
        return _cost_of(name, copy, num_classes, image_size, options)


def _download(uri: str, folder: Path) -> Path:
    from cvbatch.models import model_files  # imports pyarrow, which the list does not need
    from cvbatch.storage.store import Storage

    return model_files.download(Storage(), uri, folder, None)


def _cost_of(
    name: str,
    copy: Path | None,
    num_classes: int | None,
    image_size: tuple[int, int] | None,
    options: Mapping[str, Any] | None,
) -> Cost:
    from cvbatch.core.child_process import silent_stderr

    with silent_stderr():  # TensorFlow logs to the terminal when it starts
        from cvbatch.models import cost, registry

        if copy is not None:
            model = registry.load_model(name, None, local_file=lambda _: copy)
            return cost.compute_cost(model, image_size)
        with cost.skip_weight_allocation():
            model = registry.build(name, num_classes, image_size, options)
        return cost.compute_cost(model)


def layer_table(cost: Cost) -> Table:
    """Return the table of layers, one row per layer call."""
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
    """Return the memory of a batch in float32, in bytes, including the weights.

    Training adds a gradient and Adam's two variables for each trainable weight.
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
    """Return the totals of a network, and the memory of a batch if `batch_size` is given."""
    at_least = "at least " if cost.is_at_least else ""
    lines = [
        ("parameters", f"{cost.parameters:,}, of which trainable {cost.trainable_parameters:,}"),
        ("multiply-adds", f"{at_least}{cost.multiply_adds:,} per image"),
        ("weights", f"{cost.weight_bytes:,} bytes"),
        ("inference", f"{cost.inference_bytes:,} bytes per image: its largest feature maps"),
        ("training", f"{cost.training_bytes:,} bytes per image: all feature maps"),
    ]
    if batch_size is not None:
        memory = batch_bytes(cost, batch_size)
        lines.append(
            (
                f"batch of {batch_size:,}",
                f"{memory['inference_bytes']:,} bytes with the weights; "
                f"{memory['training_bytes']:,} in training, with gradients and Adam's variables",
            )
        )
    return "\n".join(f"{title:<17} {text}" for title, text in lines)
