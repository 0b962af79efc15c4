"""DREAM-1K (arXiv 2407.00634): describe a short video; the share of the reference's events in the
description, and vice versa.

Example row of ``json/metadata.json``: ``{"idx": 1, "video_file": "video/1.mp4", "source":
"movie_animation", "duration": 5.09, "description": "A character emerges …", "events": ["A character
emerges from smoke and fire.", …], "n_events": 5}``; rows of Tarsier's ``DREAM-1k.jsonl``, the same
in messages, are also read. The id of a prediction is ``idx``, as text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from stages.domain.core.prompts import PromptTexts, render_prompt
from stages.tools.suites.asked_of_judges import Examiner
from stages.tools.suites.published.benchmark import (
    CAPTION_FRAMES,
    Benchmark,
    Item,
    JudgedScoring,
    Mark,
    Measure,
    PublishedRow,
    Questions,
    Words,
)
from stages.tools.suites.published.captions import recall_and_precision, strict_caption
from stages.tools.suites.published.files import Raw, collect_questions, parse_row, rows, text_of, without_blanks

QUESTION = "Describe the video in detail."


class Row(PublishedRow):
    idx: int | str
    video_file: Words
    source: str
    description: Words
    events: list[Words]

    @field_validator("events", mode="before")
    @classmethod
    def _may_be_text(cls, value: Any) -> Any:
        # The data card declares a string, and some conversions store the list as one.
        if isinstance(value, str):
            try:
                return json.loads(value)
            except ValueError as error:
                raise ValueError("neither a list nor JSON of one") from error
        return value


class _ContentPart(PublishedRow):
    type: str
    reference: str | None = None


class _Message(PublishedRow):
    role: str
    content: list[_ContentPart]


class _Extra(PublishedRow):
    events: list[Words]


class TarsierRow(PublishedRow):
    """Row in the format of Tarsier's evaluation."""

    idx: int
    vid: int | str
    dataset: str = Field(pattern=r"^DREAM/")
    messages: list[_Message]
    extra_info: _Extra


def read(path: Path) -> Questions[Row]:
    some, here = without_blanks(rows(path, FILES), ("events",))
    whole, blanks = without_blanks(some, ("extra_info", "events"))
    return collect_questions(whole, lambda raw: [_item(_row(raw))], lambda raw: text_of(raw, "idx"), [*here, *blanks])


def _row(raw: Raw) -> Row:
    if not isinstance(raw.value, dict) or "messages" not in raw.value:
        return parse_row(Row, raw)
    row = parse_row(TarsierRow, raw)
    reference = next((part.reference for turn in row.messages for part in turn.content if part.reference), None)
    value = {
        "idx": row.idx,
        "video_file": f"video/{row.vid}.mp4",
        "source": row.dataset.removeprefix("DREAM/"),
        "description": reference,
        "events": row.extra_info.events,
    }
    return parse_row(Row, raw._replace(value=value))


def _item(row: Row) -> Item[Row]:
    return Item(
        item_id=str(row.idx),
        video=row.video_file,
        units=(row.video_file,),
        categories={"source": row.source},
        frames=CAPTION_FRAMES,
        part_s=None,
        options=(),
        truth=row.description,
        row=row,
    )


def prompt(item: Item[Row], texts: PromptTexts) -> str:  # noqa: ARG001 - one signature for all
    return render_prompt(QUESTION, texts)


def _strict(item: Item[Row], reply: str, examiner: Examiner) -> Mark:
    return _mark(item.row, strict_caption(reply), examiner, 0.0)


def _compat(item: Item[Row], reply: str, examiner: Examiner) -> Mark:
    return _mark(item.row, reply, examiner, 1.0)


def _mark(row: Row, caption: str, examiner: Examiner, nothing: float) -> Mark:
    shares = recall_and_precision(
        caption, row.description, row.events, examiner.extract_events, examiner.entailed, nothing
    )
    return Mark(None if shares is None else dict(zip(("recall", "precision"), shares, strict=True)))


FILES = ("metadata.json", "DREAM-1k.jsonl", "DREAM-1K.json*")
BENCHMARK = Benchmark(
    name="dream-1k",
    record="field names: omni-research/DREAM-1K at 99da78d, bytedance/tarsier at 63de87a; compat: tarsier, on this"
    " project's judge",
    files=FILES,
    read=read,
    prompt=prompt,
    measures=(
        Measure("F1", ("recall", "precision"), 100),
        Measure("recall", ("recall",), 100),
        Measure("precision", ("precision",), 100),
    ),
    by_judge=(
        JudgedScoring("strict", "reasoning taken away; a description without an event has precision 0", _strict),
        JudgedScoring(
            "compat: tarsier",
            "the reply as it is; without an event, precision 1; means over sources first",
            _compat,
            "source",
        ),
    ),
)
