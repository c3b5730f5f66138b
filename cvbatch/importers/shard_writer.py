"""Write labelled images as Parquet shards; the same images give the same file names and bytes."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cvbatch.datasets.schema import label_metadata, label_schema
from cvbatch.images.masks import encode_png
from cvbatch.importers.annotations import AnnotatedDataset
from cvbatch.importers.validation import LabelledImage
from cvbatch.results.writer import repeating_leaves
from cvbatch.storage import store
from cvbatch.storage.store import Storage

ROW_GROUP_ROWS = 64
MAX_SHARD_BYTES = 64 << 20  # images and masks; one shard per split is in memory


class ShardWriter:
    """Writes labelled images into a sink, one shard per split at a time.

    Args:
        storage: writes the shards.
        dataset: its columns and classes go into the metadata.
        format_: the format of the data set, for the metadata.
        shard_images: maximum number of images per shard.
    """

    def __init__(
        self,
        storage: Storage,
        sink_uri: str,
        dataset: AnnotatedDataset,
        format_: str,
        shard_images: int,
    ) -> None:
        self.files: dict[str, int] = {}  # name → bytes
        self._storage, self._sink_uri = storage, sink_uri
        self._schema = label_schema(dataset.columns)
        self._classes = dataset.classes
        self._metadata = label_metadata(
            dataset.columns,
            dataset.classes,
            dataset.is_multi_label,
            format_,
            has_images=dataset.has_images,
        )
        self._shard_images = shard_images
        self._rows: dict[str, list[dict[str, Any]]] = {}  # by split, not yet written
        self._num_bytes: Counter[str] = Counter()  # of these rows
        self._num_shards: Counter[str] = Counter()  # written, by split

    def add(self, image: LabelledImage) -> None:
        """Add an image, and write the shard if it is full.

        Raises:
            StoreError: the shard could not be written; nothing of it is visible.
        """
        split = image.split
        rows = self._rows.setdefault(split, [])
        row = self._row(image)
        rows.append(row)
        mask = row["mask"]
        self._num_bytes[split] += len(image.data or b"") + (len(mask["bytes"]) if mask else 0)
        if len(rows) >= self._shard_images or self._num_bytes[split] >= MAX_SHARD_BYTES:
            self._write_shard(split)

    def close(self) -> None:
        """Write the last shard of each split. Raises StoreError as `add` does."""
        for split in sorted(self._rows):
            self._write_shard(split)

    def _write_shard(self, split: str) -> None:
        rows = self._rows.pop(split)
        del self._num_bytes[split]
        data = self._encode(rows)
        digest = hashlib.sha256(data).hexdigest()[:16]
        name = f"part-{split}-{self._num_shards[split]:05d}-{digest}.parquet"
        self._num_shards[split] += 1
        self._storage.put_bytes(store.join(self._sink_uri, name), data)
        self.files[name] = data.size

    def _encode(self, rows: list[dict[str, Any]]) -> pa.Buffer:
        columns = [
            pa.array([row[field.name] for row in rows], field.type) for field in self._schema
        ]
        buffer = pa.BufferOutputStream()
        with pq.ParquetWriter(
            buffer,
            self._schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=["split", *repeating_leaves(self._schema)],
            store_schema=False,
            write_page_index=False,
        ) as writer:
            table = pa.table(columns, schema=self._schema)
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
            writer.add_key_value_metadata({"cvbatch": self._metadata})
        return buffer.getvalue()

    def _row(self, image: LabelledImage) -> dict[str, Any]:
        mask = None if image.mask is None else encode_png(np.ascontiguousarray(image.mask))
        data = image.data
        return {
            "image_id": image.image_id,
            "image": None if data is None else {"bytes": data, "path": image.image_id},
            "width": image.width,
            "height": image.height,
            "split": image.split,
            "labels": self._labels(image),
            "boxes": self._boxes(image),
            "box_is_crowd": image.is_crowd.tolist(),
            "box_area": _optional(image.area),
            "box_masks": image.box_masks,
            "mask": None if mask is None else {"bytes": mask, "path": None},
        }

    def _labels(self, image: LabelledImage) -> list[dict[str, Any]]:
        names = self._classes.get("labels", ())
        if not names:
            return []
        return [
            {"class_id": label, "label": names[label], "score": score}
            for label, score in image.labels
        ]

    def _boxes(self, image: LabelledImage) -> list[dict[str, Any]]:
        names = self._classes.get("boxes", ())
        return [
            {
                "x_min": x_min,
                "y_min": y_min,
                "x_max": x_max,
                "y_max": y_max,
                "class_id": class_id,
                "label": names[class_id],
                "score": score,
            }
            for (x_min, y_min, x_max, y_max), class_id, score in zip(
                image.boxes.tolist(), image.class_id.tolist(), image.score.tolist(), strict=True
            )
        ]


def _optional(values: np.ndarray | None) -> list[float | None] | None:  # (M,) float64
    """Return numbers for a nullable list column: NaN becomes null."""
    if values is None:
        return None
    return [None if np.isnan(value) else value for value in values.tolist()]
