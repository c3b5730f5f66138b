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
from cvbatch.evaluate.heatmap_faithfulness import HeatmapOrder, Judgement, Share, judge_share
from cvbatch.evaluate.heatmap_metrics import all_of
from cvbatch.evaluate.join import Piece
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

_SHARE_IMAGES = 16  # judged by one call: a decoding process and a loaded program for each
_THREADS = 16
_SHOWN = 3
_CLASS_OF_HEATMAP = "heatmaps.list.element.class_id"


class Subject(NamedTuple):
    """A result with heatmaps, and what is needed to run their network again."""

    result: Result
    job: JobConfig
    request: BuildRequest
    weights_sha256: str  # that the network had
    keys: tuple[InputKey, ...]  # what all models of the job were fed


def find_subject(result: Result) -> Subject:
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
    (request,) = requests_for(alone, [identify(result.storage, config)], result.job["engine"])
    keys = keys_of(job, result.models)
    return Subject(result, job, request, about["weights_sha256"], keys)


def keys_of(job: JobConfig, models: dict[str, dict[str, Any]]) -> tuple[InputKey, ...]:
    """Return what a job's models are fed.

    models: what the result's files say of the model that filled a column.
    """
    keys = []
    for config in job.models:
        height, width = models[TASKS[config.task].columns[0]]["input_size"]
        tiling = tiling_of(config, height, width)
        keys.append(InputKey(height, width, config.resize, tiling))
    return tuple(dict.fromkeys(keys))


def have_program(subject: Subject) -> BuiltProgram:
    """Return the network compiled: as the prediction left it, or built again.

    Raises:
        ModelError: it cannot be built, or is not the one that the result is of.
    """
    uri = program_uri(subject.result.uri, subject.request)
    if subject.result.storage.exists(uri):
        program = BuiltProgram.from_bytes(subject.result.storage.read_bytes(uri))
    else:
        (program,) = ProgramBuilder(subject.result.storage, [subject.request]).result()
    if program.spec.weights_sha256 != subject.weights_sha256:
        raise ModelError(
            f"model {subject.request.config.model!r} is not the one that made the result "
            f"{subject.result.uri}: its weights differ; put that file back, or predict again"
        )
    return program


def choose_shares(
    subject: Subject, pieces: Sequence[Piece], said: HeatmapsConfig, seed: int
) -> list[Share]:
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
    shares: list[Share] = []
    for start in range(0, len(places), _SHARE_IMAGES):
        some = groupby(places[start : start + _SHARE_IMAGES], key=lambda one: one[0])
        shares.append(
            [pieces[number].take(np.array([place for _, place in own])) for number, own in some]
        )
    return shares


def _smallest(piece: Piece, count: int, seed: int) -> list[tuple[bytes, str, int]]:
    """Return of the images with heatmaps those whose hashes are smallest: hash, id, place."""
    rows = take_rows(
        piece.storage, piece.part_uri, piece.part_row, ["image_id", "status", _CLASS_OF_HEATMAP]
    )
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


def judge(
    subject: Subject,
    program: BuiltProgram,
    shares: Sequence[Share],
    class_of: dict[str, np.ndarray],
    said: EvaluationConfig,
    work: ParallelMap,
) -> Judgement:
    """Return what the heatmaps of the sampled images come to.

    Raises:
        SourceError: no image is left as the prediction read it.
    """
    asked = said.heatmaps or HeatmapsConfig()
    order = HeatmapOrder(
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
    found = all_of(list(work.run(judge_there, order, shares, what)))
    if not found.judged:
        name, why = next(iter(found.left_out.items()))
        raise SourceError(
            f"of {len(found.left_out):,} images with heatmaps none is there as the prediction read "
            f"it, such as {name!r} ({why.kind}: {why.message}); put them back, or leave out "
            "evaluation.heatmaps"
        )
    _tell(found, work.listener)
    return found


def judge_there(order: HeatmapOrder) -> Callable[[Share], Judgement]:
    """Return the evaluation of one share, with the program loaded into this process."""
    with silent_stderr():  # LiteRT writes about its delegate to the terminal
        program = order.program.load(1)
    return partial(judge_share, order, program)


def _tell(found: Judgement, listener: Listener) -> None:
    if found.left_out:
        names = [f"{name} ({why.kind})" for name, why in found.left_out.items()]
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        listener.say(
            f"{len(names):,} sampled images are not there as the prediction read them, and their "
            f"heatmaps are left out: {', '.join(names[:_SHOWN])}{more}"
        )
