"""Report of an import: counts of images, objects and issues, as JSON or text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cvbatch.core.errors import SourceError
from cvbatch.importers.rules import ISSUE_KINDS, RULE_OF, actions_by_kind

NUM_EXAMPLES = 5  # of a kind of issue in the report
MAX_PLACES = 10_000  # of a kind of issue in the file of issues
_MAX_TEXT_CLASSES = 20
_MAX_EXAMPLE_CHARS = 200
_MAX_REASONS = 3  # kinds of issues in a message
SPLITS = ("train", "validation", "test")
_PAST_TENSE = {
    "clip": "clipped",
    "drop": "dropped",
    "keep": "kept",
    "split": "split by hash",
    "refuse": "refused",
}


@dataclass
class Issue:
    """How often a kind of issue occurred, and where."""

    count: int = 0
    places: list[str] = field(default_factory=list)  # the first MAX_PLACES

    @property
    def examples(self) -> list[str]:
        """Return the first places."""
        return self.places[:NUM_EXAMPLES]


class ImportReport:
    """Counts of one import. Found = written + dropped, for images and for objects.

    Args:
        chosen: flag → action, for flags that do not have their default.
    """

    def __init__(self, chosen: Mapping[str, str]) -> None:
        self.actions = actions_by_kind(chosen)
        self.issues: dict[str, Issue] = {}
        self.num_found = 0  # images, written or not
        self.num_objects_found = 0  # boxes of these images
        self.num_objects_of_dropped_images = 0
        self.num_ignored = 0  # files that are not part of the data set
        self.skipped: dict[str, str] = {}  # URI of what was not listed → kind, such as junk
        self.images: Counter[str] = Counter()  # split → images written
        self.objects: Counter[str] = Counter()  # split → boxes written
        self.classes: dict[str, Counter[str]] = {}  # column → class → images or boxes that have it

    def record(self, kind: str, example: str, count: int = 1) -> str:
        """Count an issue and return its action. `check` applies "refuse", at the end.

        Args:
            kind: a key of ISSUE_KINDS.
            example: where the issue occurred. Only the first MAX_PLACES are stored.
            count: number of images or objects that have the issue.
        """
        issue = self.issues.setdefault(kind, Issue())
        issue.count += count
        if len(issue.places) < MAX_PLACES:
            text = " ".join(example.split())[:_MAX_EXAMPLE_CHARS]
            issue.places.append(text.encode(errors="backslashreplace").decode())
        return self.actions[kind]

    def add_skipped(self, entries: Iterable[Mapping[str, str]]) -> None:
        """Count files and folders that a listing left out, each once.

        Args:
            entries: `uri` and `kind` of each.
        """
        self.skipped.update((entry["uri"], entry["kind"]) for entry in entries)

    @property
    def ignored(self) -> dict[str, int]:
        """Return kind → number of the files and folders that were not read."""
        counts = Counter(self.skipped.values())
        if self.num_ignored:
            counts["unused"] = self.num_ignored
        return dict(sorted(counts.items()))

    @property
    def num_written(self) -> int:
        """Return the number of images written."""
        return sum(self.images.values())

    def num_dropped(self, unit: str) -> int:
        """Return how many images or objects were dropped.

        Args:
            unit: "image" or "object".
        """
        return sum(
            issue.count
            for kind, issue in self.issues.items()
            if ISSUE_KINDS[kind].unit == unit and self.actions[kind] in ("drop", "refuse")
        )

    def check(self, source: str) -> None:
        """Raise if an issue has the action "refuse", or if no image can be written.

        Raises:
            SourceError: the message names every refused kind of issue and its flag.
        """
        refused = [kind for kind in self.issues if self.actions[kind] == "refuse"]
        if refused:
            reasons = "; ".join(self._refusal(kind) for kind in refused)
            raise SourceError(f"{source} is refused: {reasons}")
        if not self.num_written:
            reasons = ", ".join(
                f"{ISSUE_KINDS[kind].description}: {issue.count:,}, such as {issue.examples[0]}"
                for kind, issue in list(self.issues.items())[:_MAX_REASONS]
            )
            raise SourceError(
                f"{source} contains no usable labelled image ({reasons or 'it is empty'}); check "
                "the folder and the flags"
            )

    def _refusal(self, kind: str) -> str:
        issue = self.issues[kind]
        rule = RULE_OF[kind]
        other = next(action for action in rule.actions if action != "refuse")
        occurrence = f"{ISSUE_KINDS[kind].description} ({issue.count:,}), such as"
        return f"{occurrence} {issue.examples[0]}; fix them, or use --{rule.flag} {other}"

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready values. The same source gives the same values."""
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
                "of_dropped_images": self.num_objects_of_dropped_images,
            },
            "ignored_files": self.num_ignored,
            "ignored": self.ignored,
            "ignored_names": sorted(self.skipped)[:NUM_EXAMPLES],
            "splits": {
                split: {"images": self.images[split], "objects": self.objects[split]}
                for split in SPLITS
                if self.images[split]
            },
            "classes": {column: dict(counts) for column, counts in self.classes.items()},
            "oddities": [
                {
                    "kind": kind,
                    "meaning": ISSUE_KINDS[kind].description,
                    "action": self.actions[kind],
                    "count": issue.count,
                    "examples": issue.examples,
                }
                for kind, issue in sorted(self.issues.items())
            ],
        }

    def issue_lines(self) -> bytes:
        """Return the places of all issues as JSON lines, at most MAX_PLACES of each kind."""
        lines = (
            json.dumps({"kind": kind, "action": self.actions[kind], "place": place})
            for kind, issue in sorted(self.issues.items())
            for place in issue.places
        )
        return "".join(f"{line}\n" for line in lines).encode()

    @property
    def left_out_text(self) -> str:
        """Return which images and objects are not written, as the end of a sentence; or ""."""
        kinds = [
            f"{ISSUE_KINDS[kind].description} {issue.count:,}"
            for kind, issue in sorted(self.issues.items())
            if self.actions[kind] == "drop"
        ]
        text = f"; not written: {', '.join(kinds)} (_cvbatch/issues.jsonl)" if kinds else ""
        return text + (f"; not read: {self.num_ignored:,} other files" if self.num_ignored else "")

    def as_text(self) -> str:
        """Return the report as text for the terminal."""
        report = self.as_json()
        images, objects = report["images"], report["objects"]
        lines = [f"images   {images['found']:,} found, {images['written']:,} written"]
        if objects["found"]:
            lines.append(f"objects  {objects['found']:,} found, {objects['written']:,} written")
        for split, counts in report["splits"].items():
            suffix = f", {counts['objects']:,} objects" if objects["found"] else ""
            lines.append(f"  {split:<11} {counts['images']:,} images{suffix}")
        for column, counts in report["classes"].items():
            first = list(counts.items())[:_MAX_TEXT_CLASSES]
            listed = ", ".join(f"{name} {count:,}" for name, count in first)
            more = f" and {len(counts) - len(first):,} more" if len(counts) > len(first) else ""
            lines.append(f"{column:<8} {listed}{more}")
        for issue in report["oddities"]:
            action = _PAST_TENSE[issue["action"]]
            lines.append(f"issue    {issue['meaning']}: {issue['count']:,} {action}")
            lines += [f"           {example}" for example in issue["examples"]]
        if self.num_ignored:
            lines.append(f"ignored  {self.num_ignored:,} files that are not part of the data set")
        for kind, count in Counter(self.skipped.values()).items():
            example = min(uri for uri, other in self.skipped.items() if other == kind)
            lines.append(f"ignored  {count:,} {kind.replace('_', ' ')}, such as {example}")
        return "\n".join(lines)
