"""Reader of VidBridge-R1's training data: one JSON object per line for one sample of one video.

Fields as ``src/open_r1_video/grpo.py`` of github.com/VidBridge-R1/VidBridge-R1 reads them at
2ae764b: ``video`` (a path), ``problem`` (the question; for multiple choice with its options, a
letter and a full stop each), ``solution`` (with or without ``<answer>`` tags; a letter alone or
with its option's words, or an option's own words) and ``problem_type``. Further captions of a video
are kept. The videos of the proxy samples are already masked or mixed, so no event is left to black
out: they are rejected (``already-edited``), and their sources can be ingested instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from stages.domain.core.records import Reject
from stages.lib.annotations.annotation import Found, annotated, question, reject, validated
from stages.lib.annotations.choices import listed_options
from stages.lib.annotations.collect import Format, Source, usable
from stages.lib.annotations.jsonl import json_lines, read_lines, videos_of

FILE = "train.jsonl"
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class _Row(BaseModel):
    video: str = Field(min_length=1)
    problem: str = Field(min_length=1)
    solution: str = Field(min_length=1)
    problem_type: Literal["MCQA", "DarkEventInfer", "MixVidQA", "caption"]


def read_vidbridge_r1(folder: Path, name: str = FILE) -> Source:
    """Read one row for each video of the file, and the rejects.

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
        named = frozenset([row.video])
        fields = _fields(row, where)
        if isinstance(fields, Reject):
            yield Found(where, fields, named)
        else:
            whole, parts = annotated({"video": row.video, **fields}, where)
            yield Found(where, whole, named, parts)


def _fields(row: _Row, where: str) -> dict[str, Any] | Reject:
    """The question or the caption of a sample, or why it cannot be used."""
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
    try:
        asks, options = listed_options(row.problem)
    except ValueError as error:
        return reject(where, "bad-question", f"problem: {error}")
    read = question({"question": asks, "options": options, "answer": solution}, where, "solution")
    return read if isinstance(read, Reject) else {"qa": [read]}


FORMAT = Format("vidbridge_r1", read_vidbridge_r1, FILE)
