"""Names of files and folders that are known to be no data: left by systems, tools and cvbatch.

Other names that begin with "_" or "." are data: cameras write `_DSC0001.JPG`.
"""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

JUNK = "junk"  # the kind under which such names are counted

# What leaves the name → regular expression (Python and RE2) of one file or folder name.
JUNK_NAMES: dict[str, str] = {
    "macOS": r"\._[^/]*|\.DS_Store|__MACOSX|\.AppleDouble|\.Spotlight-V100|\.Trashes|\.fseventsd|"
    r"\.TemporaryItems|\.DocumentRevisions-V100|\.apdisk|\.localized",
    "Windows": r"(?i:thumbs\.db|ehthumbs(?:_vista)?\.db|desktop\.ini|\$RECYCLE\.BIN|"
    r"System Volume Information)",
    "Linux and NAS": r"lost\+found|@eaDir|\.thumbnails|\.nomedia|\.Trash-[0-9]+",
    "git": r"\.git|\.gitattributes|\.gitignore|\.gitkeep|\.gitmodules",
    "Python": r"\.ipynb_checkpoints|__pycache__|\.cache",
    "Spark and Hadoop": r"_SUCCESS|_temporary|_committed_[^/]*|_started_[^/]*|_metadata|"
    r"_common_metadata|_delta_log|\.[^/]+\.crc",
    "cvbatch": r"_cvbatch|\.[^/]+-[^/-]+\.tmp",
}
_NAMES = "|".join(JUNK_NAMES.values())
_JUNK = rf"(?:^|/)(?:{_NAMES})(?:/|$)"
_OUTERMOST = rf"(?s)^(?P<name>(?:[^/]*/)*?(?:{_NAMES})(?:/|$))"
_PATTERN = re.compile(_JUNK)


def is_junk(name: str) -> bool:
    """Return whether a name, or a path's file or any of its folders, is known to be no data."""
    return _PATTERN.search(name) is not None


def are_junk(names: pa.Array) -> pa.Array:  # (N,) large_string → (N,) bool
    """Return `is_junk` of many names."""
    return pc.match_substring_regex(names, _JUNK)


def outermost(names: pa.Array) -> pa.Array:  # (N,) large_string → (M,) large_string
    """Return the outermost junk of each path, each once; a folder ends with "/"."""
    return pc.struct_field(pc.extract_regex(names, _OUTERMOST), "name").unique()
