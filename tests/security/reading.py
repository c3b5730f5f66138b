"""Read every malformed container in one process, and print the outcomes.

    python -m tests.security.reading FOLDER FORMAT

The output on stdout is what `bounded.print_outcomes` prints: for each file its rows, or why it was
refused before a row was read.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from cvbatch.core.errors import CvbatchError, SourceError
from cvbatch.core.types import Chunk, Item
from cvbatch.sources.discovery import find_files
from cvbatch.sources.readers import ChunkReader
from cvbatch.storage.store import Storage
from tests.security.bounded import print_outcomes

FILE_LIMIT_S = 20.0
ADDRESS_LIMIT = 4 << 30
MAX_BYTES = 1 << 20  # of one image
CHUNK_IMAGES = 64


def rows_of(path: Path, format: str) -> dict[str, object]:
    """Return the outcome of one file: `refused`, or the number of rows of each kind."""
    try:
        found = find_files(Storage(), [str(path)], format, "/nowhere")
        units = found.format.expand(Storage(), found.files, "image", CHUNK_IMAGES)
    except SourceError as error:
        return {"refused": str(error)}
    kinds: Counter[str] = Counter()
    first = []
    image_ids = set()
    for unit in units.to_pylist():
        place = ("row_group", "row_start", "num_rows", "first_row")
        item = Item(
            unit["uri"], unit["image_id"], unit["size_bytes"], *(unit[key] for key in place)
        )
        chunk = Chunk("0" * 16, (item,))
        try:
            for image in ChunkReader(Storage(), format, "image").read(chunk, MAX_BYTES):
                failure = image.failure
                kinds[f"{failure.stage}/{failure.kind}" if failure else "read"] += 1
                assert failure is None or 0 < len(failure.message) < 1000
                assert len(image.data) <= MAX_BYTES
                assert image.image_id not in image_ids
                image_ids.add(image.image_id)
                first += [image.image_id[:200]] if len(first) < 8 else []
        except CvbatchError as error:
            return {"stopped": str(error)}
    return {"rows": kinds, "planned": sum(units["num_rows"].to_pylist()), "first": first}


def main() -> None:
    folder, format = Path(sys.argv[1]), sys.argv[2]
    files = [(path.name, path) for path in sorted(folder.iterdir())]
    print_outcomes(files, lambda path: rows_of(path, format), FILE_LIMIT_S, ADDRESS_LIMIT)


if __name__ == "__main__":
    main()
