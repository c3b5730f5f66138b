"""Find the image file that an annotation names, by its path or by the end of its path."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import NamedTuple

from cvbatch.importers.dataset_files import DatasetFile, FileTree, is_image

_ROOT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|[A-Za-z]:(?=[/\\])|^[/\\]+")


class Match(NamedTuple):
    """The file of a name, or why there is none."""

    file: DatasetFile | None
    issue: str = ""  # a key of ISSUE_KINDS; "": the path itself exists


def path_parts(name: str) -> list[str]:
    """Return the folders and the file name of a path of any system, without its root and `..`."""
    parts = _ROOT.sub("", name, count=1).replace("\\", "/").split("/")
    return [part for part in parts if part not in ("", ".", "..")]


class ImageLookup:
    """Finds image files by the names in annotations, which were often written on another machine.

    A name may lack its suffix.

    A path that does not exist below the folder is matched by its end: the file with the same name
    and the most equal parent folders. Two such files are ambiguous. No match is outside the folder.

    Args:
        tree: the files below the folder of images.
    """

    def __init__(self, tree: FileTree) -> None:
        self._base, self._files = tree.base, tree.files
        self._paths_of: dict[str, list[list[str]]] | None = None  # by file name; built when needed

    @property
    def image_uris(self) -> list[str]:
        """Return the URIs of the files that have the suffix of an image format."""
        return [file.uri for name, file in self._files.items() if is_image(name)]

    def find(self, name: str, folder: str = "") -> Match:
        """Return the file of a name; its issue is one of image_by_name, _ambiguous and _missing.

        Args:
            name: the path in the annotation.
            folder: decides between files with the same end: one of them is in such a folder.
        """
        below = name.removeprefix(self._base)
        if below in self._files:
            return Match(self._files[below])
        parts = path_parts(name)
        path = "/".join(parts)
        if path in self._files:
            return Match(self._files[path])
        if not parts:
            return Match(None, "image_missing")
        same_name = self._by_name().get(parts[-1], [])
        if not is_image(parts[-1]):  # a name without its suffix
            same_name = same_name or self._by_name().get(f"{parts[-1]}.", [])
        lengths = [_common_end(parts[:-1], candidate[:-1]) for candidate in same_name]
        best = [c for c, n in zip(same_name, lengths, strict=True) if n == max(lengths)]
        if len(best) > 1:
            best = [c for c in best if folder in c[:-1]] or best
        if len(best) == 1:
            return Match(self._files["/".join(best[0])], "image_by_name")
        return Match(None, "image_ambiguous" if best else "image_missing")

    def _by_name(self) -> dict[str, list[list[str]]]:
        if self._paths_of is None:
            self._paths_of = defaultdict(list)
            for path in self._files:
                parts = path.split("/")
                self._paths_of[parts[-1]].append(parts)
                if is_image(path):
                    self._paths_of[f"{parts[-1].rpartition('.')[0]}."].append(parts)
        return self._paths_of


def _common_end(a: list[str], b: list[str]) -> int:
    """Return how many parts at the end of two paths are equal."""
    count = 0
    for x, y in zip(reversed(a), reversed(b), strict=False):
        if x != y:
            break
        count += 1
    return count
