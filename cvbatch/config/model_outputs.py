"""Several outputs of one network: entries with `outputs`, and sections that share it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cvbatch.config.models import ModelConfig, TiledConfig

# Keys of a section that choose the network and its input; the other keys are about one output.
NETWORK_KEYS = tuple(
    key for key in TiledConfig.model_fields if key not in ("classes", "output", "activation")
)


class Place(NamedTuple):
    """Where a section of `models` is in the job file.

    Attributes:
        entry: position in the list `models`.
        output: position in its list `outputs`; None for an entry without `outputs`.
    """

    entry: int
    output: int | None = None

    def path(self, key: str) -> str:
        """Return the path of the mapping in the file that has this key of the section."""
        is_shared = self.output is None or key in NETWORK_KEYS
        return f"models[{self.entry}]" + ("" if is_shared else f".outputs[{self.output}]")


def expand_outputs(models: Sequence[Any], errors: list[str]) -> tuple[list[Any], list[Place]]:
    """Return the sections of all models, and the place of each.

    Args:
        models: the entries of the job file.
        errors: receives a line for each key that is at the wrong place.
    """
    sections: list[Any] = []
    places: list[Place] = []
    for i, entry in enumerate(models):
        if not isinstance(entry, Mapping) or "outputs" not in entry:
            sections.append(entry)
            places.append(Place(i))
            continue
        outputs = entry["outputs"]
        if not isinstance(outputs, list) or not outputs or not _are_mappings(outputs):
            errors.append(f"models[{i}].outputs: must be a list with a task in each item")
            continue
        network = {key: value for key, value in entry.items() if key != "outputs"}
        errors += [
            f"models[{i}].{key}: is about one output; move it into an item of outputs (those share "
            f"{', '.join(NETWORK_KEYS)})"
            for key in network
            if key not in NETWORK_KEYS
        ]
        for j, output in enumerate(outputs):
            errors += [
                f"models[{i}].outputs[{j}].{key}: the outputs share one network; move {key} beside "
                "outputs"
                for key in output
                if key in NETWORK_KEYS
            ]
            sections.append(network | output)
            places.append(Place(i, j))
    return sections, places


def _are_mappings(values: Sequence[Any]) -> bool:
    return all(isinstance(value, Mapping) for value in values)


def shared_networks(models: Sequence[ModelConfig]) -> list[tuple[int, ...]]:
    """Return the positions of the sections that one program computes, program by program.

    Sections with the same network and input share a program, so that the network runs once for each
    image. Those with tiles do not: the outputs of tiles are merged image by image, one task at a
    time, so that they need not be in memory together.
    """
    programs: dict[str, list[int]] = {}
    for position, config in enumerate(models):
        network = config.model_dump(mode="json", include=set(NETWORK_KEYS), exclude_none=True)
        key = [network, position if "tiles" in network else None]
        programs.setdefault(json.dumps(key, sort_keys=True), []).append(position)
    return [tuple(positions) for positions in programs.values()]
