"""Reader of VidBridge-R1's training data: one JSON object per line for one sample of one video.

Fields as ``src/open_r1_video/grpo.py`` of github.com/VidBridge-R1/VidBridge-R1 reads them at
2ae764b: ``video`` (a path), ``problem`` (the question; for multiple choice with its options, a
letter and a full stop each), ``solution`` (with or without ``<answer>`` tags; a letter alone or
with its option's words, or an option's own words) and ``problem_type``. Samples of one video become
one row. The videos of the proxy samples are already masked or mixed, so no event is left to black
out: they are set aside (``already-edited``), and their sources can be ingested instead.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from stages.domain.core.records import Reject
from stages.lib.annotations.annotation import Found, annotated, question, reject, validated
from stages.lib.annotations.collect import Format, Source, usable
from stages.lib.annotations.jsonl import json_lines, read_lines, videos_of

FILE = "train.jsonl"
_OPTION = re.compile(r"^[^\S\n]*\(?([A-Z])[.):][^\S\n]*(\S.*?)\s*$", re.MULTILINE)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class _Row(BaseModel):
    video: str = Field(min_length=1)
    problem: str = Field(min_length=1)
    solution: str = Field(min_length=1)
    problem_type: Literal["MCQA", "DarkEventInfer", "MixVidQA", "caption"]


def read_vidbridge_r1(folder: Path, name: str = FILE) -> Source:
    """Read the samples of a file, those of one video as one row, and the rejects.

    Raises:
        SourceError: the file does not exist.
    """
    lines = read_lines(folder, name, "download the training data of VidBridge-R1 there")
    return usable(_rows(lines, name), folder, name)


def _rows(lines: list[str], name: str) -> Iterator[Found]:
    for where, line, raw in json_lines(lines, name):
        row = raw if isinstance(raw, Reject) else validated(_Row, raw, where)
        if isinstance(row, Reject):
            yield Found(where, row, videos_of(line))
            continue
        told = _told(row, where)
        if isinstance(told, Reject):
            # A line holds one sample: with it, all of the line is set aside.
            yield Found(where, told.model_copy(update={"rows": 1}), frozenset([row.video]))
        else:
            whole, parts = annotated({"video": row.video} | told, where)
            yield Found(where, whole, frozenset([row.video]), parts)


def _told(row: _Row, where: str) -> dict[str, Any] | Reject:
    """Return what a sample tells of its video, in the fields of an annotation; or a reject if it
    cannot be used."""
    tagged = _ANSWER.search(row.solution)
    solution = (tagged[1] if tagged else row.solution).strip()
    if row.problem_type in ("DarkEventInfer", "MixVidQA"):
        detail = (
            f"problem_type: {row.problem_type!r} shows a video that is edited already; ingest its source, synthesize"
            " edits it again"
        )
        return reject(where, "already-edited", detail)
    if row.problem_type == "caption":
        if not solution:
            return reject(
                where,
                "bad-caption",
                f"solution: {row.solution!r} says nothing; leave the line out, or write the caption",
            )
        return {"caption": solution}
    listed = list(_OPTION.finditer(row.problem))
    letters = [match[1] for match in listed]
    if len(listed) < 2 or letters != list(string.ascii_uppercase[: len(listed)]):
        listing = ", ".join(letters) or "none"
        return reject(
            where, "bad-question", f"problem: need options A, B, … a line each, in this order; found {listing}"
        )
    fields = {
        "question": row.problem[: listed[0].start()].strip(),
        "options": [match[2] for match in listed],
        "answer": solution,
    }
    read = question(fields, where, "solution")
    return read if isinstance(read, Reject) else {"qa": [read]}


FORMAT = Format("vidbridge_r1", read_vidbridge_r1, FILE)
