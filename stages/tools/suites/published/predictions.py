"""Anyone's predictions: JSON Lines of ``{"id": …, "reply": …}``, checked against the questions before anything is scored."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.runtime.plain import not_json
from stages.tools.suites.published.benchmark import PredictionError, Questions
from stages.tools.suites.published.files import shown

#: No answer of a model is longer; a log or a whole file in the place of a reply is.
MAX_CHARACTERS = 100_000
_FORM = 'one object a line: {"id": "…", "reply": "…"}'


@dataclass(frozen=True)
class Predictions:
    """``replies`` by id, in the order of the questions; ``missing``: ids of questions that have none; ``empty``: of those left
    blank; ``not_scored``: of replies to questions that were set aside."""

    replies: dict[str, str]
    missing: tuple[str, ...]
    empty: tuple[str, ...]
    not_scored: tuple[str, ...]


def read_predictions(file: Path, questions: Questions[Any]) -> Predictions:
    """Read a file of replies to these questions. Other keys of a line are left alone.

    Raises:
        PredictionError: no such file, not in this form, or ids or replies that cannot be used; each kind of fault is told once,
        with its
            first line and how often it occurs.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PredictionError(f"predictions: {file}: {error.strerror}; give a JSON Lines file, {_FORM}") from error
    except UnicodeDecodeError as error:
        raise PredictionError(f"predictions: {file}: not UTF-8 text: {error}; give a JSON Lines file, {_FORM}") from error
    items = questions.items
    known = {item.item_id for item in items} | questions.not_asked
    faults: defaultdict[str, list[str]] = defaultdict(list)
    replies: dict[str, str] = {}
    at: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        fault, found = _read(line)
        if found is not None:
            item_id, reply = found
            if item_id in at:
                fault = ("duplicate", f"id: {shown(item_id)} stands in line {at[item_id]} too; keep one reply a question")
            elif item_id not in known:
                example = items[0].item_id
                fault = ("unknown", f"id: {shown(item_id)} is no question of these annotations; ids are written like {example!r}")
            else:
                replies[item_id] = reply
            at.setdefault(item_id, number)
        if fault is not None:
            faults[fault[0]].append(f"{file.name}:{number}: {fault[1]}")
    if faults:
        lines = [told[0] + (f" (and {len(told) - 1:,} more such lines)" if len(told) > 1 else "") for told in faults.values()]
        raise PredictionError("predictions: nothing was scored\n  " + "\n  ".join(lines))
    not_scored = tuple(item_id for item_id in replies if item_id in questions.not_asked)
    empty = tuple(item.item_id for item in items if item.item_id in replies and not replies[item.item_id].strip())
    if len(empty) == len(replies) - len(not_scored):
        what = f"all {len(empty):,} replies are empty" if empty else "holds no reply to a question that can be scored"
        raise PredictionError(f"predictions: {file}: {what}; nothing was scored. Give {_FORM}")
    return Predictions(
        replies={item.item_id: replies[item.item_id] for item in items if item.item_id in replies},
        missing=tuple(item.item_id for item in items if item.item_id not in replies),
        empty=empty,
        not_scored=not_scored,
    )


def _read(line: str) -> tuple[tuple[str, str] | None, tuple[str, str] | None]:
    """What is wrong with a line, as kind and message, or else its id and reply."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return ("json", f"{not_json(error)}; write {_FORM}"), None
    if not isinstance(row, dict):
        return ("object", f"{shown(row)} is no object; write {_FORM}"), None
    for field in ("id", "reply"):
        if field not in row:
            return (f"no {field}", f"{field}: missing; the line has {', '.join(list(row)[:8]) or 'nothing'}; write {_FORM}"), None
        if not isinstance(row[field], str):
            return (f"{field} type", f"{field}: {shown(row[field])} is no text; write it in quotes"), None
    if len(row["reply"]) > MAX_CHARACTERS:
        length = f"{len(row['reply']):,} characters, at most {MAX_CHARACTERS:,} are read"
        return ("enormous", f"reply: {length}; give the model's answer alone, cut off at its token limit"), None
    return None, (row["id"], row["reply"])
