"""Match predicted classes to ground-truth classes, and check that an evaluation is possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cvbatch.config.base import index_of_class
from cvbatch.config.evaluate import EvaluationConfig
from cvbatch.core.errors import ConfigError, SourceError
from cvbatch.core.suggestions import closest_names, hint
from cvbatch.core.tasks import CLASS_COLUMNS
from cvbatch.evaluate.join import GroundTruth
from cvbatch.evaluate.scoring import EvaluationSpec
from cvbatch.results.result import Result

_TOP_K = (1, 5)
_LOCALIZED = ("boxes", "mask")  # ground-truth columns that locate a class in the image
_MAX_NAMED = 5  # classes in an error message
Classes = dict[str, tuple[str, ...]]  # column → class names


def make_evaluation_spec(
    config: EvaluationConfig, result: Result, truth: GroundTruth | None
) -> EvaluationSpec:
    """Return the spec of an evaluation of all columns that predictions and labels share.

    If heatmaps are evaluated, they may share none.

    Raises:
        SourceError: no column is shared, or the predicted masks have the size of the network.
        ConfigError: class tables differ and `class_map` does not cover that, or a name or number
            of the evaluation section does not fit them.
    """
    labelled: Classes = truth.classes if truth else {}
    columns = _shared_columns(config, result, labelled if truth else None)
    tables = [(result.classes[name], labelled[name]) for name in columns]
    if config.heatmaps and config.heatmaps.class_map is None:
        predicted = result.classes.get("labels", ())
        tables += [(predicted, labelled.get(name, ())) for name in _LOCALIZED]
    _check_names(config.class_map, "evaluation.class_map", tables)
    options = {column: result.models[column].get("options", {}) for column in columns}
    if options.get("mask", {}).get("mask_size") == "model":
        raise SourceError(
            f"predictions {result.uri}: the masks have the size of the network input; predict "
            "with mask_size: original to evaluate them"
        )
    is_multi_label = bool(options.get("labels", {}).get("multi_label"))
    is_multi_label |= truth is not None and truth.is_multi_label
    ignored = config.ignored_class
    return EvaluationSpec(
        classes={column: labelled[column] for column in columns},
        class_of={
            name: match_classes(result.classes[name], labelled[name], config.class_map, name)
            for name in columns
        },
        ks=_top_k(config, result, is_multi_label) if "labels" in columns else (),
        is_multi_label=is_multi_label,
        ignored_class=ignored
        if ignored is None
        else index_of_class(ignored, labelled.get("mask", ()), "evaluation.ignored_class"),
        score_threshold=config.score_threshold,
        iou_threshold=config.iou_threshold,
        num_replicates=config.bootstrap,
        seed=config.seed,
    )


def _shared_columns(
    config: EvaluationConfig, result: Result, labelled: Classes | None
) -> list[str]:
    """Return the columns to compare; labelled: None without labels."""
    columns = [
        name for name in CLASS_COLUMNS if name in result.classes and name in (labelled or ())
    ]
    if not columns and not (config.heatmaps and (labelled is None or labelled.keys() & _LOCALIZED)):
        raise SourceError(
            f"predictions have {_listed(result.classes)}, the truth has {_listed(labelled or {})}: "
            "there is nothing to compare; import labels of that kind (embeddings and the values of "
            "regressions are not evaluated: docs/embeddings.md has the SQL)"
        )
    return columns


def match_classes(
    predicted: Sequence[str], true: Sequence[str], class_map: Mapping[str, str | None], column: str
) -> np.ndarray:  # (P,) int64
    """Return the ground-truth class of each predicted class, by name; −1: it is ignored.

    Raises:
        ConfigError: a predicted class is neither a ground-truth class nor in the map.
    """
    number = {name: i for i, name in enumerate(true)}
    targets = [class_map.get(name, name) for name in predicted]
    unknown = [
        name
        for name, target in zip(predicted, targets, strict=True)
        if target and target not in number
    ]
    if unknown:
        near = {name: closest_names(name, true) for name in unknown[:_MAX_NAMED]}
        listed = ", ".join(
            f"{name!r}" + (f" (nearest is {matches[0]!r})" if matches else "")
            for name, matches in near.items()
        )
        more = f" and {len(unknown) - _MAX_NAMED} more" if len(unknown) > _MAX_NAMED else ""
        example = (near[unknown[0]] or list(true))[0]
        raise ConfigError(
            f"evaluation.class_map: column {column!r} has predicted classes that the truth does "
            f"not have: {listed}{more}; map each to a class of the truth, or to null to ignore "
            f"its predictions, such as class_map: {{{unknown[0]}: {example}}}"
        )
    return np.array([-1 if name is None else number[name] for name in targets], np.int64)


def unmatched_classes(spec: EvaluationSpec) -> dict[str, list[str]]:
    """Return the ground-truth classes of each column that no predicted class is matched to."""
    return {
        column: [name for k, name in enumerate(names) if not (spec.class_of[column] == k).any()]
        for column, names in spec.classes.items()
    }


def match_heatmap_classes(
    config: EvaluationConfig, result: Result, truth: GroundTruth | None
) -> dict[str, np.ndarray]:  # column → (P,) int64
    """Return the ground-truth class of boxes and masks that each class of the heatmaps matches.

    Classes match by name or by the class map. −1: no match; such heatmaps are not compared with
    boxes or masks. {}: the truth has neither.

    Raises:
        ConfigError: no class matches and there is no map, or a name of the map is unknown.
    """
    labelled = {n: truth.classes[n] for n in _LOCALIZED if truth and n in truth.classes}
    predicted = result.classes["labels"]
    heatmap_map = config.heatmaps.class_map if config.heatmaps else None
    if heatmap_map is not None:
        tables = [(predicted, names) for names in (*labelled.values(), ())]
        _check_names(heatmap_map, "evaluation.heatmaps.class_map", tables)
    class_map = config.class_map if heatmap_map is None else heatmap_map
    targets = [class_map.get(name, name) for name in predicted]
    class_of = {
        column: np.array([names.index(name) if name in names else -1 for name in targets])
        for column, names in labelled.items()
    }
    is_unmatched = class_of and all((classes < 0).all() for classes in class_of.values())
    if heatmap_map is None and is_unmatched:
        example = next(iter(labelled.values()))[-1]
        raise ConfigError(
            f"evaluation.heatmaps.class_map: no predicted class, such as {predicted[0]!r}, is a "
            f"class of the truth's {' or '.join(labelled)}, such as {example!r}; map them, such "
            f"as class_map: {{{predicted[0]}: {example}}}, or set class_map: {{}} for no match"
        )
    return class_of


def _check_names(
    class_map: Mapping[str, str | None],
    key: str,
    tables: Sequence[tuple[Sequence[str], Sequence[str]]],  # predicted, true
) -> None:
    predicted = dict.fromkeys(name for names, _ in tables for name in names)
    true = dict.fromkeys(name for _, names in tables for name in names)
    for name, target in class_map.items():
        if name not in predicted:
            raise ConfigError(f"{key}: {name!r} is no predicted class; {hint(name, predicted)}")
        if target is not None and target not in true:
            raise ConfigError(f"{key}: {target!r} is no true class; {hint(target, true)}")


def _top_k(config: EvaluationConfig, result: Result, is_multi_label: bool) -> tuple[int, ...]:
    num_classes = len(result.classes["labels"])
    options = result.models["labels"].get("options", {})
    num_stored = min(options.get("top_k", num_classes), num_classes)
    if config.top_k is None or is_multi_label:
        return tuple(k for k in _TOP_K if k <= num_stored)
    if config.top_k[-1] > num_stored:
        raise ConfigError(
            f"evaluation.top_k: {config.top_k[-1]} is more than the {num_stored} best classes "
            "that the result stores of each image; lower it, or predict with a larger top_k"
        )
    return tuple(config.top_k)


def _listed(columns: Classes) -> str:
    return ", ".join(columns) or "no labels"
