"""Count files that a job does not read, by kind, with a few names of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MAX_EXAMPLES = 3  # names of each kind


@dataclass
class Ignored:
    """Files of a source, or members of its tars and zips, that are not read."""

    counts: dict[str, int] = field(default_factory=dict)  # kind → files
    examples: dict[str, list[str]] = field(default_factory=dict)  # kind → a few names, sorted

    def add(self, kind: str, names: Sequence[str], count: int | None = None) -> None:
        """Count files.

        Args:
            kind: What they are, such as "raw_photograph".
            names: Of all of them, or the first ones.
            count: Of all of them; None: as many as names.
        """
        num_files = len(names) if count is None else count
        if num_files:
            self.counts[kind] = self.counts.get(kind, 0) + num_files
            few = self.examples.get(kind, []) + list(names)
            self.examples[kind] = sorted(few)[:MAX_EXAMPLES]

    def merge(self, counts: Mapping[str, int], examples: Mapping[str, Sequence[str]]) -> None:
        """Add the files of another count; the result does not depend on the order of merges."""
        for kind, count in counts.items():
            self.add(kind, examples.get(kind, ()), count)

    def __bool__(self) -> bool:
        return bool(self.counts)

    @property
    def text(self) -> str:
        """Return counts and names, the largest first: "video 3 (a.mov, ...), text 1 (b.txt)"."""
        return ", ".join(f"{count}{self._names(kind)}" for kind, count in self._counted())

    @property
    def counts_text(self) -> str:
        """Return the counts, the largest first: "video 3, text 1"."""
        return ", ".join(count for _, count in self._counted())

    def _counted(self) -> list[tuple[str, str]]:
        """Return each kind, with its count in words."""
        ordered = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        return [(kind, f"{kind.replace('_', ' ')} {count:,}") for kind, count in ordered]

    def _names(self, kind: str) -> str:
        names = self.examples.get(kind, [])
        more = ["..."] if self.counts[kind] > len(names) else []
        return f" ({', '.join(names + more)})" if names else ""
