"""Plain data of an explanation: ExplainSpec, NetworkFacts, WorkUnit, UnitReport."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from cvbatch.config.explain import IMAGE_SECTIONS, ExplainJob
from cvbatch.config.models import Activation
from cvbatch.core.failures import add_failures
from cvbatch.core.types import ChunkRef, Examples, Failure, ImageBatch
from cvbatch.explain import tables
from cvbatch.planning import part_files
from cvbatch.storage import store
from cvbatch.storage.store import Storage

IMAGES = "images"  # folder of the sink for the tables of images
PICTURES = "pictures"
NETWORK = "_cvbatch/network.keras"


class WorkUnit(NamedTuple):
    """One unit of work: the patterns or weights of a layer, or a chunk of images.

    Attributes:
        kind: "patterns", "weights" or "images".
        layer: path of the layer; "" for images.
        ref: the chunk of images; None for a layer.
    """

    kind: str
    layer: str = ""
    ref: ChunkRef | None = None


@dataclass(frozen=True)
class NetworkFacts:
    """The job's names, resolved for its network.

    Attributes:
        classes: names of all classes; empty if the job has no section gradcam.
        image_size: height and width of the network's input in pixels.
        layers: section (activations, patterns, weights) → paths of its layers.
        widths: path → number of channels, of the layers of section patterns.
        activation: still to be applied to the scores that section gradcam explains.
        activation_reason: why, in one sentence for the log.
    """

    classes: tuple[str, ...]
    image_size: tuple[int, int]
    layers: dict[str, tuple[str, ...]]
    widths: dict[str, int]
    activation: Activation = "none"
    activation_reason: str = ""


@dataclass(frozen=True)
class ExplainSpec:
    """Everything a worker needs except the network, which is a file in the sink.

    Attributes:
        job: with absolute URIs.
        fingerprint: of the job.
        facts: about the network.
        metadata: JSON that every Parquet file contains.
        source_format: of the images, never "auto"; "" if the job needs no images.
        revisions: chunk id → revision, of chunks that were planned again.
        threads: TensorFlow threads of a worker; None: as many as there are cores.
    """

    job: ExplainJob
    fingerprint: str
    facts: NetworkFacts
    metadata: bytes
    source_format: str = ""
    revisions: dict[str, int] = field(default_factory=dict)
    threads: int | None = None

    @property
    def storage(self) -> Storage:
        """Return the storage with the retry policy of the job."""
        return Storage(self.job.run.retry_policy)

    @property
    def sections(self) -> tuple[str, ...]:
        """Return the job's sections that need images."""
        return tuple(name for name in IMAGE_SECTIONS if getattr(self.job, name) is not None)

    def uri(self, *parts: str) -> str:
        """Return the URI of a path in the sink."""
        return store.join(self.job.sink.uri, *parts)


@dataclass
class UnitReport:
    """Counts of one unit of work.

    Attributes:
        num_pictures: PNG files that were written.
        num_images: images that were processed, failed ones included.
        failures: "stage/kind" → number of images.
        examples: of failed images.
    """

    num_pictures: int = 0
    num_images: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    examples: Examples = field(default_factory=dict)

    def note(self, batch: ImageBatch, failures: dict[int, Failure]) -> None:
        """Add the images and failures of a batch."""
        self.num_images += len(batch)
        add_failures(self.failures, self.examples, batch.image_id, failures)


def output_uri(spec: ExplainSpec, unit: WorkUnit) -> str:
    """Return the URI of the Parquet file of a unit; the unit is complete if this file exists."""
    if unit.ref is not None:
        return spec.uri(IMAGES, part_files.part_name(unit.ref.chunk_id))
    return spec.uri(unit.kind, f"{tables.safe_file_name(unit.layer)}.parquet")
