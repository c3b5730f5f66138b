"""The work of an explanation as plain callables: the network looked at, and each piece done.

A piece is a layer's patterns, a layer's weights, or a chunk of images; each leaves its pictures and
then a Parquet file, which says that it is done. Whoever does one has TensorFlow and the network,
and is told all else in one small `ExplainOrder`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from cvbatch.config.explain import ExplainJob
from cvbatch.core.child_process import silent_stderr
from cvbatch.core.types import ChunkRef, Failure, ImageBatch, InputKey
from cvbatch.explain import image_grids, tables
from cvbatch.explain.spec import (
    IMAGES,
    NETWORK,
    PICTURES,
    ExplainSpec,
    NetworkFacts,
    Piece,
    PieceReport,
    file_uri,
)
from cvbatch.images.decode import Limits, decode_images
from cvbatch.images.drawing import draw_boxes, to_png
from cvbatch.images.heatmaps import overlay
from cvbatch.images.isolated_decode import IsolatedDecoder
from cvbatch.inference.programs import BuildRequest
from cvbatch.planning import part_files
from cvbatch.planning.plan import read_chunk
from cvbatch.results import writer
from cvbatch.sources.readers import ChunkReader
from cvbatch.storage.store import Storage

if TYPE_CHECKING:
    from cvbatch.explain.introspection import Network


def inspect_network(
    storage: Storage, job: ExplainJob, request: BuildRequest, saved: Path
) -> NetworkFacts:
    """Return what the job comes to with its network, which is saved as a file for the workers.

    Raises:
        ModelError: the network cannot be had, or is not as the job needs it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from cvbatch.explain.introspection import Network, built, facts_of

    model = built(storage, request)
    facts = facts_of(model, job, request)
    Network(model, job, facts).check()
    model.save(saved)
    return facts


def work_on(order: ExplainSpec) -> Callable[[Piece], PieceReport]:
    """Return the function that does one piece and leaves its file in the sink.

    The network is loaded into this process once.

    Raises:
        CvbatchError: the store does not answer.
    """
    with silent_stderr():  # TensorFlow writes much to the descriptor while it loads
        network = _load(order)
    source, source_format = order.job.source, order.source_format
    reader = None
    if source and source_format:
        reader = ChunkReader(order.storage, source_format, source.image_column)

    def work(piece: Piece) -> PieceReport:
        if piece.ref is not None and reader is not None:
            return _images(order, network, reader, piece.ref)
        return _OF_A_LAYER[piece.kind](order, network, piece)

    return work


def _load(order: ExplainSpec) -> Network:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from cvbatch.explain.introspection import Network, set_threads
    from cvbatch.models import registry

    set_threads(order.threads)
    uri = order.uri(NETWORK)
    return Network(registry.load_file(uri, order.storage.fetch(uri)), order.job, order.facts)


def _patterns(order: ExplainSpec, network: Network, piece: Piece) -> PieceReport:
    found = network.patterns(piece.layer)
    picture = _draw(order, image_grids.pattern_grid(found.pictures), piece)
    rows = tables.filter_rows(piece.layer, found.pictures, picture, found.activation)
    _write(order, piece, rows)
    return PieceReport(num_pictures=1)


def _weights(order: ExplainSpec, network: Network, piece: Piece) -> PieceReport:
    kernels = network.kernels(piece.layer)
    picture = _draw(order, image_grids.kernel_grid(kernels), piece)
    _write(order, piece, tables.filter_rows(piece.layer, np.moveaxis(kernels, -1, 0), picture))
    return PieceReport(num_pictures=1)


def _draw(order: ExplainSpec, image: np.ndarray, piece: Piece) -> str:
    return _put(order, image, piece.kind, tables.layer_name(piece.layer))


def _put(order: ExplainSpec, image: np.ndarray, *names: str) -> str:
    """Write a picture; return its name in the sink."""
    name = "/".join([PICTURES, *names]) + ".png"
    order.storage.put_bytes(order.uri(name), to_png(image))
    return name


def _write(order: ExplainSpec, piece: Piece, rows: pa.Table) -> None:
    data = writer.encode_part([rows], rows.schema, order.metadata)
    order.storage.put_bytes(file_uri(order, piece), data)


def _images(
    order: ExplainSpec, network: Network, reader: ChunkReader, ref: ChunkRef
) -> PieceReport:
    report = PieceReport()
    rows = []
    for batch in _batches(order, reader, ref):
        explained: dict[int, tables.Explained] = {}
        failures = dict(batch.failures)
        for position, found in zip(batch.decoded.tolist(), network.explain(batch), strict=True):
            if isinstance(found, Failure):
                failures[position] = found
                continue
            name = tables.image_name(batch.image_id[position], order.source_format)
            explained[position] = _leave(order, name, found, report)
        report.note(batch, failures)
        rows.append(tables.image_rows(batch, failures, explained, order.sections))
    metadata = part_files.with_revision(order.metadata, order.revisions.get(ref.chunk_id, 0))
    schema = tables.images_schema(order.sections)
    writer.write_part(order.storage, order.uri(IMAGES), ref.chunk_id, rows, schema, metadata)
    return report


def _batches(order: ExplainSpec, reader: ChunkReader, ref: ChunkRef) -> Iterator[ImageBatch]:
    """Yield the chunk's images decoded, in a process of its own: no image takes the worker down."""
    job = order.job
    if job.source is None:
        raise RuntimeError("a chunk of images without a source")
    images = reader.read(read_chunk(order.storage, ref), job.source.max_bytes)
    limits = Limits(job.source.max_bytes, job.source.max_pixels, job.source.reduced_jpeg)
    key = InputKey(*order.facts.image_size, job.model.resize)
    with IsolatedDecoder(job.run.image_timeout_s) as decode_one:
        yield from decode_images(
            images, [key], limits, ref.chunk_id, job.run.batch_size, decode_one
        )


def _leave(
    order: ExplainSpec, name: str, found: tables.Explanation, report: PieceReport
) -> tables.Explained:
    """Write the pictures of one image; return what its row says."""
    activations = gradcam = dream = None
    if found.activations is not None:
        activations = [
            tables.Map(
                layer,
                values,
                _put(order, image_grids.channel_grid(values), "activations", name,
                     tables.layer_name(layer)),
            )
            for layer, values in found.activations.items()
        ]  # fmt: skip
        report.num_pictures += len(activations)
    if found.gradcam is not None:
        gradcam = []
        for seen in found.gradcam:
            drawn = overlay(found.pixels, seen.values)
            if seen.box_in_input is not None:
                drawn = draw_boxes(
                    drawn, seen.box_in_input[None], [seen.label], np.array([seen.score])
                )
            label = f"{seen.class_id:03d}-{seen.label}"
            picture = _put(order, drawn, "gradcam", name, tables.layer_name(label))
            gradcam.append(tables.Seen(order.job.model.model, seen, picture))
        report.num_pictures += len(gradcam)
    if found.dream is not None:
        picture = _put(order, found.dream, "dream", name)
        dream = (to_png(found.dream), picture)
        report.num_pictures += 1
    return tables.Explained(activations, gradcam, dream)


_OF_A_LAYER: dict[str, Callable[[ExplainSpec, Network, Piece], PieceReport]] = {
    "patterns": _patterns,
    "weights": _weights,
}
