"""VidBridge-R1's training data: one JSON object a line for one sample of one video.

Fields as ``src/open_r1_video/grpo.py`` of github.com/VidBridge-R1/VidBridge-R1 reads them at 2ae764b: ``video`` (a path),
``problem`` (the question; for multiple choice with its options, a letter and a full stop each), ``solution`` (with or without
``<answer>`` tags) and ``problem_type``. Samples of one video become one row. The proxy samples show videos that are masked or mixed
already: there is no event left to black out, so they are set aside (``already-edited``), and their sources can be ingested instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from stages.domain.records import Reject
from stages.sources.annotation import Annotation, Found, read_text, reject, usable, validated
from stages.sources.jsonl import json_lines, videos_of

FILE = "train.jsonl"
_OPTION = re.compile(r"^\s*\(?([A-G])[.):]\s*(\S.*?)\s*$", re.MULTILINE)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class _Row(BaseModel):
    video: str = Field(min_length=1)
    problem: str = Field(min_length=1)
    solution: str = Field(min_length=1)
    problem_type: Literal["MCQA", "DarkEventInfer", "MixVidQA", "caption"]


def read_vidbridge_r1(folder: Path, name: str = FILE) -> tuple[list[Annotation], list[Reject]]:
    """One row for each video of the file, and what was set aside.

    Raises:
        SourceError: no such file.
    """
    lines = read_text(folder, name, "download the training data of VidBridge-R1 there").split("\n")
    return usable(_rows(lines, name), folder, name)


def _rows(lines: list[str], name: str) -> Iterator[Found]:
    of_video: dict[str, dict[str, Any]] = {}
    first_at: dict[str, str] = {}
    for where, line, raw in json_lines(lines, name):
        row = raw if isinstance(raw, Reject) else validated(_Row, raw, where)
        problem = (
            row if isinstance(row, Reject) else _add(row, where, of_video.setdefault(row.video, {"video": row.video, "qa": []}))
        )
        if isinstance(row, _Row):
            first_at.setdefault(row.video, where)
        if problem is not None:
            yield Found(where, problem, videos_of(line) if isinstance(row, Reject) else frozenset([row.video]))
    for video, said in of_video.items():
        if said["qa"] or "caption" in said:
            yield Found(first_at[video], validated(Annotation, said, first_at[video]), frozenset([video]))


def _add(row: _Row, where: str, said: dict[str, Any]) -> Reject | None:
    """Add a sample to what is said of its video; why not, where it cannot be used."""
    solution = (_ANSWER.search(row.solution) or re.fullmatch(r"(?s)(.*)", row.solution))[1].strip()  # type: ignore[index]
    if row.problem_type in ("DarkEventInfer", "MixVidQA"):
        detail = (
            f"problem_type: {row.problem_type!r} shows a video that is edited already; ingest its source, synthesize edits it again"
        )
        return reject(where, "already-edited", detail)
    if row.problem_type == "caption":
        if "caption" in said:
            return reject(where, "duplicate-caption", f"video: {row.video!r} has a caption already; each video keeps its first")
        said["caption"] = solution
        return None
    options = dict(_OPTION.findall(row.problem))
    letter = solution[:1]
    if list(options) != list("ABCDEFG"[: len(options)]) or len(options) < 2 or letter not in options:
        found = ", ".join(options) or "none"
        return reject(
            where, "bad-annotation", f"problem: options A, B, … a line each and solution {solution!r} among them; found {found}"
        )
    question = row.problem[: next(_OPTION.finditer(row.problem)).start()].strip()
    said["qa"].append({"question": question, "options": tuple(options.values()), "answer": letter})
    return None
