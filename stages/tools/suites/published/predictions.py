"""Predictions: JSON Lines of ``{"id": …, "reply": …}``, checked against the questions before
scoring."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.errors import Fault
from stages.runtime.plain import not_json
from stages.tools.suites.published.benchmark import PredictionError, Questions
from stages.tools.suites.published.files import display_value

#: Most characters of a model's answer; a log or a whole file in the place of a reply is longer.
MAX_CHARACTERS = 100_000
_FORM = 'one object a line: {"id": "…", "reply": "…"}'


@dataclass(frozen=True)
class Predictions:
    """``replies`` by id, in the order of the questions; ``missing``: ids of questions without one;
    ``empty``: of blank replies; ``not_scored``: of replies to rejected questions."""

    replies: dict[str, str]
    missing: tuple[str, ...]
    empty: tuple[str, ...]
    not_scored: tuple[str, ...]


def read_predictions(file: Path, questions: Questions[Any]) -> Predictions:
    """Read a file of replies to these questions. Other keys of a line are ignored.

    Raises:
        PredictionError: there is no such file, it is not in this form, or its ids or replies cannot
            be used; each kind of fault is reported once, with its first line and its frequency.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PredictionError("predictions", f"{file}: {error.strerror}", f"pass a JSON Lines file, {_FORM}") from error
    except UnicodeDecodeError as error:
        raise PredictionError(
            "predictions", f"{file}: not UTF-8 text: {error}", f"pass a JSON Lines file, {_FORM}"
        ) from error
    items = questions.items
    allowed = {item.item_id for item in items} | questions.not_asked
    faults: defaultdict[str, list[PredictionError]] = defaultdict(list)
    replies: dict[str, str] = {}
    at: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        fault, reply_of = _read(line)
        if reply_of is not None:
            item_id, reply = reply_of
            if item_id in at:
                problem = f"id: {display_value(item_id)} is in line {at[item_id]} too"
                fault = ("duplicate", Fault(problem, "keep one reply per question"))
            elif item_id not in allowed:
                problem = f"id: {display_value(item_id)} is not a question of these annotations"
                fault = ("unknown", Fault(problem, f"ids are written like {items[0].item_id!r}"))
            else:
                replies[item_id] = reply
            at.setdefault(item_id, number)
        if fault is not None:
            faults[fault[0]].append(PredictionError(f"{file.name}:{number}", *fault[1]))
    if faults:
        refused = [PredictionError("predictions", "nothing was scored", "correct these lines")]
        for first, *others in faults.values():
            more = f" (and {len(others):,} more such lines)" if others else ""
            refused.append(PredictionError.from_error(first, remedy=f"{first.remedy}{more}"))
        raise PredictionError.joined(refused)
    not_scored = tuple(item_id for item_id in replies if item_id in questions.not_asked)
    empty = tuple(item.item_id for item in items if item.item_id in replies and not replies[item.item_id].strip())
    if len(empty) == len(replies) - len(not_scored):
        what = f"all {len(empty):,} replies are empty" if empty else "holds no reply to a question that can be scored"
        raise PredictionError("predictions", f"{file}: {what}", f"nothing was scored. Pass {_FORM}")
    return Predictions(
        replies={item.item_id: replies[item.item_id] for item in items if item.item_id in replies},
        missing=tuple(item.item_id for item in items if item.item_id not in replies),
        empty=empty,
        not_scored=not_scored,
    )


def _read(line: str) -> tuple[tuple[str, Fault] | None, tuple[str, str] | None]:
    """Parse a line. Returns its id and reply, or the kind of its fault and the fault."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return ("json", Fault(not_json(error), f"write {_FORM}")), None
    if not isinstance(row, dict):
        return ("object", Fault(f"{display_value(row)} is not an object", f"write {_FORM}")), None
    for field in ("id", "reply"):
        if field not in row:
            has = ", ".join(list(row)[:8]) or "nothing"
            return (f"no {field}", Fault(f"{field}: missing; the line has {has}", f"write {_FORM}")), None
        if not isinstance(row[field], str):
            problem = f"{field}: {display_value(row[field])} is not text"
            return (f"{field} type", Fault(problem, "write it in quotes")), None
    if len(row["reply"]) > MAX_CHARACTERS:
        length = f"{len(row['reply']):,} characters, at most {MAX_CHARACTERS:,} are read"
        return (
            "enormous",
            Fault(f"reply: {length}", "pass the model's answer alone, cut off at its token limit"),
        ), None
    return None, (row["id"], row["reply"])
