"""Table of tasks: their columns in results and in labelled data.

Each layer has its own table of functions with these keys, next to the functions.
tests/test_task_tables.py lists the tables: a new task or column is one row in each of them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Task = Literal[
    "classification", "segmentation", "detection", "localization", "embedding", "regression"
]


class TaskInfo(NamedTuple):
    """Properties of a task that all layers use.

    Args:
        columns: columns of a result that a model of the task fills. Two models of one job must not
            fill the same column.
        label_column: the column of labelled data that a network of the task is trained on; "" for
            tasks without classes, whose networks cvbatch neither trains nor explains.
        is_whole_image: a class has one score per image, so an image has one label, or one box,
            unless the model is multi-label.
    """

    columns: tuple[str, ...]
    label_column: str = ""
    is_whole_image: bool = False


TASKS: dict[Task, TaskInfo] = {
    "classification": TaskInfo(("labels",), "labels", is_whole_image=True),
    "segmentation": TaskInfo(("mask", "mask_areas"), "mask"),
    "detection": TaskInfo(("boxes",), "boxes"),
    "localization": TaskInfo(("labels", "boxes"), "boxes", is_whole_image=True),
    "embedding": TaskInfo(("embedding",)),
    "regression": TaskInfo(("values",)),
}


# Columns with a class table → the task whose metrics evaluate them, whichever task filled them.
CLASS_COLUMNS: dict[str, Task] = {
    "labels": "classification",
    "boxes": "detection",
    "mask": "segmentation",
}
