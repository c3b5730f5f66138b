"""Work of an explanation as plain callables: inspect the network, process one unit of work.

A unit is the patterns of a layer, the weights of a layer, or a chunk of images. It writes its
pictures first and its Parquet file last, so a unit whose Parquet file exists is complete. A worker
loads the network from the sink and gets everything else in an `ExplainSpec`.
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
from cvbatch.core.types import ChunkRef, Failure, ImageBatch
from cvbatch.explain import image_grids, tables
from cvbatch.explain.spec import (
    IMAGES,
    NETWORK,
    PICTURES,
    ExplainSpec,
    NetworkFacts,
    UnitReport,
    WorkUnit,
    output_uri,
)
from cvbatch.images.decode import Limits, decode_images
from cvbatch.images.drawing import draw_boxes, to_png
from cvbatch.images.heatmaps import overlay
from cvbatch.images.isolated_decode import IsolatedDecoder
from cvbatch.inference.programs import BuildRequest
from cvbatch.inference.sample_images import SampleImages, sample_pixels
from cvbatch.planning import part_files
from cvbatch.planning.plan import read_chunk
from cvbatch.results import writer
from cvbatch.sources.readers import ChunkReader
from cvbatch.storage.store import Storage

if TYPE_CHECKING:
    from cvbatch.explain.introspection import Network


def inspect_network(
    storage: Storage,
    job: ExplainJob,
    request: BuildRequest,
    saved: Path,
    samples: SampleImages | None,
) -> NetworkFacts:
    """Load the network, resolve the job for it, and save it for the workers.

    Args:
        storage: reads the files of the network.
        request: the network to load.
        saved: path of the .keras file to write.
        samples: images of the job, to check the scores on; None: the job has none.

    Raises:
        ModelError: the network cannot be loaded, or does not support what the job needs.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from cvbatch.explain.introspection import Network, build_network, resolve_job

    model = build_network(storage, request)
    facts = resolve_job(
        model,
        job,
        request,
        lambda size: sample_pixels(samples, storage, job.model.input_key(*size)),
    )
    Network(model, job, facts).check()
    model.save(saved)
    return facts


def start_worker(spec: ExplainSpec) -> Callable[[WorkUnit], UnitReport]:
    """Load the network into this process, and return the function that processes one unit.

    Raises:
        CvbatchError: the network cannot be read from the sink.
    """
    with silent_stderr():  # TensorFlow's C++ code writes to stderr while it loads
        network = _load(spec)
    source, source_format = spec.job.source, spec.source_format
    reader = None
    if source and source_format:
        reader = ChunkReader(
            spec.storage, source_format, source.image_column, options=source.options
        )

    def process(unit: WorkUnit) -> UnitReport:
        if unit.ref is not None and reader is not None:
            return _process_images(spec, network, reader, unit.ref)
        return _PROCESS_LAYER[unit.kind](spec, network, unit)

    return process


def _load(spec: ExplainSpec) -> Network:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from cvbatch.explain.introspection import Network, limit_threads
    from cvbatch.models import registry

    limit_threads(spec.threads)
    uri = spec.uri(NETWORK)
    model = registry.load_file(uri, spec.storage.fetch(uri), spec.job.model.trust)
    return Network(model, spec.job, spec.facts)


def _process_patterns(spec: ExplainSpec, network: Network, unit: WorkUnit) -> UnitReport:
    patterns = network.patterns(unit.layer)
    picture = _write_layer_picture(spec, image_grids.pattern_grid(patterns.images), unit)
    rows = tables.filter_rows(unit.layer, patterns.images, picture, patterns.activation)
    _write_table(spec, unit, rows)
    return UnitReport(num_pictures=1)


def _process_weights(spec: ExplainSpec, network: Network, unit: WorkUnit) -> UnitReport:
    kernels = network.kernels(unit.layer)
    picture = _write_layer_picture(spec, image_grids.kernel_grid(kernels), unit)
    rows = tables.filter_rows(unit.layer, np.moveaxis(kernels, -1, 0), picture)
    _write_table(spec, unit, rows)
    return UnitReport(num_pictures=1)


def _write_layer_picture(spec: ExplainSpec, image: np.ndarray, unit: WorkUnit) -> str:
    return _write_picture(spec, image, unit.kind, tables.safe_file_name(unit.layer))


def _write_picture(spec: ExplainSpec, image: np.ndarray, *names: str) -> str:
    """Write an image as PNG; return its path in the sink."""
    path = "/".join([PICTURES, *names]) + ".png"
    spec.storage.put_bytes(spec.uri(path), to_png(image))
    return path


def _write_table(spec: ExplainSpec, unit: WorkUnit, rows: pa.Table) -> None:
    data = writer.encode_part([rows], rows.schema, spec.metadata)
    spec.storage.put_bytes(output_uri(spec, unit), data)


def _process_images(
    spec: ExplainSpec, network: Network, reader: ChunkReader, ref: ChunkRef
) -> UnitReport:
    report = UnitReport()
    tables_of_batches = []
    for batch in _decoded_batches(spec, reader, ref):
        rows: dict[int, tables.ImageRow] = {}
        failures = dict(batch.failures)
        for position, result in zip(batch.decoded.tolist(), network.explain(batch), strict=True):
            if isinstance(result, Failure):
                failures[position] = result
                continue
            name = tables.image_name(batch.image_id[position], spec.source_format)
            rows[position] = _write_pictures(spec, name, result, report)
        report.note(batch, failures)
        tables_of_batches.append(tables.image_rows(batch, failures, rows, spec.sections))
    metadata = part_files.with_revision(spec.metadata, spec.revisions.get(ref.chunk_id, 0))
    schema = tables.images_schema(spec.sections)
    writer.write_part(
        spec.storage, spec.uri(IMAGES), ref.chunk_id, tables_of_batches, schema, metadata
    )
    return report


def _decoded_batches(spec: ExplainSpec, reader: ChunkReader, ref: ChunkRef) -> Iterator[ImageBatch]:
    """Decode the images of a chunk in a child process, so that no image can crash the worker."""
    job = spec.job
    if job.source is None:
        raise RuntimeError("a chunk of images without a source")
    images = reader.read(read_chunk(spec.storage, ref), job.source.max_bytes)
    limits = Limits.from_source(job.source.model_dump())
    key = job.model.input_key(*spec.facts.image_size)
    with IsolatedDecoder(job.run.image_timeout_s) as decode_one:
        yield from decode_images(
            images, [key], limits, ref.chunk_id, job.run.batch_size, decode_one
        )


def _write_pictures(
    spec: ExplainSpec, name: str, explanation: tables.Explanation, report: UnitReport
) -> tables.ImageRow:
    """Write the pictures of one image, count them in the report, and return the image's row."""
    activations = gradcam = dream = None
    if explanation.activations is not None:
        activations = []
        for layer, values in explanation.activations.items():
            grid, file_name = image_grids.channel_grid(values), tables.safe_file_name(layer)
            picture = _write_picture(spec, grid, "activations", name, file_name)
            activations.append(tables.LayerActivations(layer, values, picture))
        report.num_pictures += len(activations)
    if explanation.gradcam is not None:
        gradcam = []
        for heatmap in explanation.gradcam:
            drawn = overlay(explanation.pixels, heatmap.values)
            if heatmap.box_in_input is not None:
                score = np.array([heatmap.score])
                drawn = draw_boxes(drawn, heatmap.box_in_input[None], [heatmap.label], score)
            file_name = tables.safe_file_name(f"{heatmap.class_id:03d}-{heatmap.label}")
            picture = _write_picture(spec, drawn, "gradcam", name, file_name)
            gradcam.append(tables.HeatmapPicture(spec.job.model.model, heatmap, picture))
        report.num_pictures += len(gradcam)
    if explanation.dream is not None:
        picture = _write_picture(spec, explanation.dream, "dream", name)
        dream = (to_png(explanation.dream), picture)
        report.num_pictures += 1
    return tables.ImageRow(activations, gradcam, dream)


_PROCESS_LAYER: dict[str, Callable[[ExplainSpec, Network, WorkUnit], UnitReport]] = {
    "patterns": _process_patterns,
    "weights": _process_weights,
}
