"""Evaluate the heatmaps of a result: check it, sample images, and run the network on them again.

Nothing is written. The network is the program that the prediction stored in its sink; if it is not
there, it is compiled again from the job of the prediction.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from pydantic import ValidationError

from cvbatch.config.evaluate import EvaluationConfig, HeatmapsConfig
from cvbatch.config.network_input import tiling_of
from cvbatch.config.predict import JobConfig
from cvbatch.core.child_process import silent_stderr
from cvbatch.core.errors import ModelError, SourceError
from cvbatch.core.progress import Listener
from cvbatch.core.types import InputKey
from cvbatch.distributed.parallel_map import ParallelMap
from cvbatch.evaluate.heatmap_faithfulness import (
    HeatmapScores,
    HeatmapSpec,
    ImageGroup,
    score_group,
)
from cvbatch.evaluate.heatmap_metrics import merge_heatmap_scores
from cvbatch.evaluate.join import JoinedPart
from cvbatch.inference.builder import ProgramBuilder
from cvbatch.inference.programs import (
    BuildRequest,
    BuiltProgram,
    build_requests,
    identify,
    program_uri,
)
from cvbatch.results.parts import take_rows
from cvbatch.results.result import Result

_GROUP_IMAGES = 16  # evaluated by one call, with its own decoding process
_THREADS = 16
_MAX_NAMED = 3  # images in a message
_CLASS_OF_HEATMAP = "heatmaps.list.element.class_id"


class HeatmapSource(NamedTuple):
    """A result with heatmaps, and the job and network that made them."""

    result: Result
    job: JobConfig
    request: BuildRequest
    weights_sha256: str
    keys: tuple[InputKey, ...]  # of all models of the job


def load_heatmap_source(result: Result) -> HeatmapSource:
    """Return the job and network of a result with heatmaps.

    Raises:
        SourceError: the result has no heatmaps, or its job is not stored or not valid.
        ModelError: the model file is missing.
    """
    metadata = result.models.get("labels", {})
    if not metadata.get("options", {}).get("heatmap"):
        raise SourceError(
            f"predictions {result.uri}: the result has no heatmaps; predict with heatmap: {{layer: "
            "auto}, or leave out evaluation.heatmaps"
        )
    if "job" not in result.job:
        raise SourceError(
            f"predictions {result.uri}: its _cvbatch/job.json does not contain the job, "
            "because an earlier version wrote it; predict again, into an empty folder"
        )
    try:
        job = JobConfig.model_validate(result.job["job"])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise SourceError(
            f"predictions {result.uri}: the job in its _cvbatch/job.json is not valid in this "
            f"version ({key}: {first['msg']}); predict again, into an empty folder"
        ) from None
    config = next(model for model in job.models if getattr(model, "heatmap", None) is not None)
    single_model = job.model_copy(update={"models": [config]})
    (request,) = build_requests(
        single_model, [identify(result.storage, config)], result.job["engine"]
    )
    keys = input_keys(job, result.metadata["models"])
    return HeatmapSource(result, job, request, metadata["weights_sha256"], keys)


def input_keys(job: JobConfig, models: Sequence[dict[str, Any]]) -> tuple[InputKey, ...]:
    """Return the distinct input sizes and resize modes of all models of a job.

    Args:
        job: the job of a result.
        models: metadata of the result, one of each task.
    """
    sizes = {model["task"]: model["input_size"] for model in models}
    keys = []
    for config in job.models:
        height, width = sizes[config.task]
        tiling = tiling_of(config, height, width)
        keys.append(config.input_key(height, width)._replace(tiling=tiling))
    return tuple(dict.fromkeys(keys))


def load_or_build_program(source: HeatmapSource, inform: Callable[[str], None]) -> BuiltProgram:
    """Return the compiled network: stored by the prediction, or compiled again.

    Raises:
        ModelError: it cannot be compiled, or has other weights than that of the result.
    """
    uri = program_uri(source.result.uri, source.request)
    storage = source.result.storage
    if storage.exists(uri):
        program = BuiltProgram.from_bytes(storage.read_bytes(uri))
    else:
        (program,) = ProgramBuilder(storage, [source.request], None, inform).result()
    if program.spec.weights_sha256 != source.weights_sha256:
        raise ModelError(
            f"model {source.request.config.model!r} is not the one that made the result "
            f"{source.result.uri}: its weights differ; restore that file, or predict again"
        )
    return program


def sample_images(
    source: HeatmapSource, parts: Sequence[JoinedPart], config: HeatmapsConfig, seed: int
) -> list[ImageGroup]:
    """Return a sample of the images that have heatmaps, in groups of at most 16.

    The sample depends only on the seed and the image ids.

    Raises:
        SourceError: no image has a heatmap.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        candidates = pool.map(lambda part: _smallest_hashes(part, config.sample, seed), parts)
        hashes = ((*item, p) for p, items in enumerate(candidates) for item in items)
        chosen = heapq.nsmallest(config.sample, hashes)
    if not chosen:
        raise SourceError(
            f"predictions {source.result.uri}: no evaluated image has a heatmap; look at the "
            "rows with status = 'failed'"
        )
    sample = sorted((p, row) for _, _, row, p in chosen)
    groups: list[ImageGroup] = []
    for start in range(0, len(sample), _GROUP_IMAGES):
        by_part = groupby(sample[start : start + _GROUP_IMAGES], key=lambda item: item[0])
        groups.append([parts[p].take(np.array([row for _, row in rows])) for p, rows in by_part])
    return groups


def _smallest_hashes(part: JoinedPart, count: int, seed: int) -> list[tuple[bytes, str, int]]:
    """Return hash, id and row of the images with heatmaps whose hashes are smallest."""
    columns = ["image_id", "status", _CLASS_OF_HEATMAP]
    rows = take_rows(part.storage, part.part_uri, part.part_row, columns)
    num_maps = pc.fill_null(pc.list_value_length(rows["heatmaps"]), 0)
    has_heatmap = pc.and_(pc.equal(rows["status"], "ok"), pc.greater(num_maps, 0)).to_numpy()
    ids = rows["image_id"].to_pylist()
    key = seed.to_bytes(8, "little")
    return heapq.nsmallest(
        count,
        (
            (hashlib.blake2b(ids[i].encode(), digest_size=8, key=key).digest(), ids[i], i)
            for i in np.flatnonzero(has_heatmap).tolist()
        ),
    )


def evaluate_heatmaps(
    source: HeatmapSource,
    program: BuiltProgram,
    groups: Sequence[ImageGroup],
    class_of: dict[str, np.ndarray],  # column → (P,) of `match_heatmap_classes`
    config: EvaluationConfig,
    workers: ParallelMap,
) -> HeatmapScores:
    """Return the scores of the heatmaps of sampled images.

    Raises:
        SourceError: no image can be evaluated.
    """
    options = config.heatmaps or HeatmapsConfig()
    spec = HeatmapSpec(
        source.result.reader,
        program,
        source.keys,
        source.job.source,
        source.job.run.image_timeout_s,
        class_of,
        options.steps,
        options.box_threshold,
        config.seed,
    )
    num_images = sum(len(part.part_row) for group in groups for part in group)
    workers.listener.phase("evaluating heatmaps", num_images, "images")
    scores = merge_heatmap_scores(list(workers.run(group_scorer, spec, groups, _num_images)))
    if not scores.scores:
        image_id, failure = next(iter(scores.excluded.items()))
        raise SourceError(
            f"none of {len(scores.excluded):,} sampled images can be evaluated, such as "
            f"{image_id!r} ({failure.kind}: {failure.message}); restore the files, or leave out "
            "evaluation.heatmaps"
        )
    _report_excluded(scores, workers.listener)
    return scores


def group_scorer(spec: HeatmapSpec) -> Callable[[ImageGroup], HeatmapScores]:
    """Return a function that scores one group, with the program loaded into this process."""
    with silent_stderr():  # LiteRT prints its delegate
        program = spec.program.load(1)
    return partial(score_group, spec, program)


def _num_images(scores: HeatmapScores) -> int:
    return len({score.image_id for score in scores.scores}) + len(scores.excluded)


def _report_excluded(scores: HeatmapScores, listener: Listener) -> None:
    if scores.excluded:
        names = [f"{image_id} ({failure.kind})" for image_id, failure in scores.excluded.items()]
        more = f" and {len(names) - _MAX_NAMED:,} more" if len(names) > _MAX_NAMED else ""
        listener.info(
            f"{len(names):,} sampled images cannot be evaluated, and their heatmaps are left out: "
            f"{', '.join(names[:_MAX_NAMED])}{more}"
        )
