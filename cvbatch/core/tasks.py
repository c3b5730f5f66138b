"""Tasks, and the columns of results and labelled data that belong to them, as plain data.

Each layer has a table of functions with these keys, next to the code that it selects.
tests/test_task_tables.py lists the tables: a new task or column is one row in each of them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Task = Literal["classification", "segmentation", "detection", "localization"]


class TaskInfo(NamedTuple):
    """What all layers know of a task.

    Args:
        columns: of a result, filled by a model of the task. Two models of one job may not fill the
            same column.
        label_column: of labelled data, the one that a network of the task is trained on.
        is_whole_image: a class has one score for the whole image, so an image has one label, or one
            box, unless the model is multi-label.
    """

    columns: tuple[str, ...]
    label_column: str
    is_whole_image: bool = False


TASKS: dict[Task, TaskInfo] = {
    "classification": TaskInfo(("labels",), "labels", is_whole_image=True),
    "segmentation": TaskInfo(("mask", "mask_areas"), "mask"),
    "detection": TaskInfo(("boxes",), "boxes"),
    "localization": TaskInfo(("labels", "boxes"), "boxes", is_whole_image=True),
}


# Columns with a class table, of results and of labelled data → the task by whose metrics they are
# evaluated, whichever task filled them.
CLASS_COLUMNS: dict[str, Task] = {
    "labels": "classification",
    "boxes": "detection",
    "mask": "segmentation",
}
