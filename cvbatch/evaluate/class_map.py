"""Which true class a predicted one stands for, and what an evaluation can ask, is settled here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cvbatch.config.evaluate import EvaluationConfig
from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.core.suggestions import nearest, offer
from cvbatch.core.tasks import CLASS_COLUMNS
from cvbatch.evaluate.join import GroundTruth
from cvbatch.evaluate.scoring import EvaluationSpec
from cvbatch.results.result import Result

_TOP_K = (1, 5)
_PLACES = ("boxes", "mask")  # columns that say where a class is
_MOST = 5  # classes named in a refusal


def make_evaluation_spec(
    said: EvaluationConfig, result: Result, truth: GroundTruth | None
) -> EvaluationSpec:
    """Return what is scored: every task that both sides have.

    Where heatmaps are asked for there may be none.

    Raises:
        SourceError: they have none in common, or the masks are not those of the originals.
        ConfigError: class tables differ and `class_map` does not say how, or a name or number of
            the evaluation section does not fit them.
    """
    there = truth.classes if truth else {}
    columns = [name for name in CLASS_COLUMNS if name in result.classes and name in there]
    if not columns and not (said.heatmaps and (truth is None or there.keys() & _PLACES)):
        raise SourceError(
            f"predictions have {_listed(result.classes)}, the truth has {_listed(there)}: "
            "there is nothing to compare; import labels of that kind"
        )
    compared = [(result.classes[name], there[name]) for name in columns]
    if said.heatmaps and said.heatmaps.class_map is None:
        compared += [(result.classes.get("labels", ()), there.get(name, ())) for name in _PLACES]
    _check_names(said.class_map, "evaluation.class_map", compared)
    options = {column: result.models[column].get("options", {}) for column in columns}
    if options.get("mask", {}).get("mask_size") == "model":
        raise SourceError(
            f"predictions {result.uri}: their masks have the network's size; predict with "
            "mask_size: original to compare them"
        )
    several = bool(options.get("labels", {}).get("multi_label"))
    several |= truth is not None and truth.is_multi_label
    return EvaluationSpec(
        classes={column: there[column] for column in columns},
        class_of={
            column: match_classes(result.classes[column], there[column], said.class_map, column)
            for column in columns
        },
        ks=_top_k(said, result, several) if "labels" in columns else (),
        is_multi_label=several,
        ignored=_ignored(said, there),
        score_threshold=said.score_threshold,
        iou_threshold=said.iou_threshold,
        num_replicates=said.bootstrap,
        seed=said.seed,
    )


def match_classes(
    predicted: Sequence[str], true: Sequence[str], class_map: dict[str, str | None], column: str
) -> np.ndarray:  # (P,) int64
    """Return the true class of each predicted one, by name; −1: its answers are left out.

    Raises:
        ConfigError: a predicted class is neither a true one nor in the map.
    """
    number = {name: i for i, name in enumerate(true)}
    named = [class_map.get(name, name) for name in predicted]
    strangers = [
        said for said, name in zip(predicted, named, strict=True) if name and name not in number
    ]
    if strangers:
        near = {name: nearest(name, true) for name in strangers[:_MOST]}
        told = ", ".join(
            f"{n!r}" + (f" (nearest is {m[0]!r})" if m else "") for n, m in near.items()
        )
        more = f" and {len(strangers) - _MOST} more" if len(strangers) > _MOST else ""
        meant = (near[strangers[0]] or list(true))[0]
        raise ConfigError(
            f"evaluation.class_map: the class tables of column {column!r} differ: predicted are "
            f"{told}{more}, which the truth does not have; say which true class each of them is, "
            f"or null to leave its answers out, such as class_map: {{{strangers[0]}: {meant}}}"
        )
    return np.array([-1 if name is None else number[name] for name in named], np.int64)


def unmatched_classes(order: EvaluationSpec) -> dict[str, list[str]]:
    """Return the true classes of each column that no predicted class stands for."""
    return {
        column: [name for k, name in enumerate(names) if not (order.class_of[column] == k).any()]
        for column, names in order.classes.items()
    }


def match_heatmap_classes(
    said: EvaluationConfig, result: Result, truth: GroundTruth | None
) -> dict[str, np.ndarray]:  # column → (P,) int64
    """Return for boxes and masks of the truth which of their classes each heatmap's class is.

    By name, or as the class map says; −1 for a class that is none of theirs: whether its heatmaps
    point at the right place is not asked. {} where the truth says of no place.

    Raises:
        ConfigError: no class has a counterpart and no map was given, or a name of it does not fit.
    """
    there = {name: truth.classes[name] for name in _PLACES if truth and name in truth.classes}
    predicted = result.classes["labels"]
    own = said.heatmaps.class_map if said.heatmaps else None
    if own is not None:
        compared = [(predicted, names) for names in (*there.values(), ())]
        _check_names(own, "evaluation.heatmaps.class_map", compared)
    meant = said.class_map if own is None else own
    class_of = {
        column: np.array(
            [names.index(n) if (n := meant.get(one, one)) in names else -1 for one in predicted]
        )
        for column, names in there.items()
    }
    if own is None and class_of and all((classes < 0).all() for classes in class_of.values()):
        some = next(iter(there.values()))
        raise ConfigError(
            f"evaluation.heatmaps.class_map: no predicted class, such as {predicted[0]!r}, is one "
            f"of the truth's {' or '.join(there)}, such as {some[-1]!r}; say which of them is "
            f"which, such as class_map: {{{predicted[0]}: {some[-1]}}}, or {{}} for none"
        )
    return class_of


def _check_names(
    class_map: dict[str, str | None],
    where: str,
    compared: Sequence[tuple[Sequence[str], Sequence[str]]],  # predicted, true
) -> None:
    known = dict.fromkeys(name for names, _ in compared for name in names)
    meant = dict.fromkeys(name for _, names in compared for name in names)
    for name, target in class_map.items():
        if name not in known:
            raise ConfigError(f"{where}: {name!r} is no predicted class; {offer(name, known)}")
        if target is not None and target not in meant:
            raise ConfigError(f"{where}: {target!r} is no true class; {offer(target, meant)}")


def _top_k(said: EvaluationConfig, result: Result, several: bool) -> tuple[int, ...]:
    num_classes = len(result.classes["labels"])
    kept = min(result.models["labels"].get("options", {}).get("top_k", num_classes), num_classes)
    if said.top_k is None or several:
        return tuple(k for k in _TOP_K if k <= kept)
    if said.top_k[-1] > kept:
        raise ConfigError(
            f"evaluation.top_k: {said.top_k[-1]} is more than the {kept} best classes that the "
            "result keeps of an image; lower it, or predict with a larger top_k"
        )
    return tuple(said.top_k)


def _ignored(said: EvaluationConfig, there: dict[str, tuple[str, ...]]) -> int | None:
    if said.ignored_class is None:
        return None
    names = there.get("mask", ())
    if said.ignored_class not in names:
        raise ConfigError(
            f"evaluation.ignored_class: {said.ignored_class!r} is no class of the true masks; "
            + (offer(said.ignored_class, names) if names else "there are no masks; leave it out")
        )
    return names.index(said.ignored_class)


def _listed(columns: dict[str, tuple[str, ...]]) -> str:
    return ", ".join(columns) or "no labels"
