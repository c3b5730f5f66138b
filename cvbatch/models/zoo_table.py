"""Summary of every named network, stored in a file so that `cvbatch models` does not load Keras.

`python -m cvbatch.models.zoo_table` computes the summaries, writes the file and docs/networks.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cvbatch.core.errors import ModelError
from cvbatch.core.suggestions import closest_names, did_you_mean
from cvbatch.core.tasks import Task
from cvbatch.models.metadata import DEMO_FILES

_FILE = Path(__file__).with_name("figures.json")
_DOCUMENT = Path(__file__).parents[2] / "docs" / "networks.md"
_OPENING = """# Named networks

All networks of the zoo with their default input size and number of classes; one class means a
single sigmoid unit, which separates two classes. `cvbatch models NAME` shows one layer by layer, at
any size. `python -m cvbatch.models.zoo_table` writes this page.

"""
_TITLES = ("name", "task", "input", "classes", "parameters", "multiply-adds")


@dataclass(frozen=True)
class NetworkSummary:
    """Cost of a named network at its default input size and number of classes."""

    name: str
    task: Task
    height: int
    width: int
    channels: int
    num_classes: int
    parameters: int
    multiply_adds: int  # for one image
    weights: str  # pretrained: imagenet or demo; "" if there are none

    @property
    def cells(self) -> tuple[str, ...]:
        """Return the summary as a row of a table, under `column_titles()`."""
        size = f"{self.height}×{self.width}×{self.channels}"
        counts = (self.num_classes, self.parameters, self.multiply_adds)
        return (self.name, self.task, size, *(f"{count:,}" for count in counts))


def column_titles() -> tuple[str, ...]:
    """Return the column titles of a table of summaries."""
    return _TITLES


def read_summaries() -> list[NetworkSummary]:
    """Return the stored summary of every named network, in the order of the zoo."""
    return [NetworkSummary(**row) for row in json.loads(_FILE.read_text(encoding="utf-8"))]


def unknown_network(name: str) -> ModelError:
    """Return the error for a name that no network has; it suggests known names."""
    question = did_you_mean(closest_names(name, (row.name for row in read_summaries()), 3))
    return ModelError(
        f"no network is called {name!r} (a model file ends in .keras, .h5, .onnx or .tflite, and a "
        f"folder has a slash); {question or '`cvbatch models` lists the names'}"
    )


def as_markdown(summaries: Sequence[NetworkSummary]) -> str:
    """Return the page docs/networks.md."""
    rows: list[tuple[str, ...]] = [_TITLES, ("---", "---", "---", "---:", "---:", "---:")]
    rows += [(f"`{row[0]}`", *row[1:]) for row in (summary.cells for summary in summaries)]
    return _OPENING + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def compute_summaries(names: Sequence[str] | None = None) -> Iterator[NetworkSummary]:
    """Build networks and yield their summaries. Imports TensorFlow; all take half a minute.

    Args:
        names: networks; None: all of the zoo.

    Raises:
        ModelError: the multiply-adds of a layer are unknown.
    """
    from cvbatch.models import cost, registry

    for name in registry.ZOO if names is None else names:
        with cost.skip_weight_allocation():
            model = registry.build(name)
        network_cost = cost.compute_cost(model)
        if network_cost.is_at_least:
            unknown = [row.path for row in network_cost.layers if row.multiply_adds is None]
            raise ModelError(
                f"{name}: the multiply-adds of {', '.join(unknown)} are unknown; add a method "
                "multiply_adds(input_shape, output_shape) to the layer"
            )
        _, height, width, channels = model.input_shape
        yield NetworkSummary(
            name=name,
            task=registry.ZOO[name].task,
            height=height,
            width=width,
            channels=channels,
            num_classes=registry.ZOO[name].num_classes,
            parameters=network_cost.parameters,
            multiply_adds=network_cost.multiply_adds,
            weights=_pretrained_weights(name),
        )


def _pretrained_weights(name: str) -> str:
    from cvbatch.models.applications import APPLICATIONS

    return "imagenet" if name in APPLICATIONS else "demo" if name in DEMO_FILES else ""


def main() -> None:
    """Write the summaries of all named networks, and the page that lists them."""
    summaries = list(compute_summaries())
    lines = ",\n".join(json.dumps(asdict(summary)) for summary in summaries)
    _FILE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    _DOCUMENT.write_text(as_markdown(summaries), encoding="utf-8")


if __name__ == "__main__":
    main()
