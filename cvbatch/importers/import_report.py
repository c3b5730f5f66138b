"""Counts what an import found, kept, mended and left out, so that nothing happens in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cvbatch.core.errors import SourceError
from cvbatch.importers.rules import FLAG_OF, ISSUE_KINDS, actions_by_kind

NUM_EXAMPLES = 5
_SHOWN_CLASSES = 20
_SHOWN_LETTERS = 200
SPLITS = ("train", "validation", "test")
_PAST = {
    "clip": "clipped",
    "drop": "dropped",
    "keep": "kept",
    "split": "split by hash",
    "refuse": "refused",
}


@dataclass
class Oddity:
    """How often something odd was met, and where first."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


class ImportReport:
    """What an import came to; counts of images found = written + dropped, and so for objects."""

    def __init__(self, chosen: Mapping[str, str]) -> None:
        """Start at nothing. chosen: flag → action, where it is not the default."""
        self.actions = actions_by_kind(chosen)
        self.issues: dict[str, Oddity] = {}
        self.num_found = 0  # images, whatever became of them
        self.num_objects_found = 0  # boxes of all those images
        self.num_objects_left = 0  # of images that were dropped
        self.num_ignored = 0  # files that are no part of the data set
        self.images: Counter[str] = Counter()  # split → images written
        self.objects: Counter[str] = Counter()  # split → boxes written
        self.classes: dict[str, Counter[str]] = {}  # column → class → how often

    def note(self, kind: str, where: str, count: int = 1) -> str:
        """Count an oddity; return what is to be done about it. "refuse" is done at the end."""
        oddity = self.issues.setdefault(kind, Oddity())
        oddity.count += count
        if len(oddity.examples) < NUM_EXAMPLES:
            oddity.examples.append(" ".join(where.split())[:_SHOWN_LETTERS])
        return self.actions[kind]

    @property
    def num_written(self) -> int:
        """Return the number of images written."""
        return sum(self.images.values())

    def num_dropped(self, unit: str) -> int:
        """Return how many things of a unit were dropped."""
        return sum(
            oddity.count
            for kind, oddity in self.issues.items()
            if ISSUE_KINDS[kind].unit == unit and self.actions[kind] in ("drop", "refuse")
        )

    def check(self, source: str) -> None:
        """Refuse where a flag says so, or where nothing is left.

        Raises:
            SourceError: with every kind that is refused and its remedy, in one sentence.
        """
        refused = [kind for kind in self.issues if self.actions[kind] == "refuse"]
        if refused:
            told = "; ".join(self._refusal(kind) for kind in refused)
            raise SourceError(f"{source} is refused: {told}")
        if not self.num_written:
            why = ", ".join(
                f"{ISSUE_KINDS[kind].meaning}: {oddity.count:,}" for kind, oddity in self.issues.items()
            )
            raise SourceError(
                f"{source} holds no labelled image that can be used ({why or 'it is empty'}); "
                "check the folder and the flags"
            )

    def _refusal(self, kind: str) -> str:
        oddity = self.issues[kind]
        told = f"{ISSUE_KINDS[kind].meaning} ({oddity.count:,}), such as {oddity.examples[0]}"
        return f"{told}; mend them, or --{FLAG_OF[kind]} drop"

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready values; the same source gives the same."""
        return {
            "images": {
                "found": self.num_found,
                "written": self.num_written,
                "dropped": self.num_dropped("image"),
            },
            "objects": {
                "found": self.num_objects_found,
                "written": sum(self.objects.values()),
                "dropped": self.num_dropped("object"),
                "of_dropped_images": self.num_objects_left,
            },
            "ignored_files": self.num_ignored,
            "splits": {
                split: {"images": self.images[split], "objects": self.objects[split]}
                for split in SPLITS
                if self.images[split]
            },
            "classes": {column: dict(counts) for column, counts in self.classes.items()},
            "oddities": [
                {
                    "kind": kind,
                    "meaning": ISSUE_KINDS[kind].meaning,
                    "action": self.actions[kind],
                    "count": oddity.count,
                    "examples": oddity.examples,
                }
                for kind, oddity in sorted(self.issues.items())
            ],
        }

    def as_text(self) -> str:
        """Return the report for a person."""
        said = self.as_json()
        images, objects = said["images"], said["objects"]
        lines = [f"images   {images['found']:,} found, {images['written']:,} written"]
        if objects["found"]:
            lines.append(f"objects  {objects['found']:,} found, {objects['written']:,} written")
        for split, counts in said["splits"].items():
            told = f", {counts['objects']:,} objects" if objects["found"] else ""
            lines.append(f"  {split:<11} {counts['images']:,} images{told}")
        for column, counts in said["classes"].items():
            shown = list(counts.items())[:_SHOWN_CLASSES]
            told = ", ".join(f"{name} {count:,}" for name, count in shown)
            more = f" and {len(counts) - len(shown):,} more" if len(counts) > len(shown) else ""
            lines.append(f"{column:<8} {told}{more}")
        for oddity in said["oddities"]:
            count, meaning = oddity["count"], oddity["meaning"]
            lines.append(f"odd      {meaning}: {count:,} {_PAST[oddity['action']]}")
            lines += [f"           {example}" for example in oddity["examples"]]
        if self.num_ignored:
            lines.append(f"ignored  {self.num_ignored:,} files that are no part of the data set")
        return "\n".join(lines)
