"""Objects that tasks read (``answers`` of a row): their form, for fields that this code does not
know."""

from __future__ import annotations

import re
from math import isfinite
from typing import Any

from stages.domain.core.records import TASK_NAME_PATTERN, Fields, Reject

#: Deepest nesting of lists and objects in one of them.
MAX_DEPTH = 8


def read_answers(given: Any, where: str, at: str) -> tuple[dict[str, list[Fields]] | None, list[Reject]]:
    """Read the objects of a row by the task's name, one or a list of them, with a reject
    ``bad-answer`` for each that is none; None if none is left."""
    if not isinstance(given, dict):
        found = type(given).__name__
        return None, [_reject(where, f"{at}: need an object of objects by the task's name, found {found}")]
    answers: dict[str, list[Fields]] = {}
    rejects = []
    for task, objects in given.items():
        if not isinstance(task, str) or re.fullmatch(TASK_NAME_PATTERN, task) is None:
            detail = f"{at}: {task!r:.80} is not the name of a task; write lower-case letters, digits and _"
            rejects.append(_reject(where, detail))
            continue
        listed = isinstance(objects, list | tuple)
        for number, fields in enumerate(objects if listed else [objects]):
            if (problem := _problem(fields)) is None:
                answers.setdefault(task, []).append(fields)
            else:
                rejects.append(_reject(where, f"{at}.{task}{f'.{number}' if listed else ''}: {problem}"))
    return answers or None, rejects


def _reject(where: str, detail: str) -> Reject:
    return Reject(item=where, reason="bad-answer", detail=detail)


def _problem(fields: Any) -> str | None:
    """Describe why a value is no object of JSON; None if it is one."""
    if not isinstance(fields, dict) or not fields:
        return f"need an object with fields, found {type(fields).__name__} (value {fields!r:.200})"
    return _unfit(fields, MAX_DEPTH)


def _unfit(value: Any, depth: int) -> str | None:
    if isinstance(value, dict | list | tuple):
        if not depth:
            return f"nested deeper than {MAX_DEPTH}; write it flatter"
        if isinstance(value, dict) and (strange := [key for key in value if not isinstance(key, str)]):
            return f"field {strange[0]!r:.80} is not a text; name fields by texts"
        inner = value.values() if isinstance(value, dict) else value
        return next((problem for one in inner if (problem := _unfit(one, depth - 1)) is not None), None)
    if isinstance(value, float) and not isfinite(value):
        return f"{value} is not a number that JSON has; write null, or leave the field out"
    if not isinstance(value, str | int | float | bool | None):
        return f"{value!r:.80} is not a value that JSON has ({type(value).__name__}); write a text or a number"
    return None
