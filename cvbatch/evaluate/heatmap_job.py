"""Evaluate the heatmaps of a result: check, sample, and run their network again.

Nothing is written here. The network is the program that the prediction stored under its sink, or is
built again from the prediction's job.
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
from cvbatch.config.models import tiling_of
from cvbatch.config.predict import JobConfig
from cvbatch.core.child_process import silent_stderr
from cvbatch.core.errors import ModelError, SourceError
from cvbatch.core.progress import Listener
from cvbatch.core.tasks import TASKS
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
    identify,
    program_uri,
    requests_for,
)
from cvbatch.results.parts import take_rows
from cvbatch.results.result import Result
from cvbatch.storage import store

_SHARE_IMAGES = 16  # judged by one call: a decoding process and a loaded program for each
_THREADS = 16
_SHOWN = 3
_CLASS_OF_HEATMAP = "heatmaps.list.element.class_id"


class HeatmapSource(NamedTuple):
    """A result with heatmaps, and what is needed to run their network again."""

    result: Result
    job: JobConfig
    request: BuildRequest
    weights_sha256: str  # that the network had
    keys: tuple[InputKey, ...]  # what all models of the job were fed


def load_heatmap_source(result: Result) -> HeatmapSource:
    """Return the job and the network of a result's heatmaps.

    Raises:
        SourceError: there are no heatmaps, or nothing says which job made them.
        ModelError: the model's file is gone.
    """
    about = result.models.get("labels", {})
    if not about.get("options", {}).get("heatmap"):
        raise SourceError(
            f"predictions {result.uri}: the result has no heatmaps; predict with heatmap: {{layer: "
            "auto}, or leave out evaluation.heatmaps"
        )
    if "job" not in result.job:
        raise SourceError(
            f"predictions {result.uri}: its _cvbatch/job.json does not say which job made it, "
            "because an earlier version wrote it; predict again, into an empty folder"
        )
    try:
        job = JobConfig.model_validate(result.job["job"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SourceError(
            f"predictions {result.uri}: the job in its _cvbatch/job.json is none of this version "
            f"({where}: {first['msg']}); predict again, into an empty folder"
        ) from None
    config = next(one for one in job.models if getattr(one, "heatmap", None) is not None)
    alone = job.model_copy(update={"models": [config]})
    (request,) = requests_for(alone, [identify(config)], result.job["engine"])
    keys = input_keys(job, result.models)
    return HeatmapSource(result, job, request, about["weights_sha256"], keys)


def input_keys(job: JobConfig, models: dict[str, dict[str, Any]]) -> tuple[InputKey, ...]:
    """Return what a job's models are fed.

    models: what the result's files say of the model that filled a column.
    """
    keys = []
    for config in job.models:
        height, width = models[TASKS[config.task].columns[0]]["input_size"]
        tiling = tiling_of(config, height, width)
        keys.append(InputKey(height, width, config.resize, tiling))
    return tuple(dict.fromkeys(keys))


def load_or_build_program(subject: HeatmapSource) -> BuiltProgram:
    """Return the network compiled: as the prediction left it, or built again.

    Raises:
        ModelError: it cannot be built, or is not the one that the result is of.
    """
    uri = program_uri(subject.result.uri, subject.request)
    if store.exists(uri):
        program = BuiltProgram.from_bytes(store.read_bytes(uri))
    else:
        (program,) = ProgramBuilder([subject.request]).result()
    if program.spec.weights_sha256 != subject.weights_sha256:
        raise ModelError(
            f"model {subject.request.config.model!r} is not the one that made the result "
            f"{subject.result.uri}: its weights differ; put that file back, or predict again"
        )
    return program


def sample_images(
    subject: HeatmapSource, pieces: Sequence[JoinedPart], said: HeatmapsConfig, seed: int
) -> list[ImageGroup]:
    """Return a sample of the images that have heatmaps, cut into what one call judges.

    Which images are in it follows from the seed and their ids.

    Raises:
        SourceError: none has any.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda piece: _smallest(piece, said.sample, seed), pieces)
        keyed = ((*one, number) for number, some in enumerate(found) for one in some)
        chosen = heapq.nsmallest(said.sample, keyed)
    if not chosen:
        raise SourceError(
            f"predictions {subject.result.uri}: no image that is compared has a heatmap; look at "
            "the rows with status = 'failed'"
        )
    places = sorted((number, place) for _, _, place, number in chosen)
    shares: list[ImageGroup] = []
    for start in range(0, len(places), _SHARE_IMAGES):
        some = groupby(places[start : start + _SHARE_IMAGES], key=lambda one: one[0])
        shares.append(
            [pieces[number].take(np.array([place for _, place in own])) for number, own in some]
        )
    return shares


def _smallest(piece: JoinedPart, count: int, seed: int) -> list[tuple[bytes, str, int]]:
    """Return of the images with heatmaps those whose hashes are smallest: hash, id, place."""
    rows = take_rows(piece.part_uri, piece.part_row, ["image_id", "status", _CLASS_OF_HEATMAP])
    num_maps = pc.fill_null(pc.list_value_length(rows["heatmaps"]), 0)
    has_any = pc.and_(pc.equal(rows["status"], "ok"), pc.greater(num_maps, 0)).to_numpy()
    names = rows["image_id"].to_pylist()
    key = seed.to_bytes(8, "little")
    return heapq.nsmallest(
        count,
        (
            (hashlib.blake2b(names[i].encode(), digest_size=8, key=key).digest(), names[i], i)
            for i in np.flatnonzero(has_any).tolist()
        ),
    )


def evaluate_heatmaps(
    subject: HeatmapSource,
    program: BuiltProgram,
    shares: Sequence[ImageGroup],
    class_of: dict[str, np.ndarray],
    said: EvaluationConfig,
    work: ParallelMap,
) -> HeatmapScores:
    """Return what the heatmaps of the sampled images come to.

    Raises:
        SourceError: no image is left as the prediction read it.
    """
    asked = said.heatmaps or HeatmapsConfig()
    order = HeatmapSpec(
        subject.result.reader,
        program,
        subject.keys,
        subject.job.source,
        subject.job.run.image_timeout_s,
        class_of,
        asked.steps,
        asked.box_threshold,
        said.seed,
    )
    what = f"shares of {_SHARE_IMAGES} images with heatmaps judged"
    found = merge_heatmap_scores(list(work.run(group_scorer, order, shares, what)))
    if not found.scores:
        name, why = next(iter(found.excluded.items()))
        raise SourceError(
            f"of {len(found.excluded):,} images with heatmaps none is there as the prediction read "
            f"it, such as {name!r} ({why.kind}: {why.message}); put them back, or leave out "
            "evaluation.heatmaps"
        )
    _tell(found, work.listener)
    return found


def group_scorer(order: HeatmapSpec) -> Callable[[ImageGroup], HeatmapScores]:
    """Return the evaluation of one share, with the program loaded into this process."""
    with silent_stderr():  # LiteRT writes about its delegate to the terminal
        program = order.program.load(1)
    return partial(score_group, order, program)


def _tell(found: HeatmapScores, listener: Listener) -> None:
    if found.excluded:
        names = [f"{name} ({why.kind})" for name, why in found.excluded.items()]
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        listener.say(
            f"{len(names):,} sampled images are not there as the prediction read them, and their "
            f"heatmaps are left out: {', '.join(names[:_SHOWN])}{more}"
        )
