"""What an explanation computes, as plain data: ExplainSpec, NetworkFacts, Piece, PieceReport."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from cvbatch.config.explain import OF_IMAGES, ExplainJob
from cvbatch.core.failures import note
from cvbatch.core.types import ChunkRef, Examples, Failure, ImageBatch
from cvbatch.explain import tables
from cvbatch.planning import part_files
from cvbatch.storage import store
from cvbatch.storage.store import Storage

if TYPE_CHECKING:
    pass

IMAGES = "images"  # the sink's folder of the images' rows
PICTURES = "pictures"
NETWORK = "_cvbatch/network.keras"


class Piece(NamedTuple):
    """What is done as a whole: a layer's patterns or weights, or a chunk of images."""

    kind: str  # "patterns" | "weights" | "images"
    layer: str = ""
    ref: ChunkRef | None = None


@dataclass(frozen=True)
class NetworkFacts:
    """What the job's words mean, once its network was looked at."""

    classes: tuple[str, ...]  # empty where none are needed
    image_size: tuple[int, int]
    layers: dict[str, tuple[str, ...]]  # of activations, patterns and weights: paths
    widths: dict[str, int]  # channels of the layers with patterns


@dataclass(frozen=True)
class ExplainSpec:
    """What the workers must know; small, whatever the network weighs."""

    storage: Storage
    job: ExplainJob
    fingerprint: str
    facts: NetworkFacts
    metadata: bytes  # of every Parquet file
    source_format: str = ""  # never "auto"; "" where there are no images
    revisions: dict[str, int] = field(default_factory=dict)  # of chunks planned again
    threads: int | None = None  # of a worker; None: as many as there are cores

    @property
    def sections(self) -> tuple[str, ...]:
        """Return what is asked about images."""
        return tuple(name for name in OF_IMAGES if getattr(self.job, name) is not None)

    def uri(self, *parts: str) -> str:
        """Return the URI of something in the sink."""
        return store.join(self.job.sink.uri, *parts)


@dataclass
class PieceReport:
    """What became of one piece."""

    num_pictures: int = 0
    num_images: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # "stage/kind" → images
    examples: Examples = field(default_factory=dict)

    def note(self, batch: ImageBatch, failures: dict[int, Failure]) -> None:
        """Count a batch in."""
        self.num_images += len(batch)
        note(self.failures, self.examples, batch.image_id, failures)


def file_uri(order: ExplainSpec, piece: Piece) -> str:
    """Return the URI of the file that says that a piece is done."""
    if piece.ref is not None:
        return order.uri(IMAGES, part_files.part_name(piece.ref.chunk_id))
    return order.uri(piece.kind, f"{tables.layer_name(piece.layer)}.parquet")
