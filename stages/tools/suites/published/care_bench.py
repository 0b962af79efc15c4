"""CaReBench (arXiv 2501.00513): describe a video in detail; actions and objects of the reference,
each scored as DREAM-1K scores events.

Example row of ``json/metadata.json``: ``{"video": "v_00000030_5.mp4", "caption": "A man …",
"events": ["A man slices a tomato."], "objects": ["There is a red tomato."]}``; if ``events`` or
``objects`` are missing, the judge lists them. The id of a prediction is ``video``.
"""

from __future__ import annotations

from pathlib import Path

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
from stages.tools.suites.published.files import collect_questions, parse_row, rows, text_of, without_blanks

QUESTION = "Describe the video in detail: what happens, in order, and what is seen and what it looks like."


class Row(PublishedRow):
    video: Words
    caption: Words
    events: list[Words] | None = None
    objects: list[Words] | None = None


def read(path: Path) -> Questions[Row]:
    some, no_event = without_blanks(rows(path, FILES), ("events",))
    whole, no_object = without_blanks(some, ("objects",))
    return collect_questions(
        whole, lambda raw: [_item(parse_row(Row, raw))], lambda raw: text_of(raw, "video"), [*no_event, *no_object]
    )


def _item(row: Row) -> Item[Row]:
    return Item(
        item_id=row.video,
        video=row.video,
        units=(row.video,),
        categories={},
        frames=CAPTION_FRAMES,
        part_s=None,
        options=(),
        truth=row.caption,
        row=row,
    )


def prompt(item: Item[Row], texts: PromptTexts) -> str:  # noqa: ARG001 - one signature for all
    return render_prompt(QUESTION, texts)


def _strict(item: Item[Row], reply: str, examiner: Examiner) -> Mark:
    return _mark(item.row, strict_caption(reply), examiner, 0.0)


def _compat(item: Item[Row], reply: str, examiner: Examiner) -> Mark:
    return _mark(item.row, reply, examiner, 1.0)


def _mark(row: Row, caption: str, examiner: Examiner, nothing: float) -> Mark:
    actions = recall_and_precision(
        caption, row.caption, row.events, examiner.extract_events, examiner.entailed, nothing
    )
    objects = recall_and_precision(caption, row.caption, row.objects, examiner.extract_objects, examiner.shows, nothing)
    if actions is None or objects is None:
        return Mark(None)
    return Mark(
        dict(
            zip(
                ("action recall", "action precision", "object recall", "object precision"),
                actions + objects,
                strict=True,
            )
        )
    )


FILES = ("metadata.json", "*care*bench*.json*")
BENCHMARK = Benchmark(
    name="carebench",
    record="field names: MCG-NJU/CaReBench at 03afdda and its code at f67d9aa; compat: that code, on this project's"
    " judge",
    files=FILES,
    read=read,
    prompt=prompt,
    measures=(
        Measure("action F1", ("action recall", "action precision"), 100),
        Measure("object F1", ("object recall", "object precision"), 100),
        Measure("action recall", ("action recall",), 100),
        Measure("action precision", ("action precision",), 100),
        Measure("object recall", ("object recall",), 100),
        Measure("object precision", ("object precision",), 100),
    ),
    by_judge=(
        JudgedScoring(
            "strict", "reasoning taken away; a description without an event or object has precision 0", _strict
        ),
        JudgedScoring("compat: CaReBench", "the reply as it is; without an event or object, precision 1", _compat),
    ),
)
