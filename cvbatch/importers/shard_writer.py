"""Writes labelled images as Parquet shards: the same rows give the same files, name by name."""

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
from cvbatch.importers.validation import Row
from cvbatch.results.writer import repeating_leaves
from cvbatch.storage import store
from cvbatch.storage.store import Storage

ROW_GROUP_ROWS = 64
MAX_SHARD_BYTES = 64 << 20  # of images and masks; three shards grow at a time, one a split


class ShardWriter:
    """Puts rows into the sink, a file for every `shard_images` of a split; holds no more."""

    def __init__(
        self,
        storage: Storage,
        sink_uri: str,
        truth: AnnotatedDataset,
        format_: str,
        shard_images: int,
    ) -> None:
        self.files: dict[str, int] = {}  # name → bytes
        self._storage, self._sink_uri = storage, sink_uri
        self._schema = label_schema(truth.columns)
        self._classes = truth.classes
        self._metadata = label_metadata(truth.columns, truth.classes, truth.is_multi_label, format_)
        self._shard_images = shard_images
        self._growing: dict[str, list[dict[str, Any]]] = {}
        self._sizes: Counter[str] = Counter()
        self._numbers: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        """Take a row; put the file it fills.

        Raises:
            StoreError: the file could not be put; nothing of it is then visible.
        """
        growing = self._growing.setdefault(row.split, [])
        values = self._values(row)
        growing.append(values)
        mask = values["mask"]
        self._sizes[row.split] += len(row.data) + (len(mask["bytes"]) if mask else 0)
        if len(growing) >= self._shard_images or self._sizes[row.split] >= MAX_SHARD_BYTES:
            self._put(row.split)

    def close(self) -> None:
        """Put what is left. Raises StoreError as `add` does."""
        for split in sorted(self._growing):
            self._put(split)

    def _put(self, split: str) -> None:
        rows = self._growing.pop(split)
        del self._sizes[split]
        data = self._encode(rows)
        digest = hashlib.sha256(data).hexdigest()[:16]
        name = f"part-{split}-{self._numbers[split]:05d}-{digest}.parquet"
        self._numbers[split] += 1
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

    def _values(self, row: Row) -> dict[str, Any]:
        mask = None if row.mask is None else encode_png(np.ascontiguousarray(row.mask))
        return {
            "image_id": row.image_id,
            "image": {"bytes": row.data, "path": row.image_id},
            "width": row.width,
            "height": row.height,
            "split": row.split,
            "labels": self._labels(row),
            "boxes": self._boxes(row),
            "box_is_crowd": row.is_crowd.tolist(),
            "mask": None if mask is None else {"bytes": mask, "path": None},
        }

    def _labels(self, row: Row) -> list[dict[str, Any]]:
        names = self._classes.get("labels", ())
        if not names:
            return []
        return [
            {"class_id": label, "label": names[label], "score": score}
            for label, score in row.labels
        ]

    def _boxes(self, row: Row) -> list[dict[str, Any]]:
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
                row.boxes.tolist(), row.class_id.tolist(), row.score.tolist(), strict=True
            )
        ]
