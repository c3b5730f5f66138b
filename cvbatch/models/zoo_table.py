"""The zoo in figures, kept in a file so that `cvbatch models` lists it without loading Keras.

`python -m cvbatch.models.zoo_table` works them out again and writes the file and docs/models.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cvbatch.core.errors import ModelError
from cvbatch.core.tasks import Task

_FILE = Path(__file__).with_name("figures.json")
_DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
_OPENING = """# Named networks

All networks of the zoo with their default input size and number of classes; one class means a
single sigmoid unit, which separates two classes. `cvbatch models NAME` shows one layer by layer, at
any size. `python -m cvbatch.models.zoo_table` writes this page.

"""
_TITLES = ("name", "task", "input", "classes", "parameters", "multiply-adds")


@dataclass(frozen=True)
class NetworkSummary:
    """A network of the zoo as it is built where nothing else is said."""

    name: str
    task: Task
    height: int
    width: int
    channels: int
    num_classes: int
    parameters: int
    multiply_adds: int  # for one image

    @property
    def cells(self) -> tuple[str, ...]:
        """Return the figures as a row of a table, under `titles()`."""
        size = f"{self.height}×{self.width}×{self.channels}"
        counts = (self.num_classes, self.parameters, self.multiply_adds)
        return (self.name, self.task, size, *(f"{count:,}" for count in counts))


def column_titles() -> tuple[str, ...]:
    """Return what stands over the columns of a table of figures."""
    return _TITLES


def read_summaries() -> list[NetworkSummary]:
    """Return the figures of every network in the zoo, in its order."""
    return [NetworkSummary(**row) for row in json.loads(_FILE.read_text(encoding="utf-8"))]


def as_markdown(figures: Sequence[NetworkSummary]) -> str:
    """Return the page docs/models.md."""
    rows: list[tuple[str, ...]] = [_TITLES, ("---", "---", "---", "---:", "---:", "---:")]
    rows += [(f"`{row[0]}`", *row[1:]) for row in (figure.cells for figure in figures)]
    return _OPENING + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def compute_summaries(names: Sequence[str] | None = None) -> Iterator[NetworkSummary]:
    """Yield the figures worked out from the networks. Imports TensorFlow; all take half a minute.

    names: of the networks; all of the zoo where nothing is said.

    Raises:
        ModelError: a layer of a network does not tell its multiply-adds.
    """
    from cvbatch.models import cost, registry

    for name in registry.ZOO if names is None else names:
        with cost.skip_weight_allocation():
            model = registry.build(name)
        found = cost.compute_cost(model)
        if found.is_at_least:
            silent = [row.path for row in found.layers if row.multiply_adds is None]
            raise ModelError(
                f"{name}: nothing tells the multiply-adds of {', '.join(silent)}; give its layer a "
                "method multiply_adds(input_shape, output_shape)"
            )
        _, height, width, channels = model.input_shape
        yield NetworkSummary(
            name=name,
            task=registry.ZOO[name].task,
            height=height,
            width=width,
            channels=channels,
            num_classes=registry.ZOO[name].num_classes,
            parameters=found.parameters,
            multiply_adds=found.multiply_adds,
        )


def main() -> None:
    """Write the figures of the zoo as it is, and the page that lists them."""
    figures = list(compute_summaries())
    lines = ",\n".join(json.dumps(asdict(figure)) for figure in figures)
    _FILE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    _DOCUMENT.write_text(as_markdown(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
