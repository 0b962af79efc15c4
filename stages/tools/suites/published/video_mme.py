"""Video-MME (arXiv 2405.21075): four options on videos of three lengths; accuracy, by length, kind
of task and domain.

Example row: ``{"video_id": "001", "duration": "short", "domain": "Knowledge", "sub_category":
"Humanity & History", "videoID": "fFjv93ACGo8", "question_id": "001-1", "task_type": "Counting
Problem", "question": "How many …?", "options": ["A. Two.", …], "answer": "B"}``; the id of a
prediction is ``question_id``.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from stages.domain.core.prompts import PromptTexts, render_prompt, render_question
from stages.tools.suites.published.benchmark import (
    QUESTION_FRAMES,
    Benchmark,
    Item,
    Mark,
    Measure,
    PublishedRow,
    Questions,
    Scoring,
    Words,
)
from stages.tools.suites.published.choices import (
    letter,
    lmms_eval_letter,
    lmms_eval_spoken,
    strict_choice,
    vlmevalkit_letter,
)
from stages.tools.suites.published.files import collect_questions, parse_row, rows, text_of

_LETTERS = "ABCD"


class Row(PublishedRow):
    videoID: Words
    question_id: Words
    duration: str
    domain: str
    task_type: str
    question: Words
    options: list[str] = Field(min_length=4, max_length=4)
    answer: str = Field(pattern=r"^[A-D]$")

    @field_validator("options")
    @classmethod
    def _are_lettered(cls, options: list[str]) -> list[str]:
        for i, option in enumerate(options):
            if not option.startswith(f"{letter(i)}.") or not option[2:].strip():
                raise ValueError(f"option {option!r} does not begin with {letter(i)}. as published")
        return options


def read(path: Path) -> Questions[Row]:
    return collect_questions(
        rows(path, FILES), lambda raw: [_item(parse_row(Row, raw))], lambda raw: text_of(raw, "question_id")
    )


def _item(row: Row) -> Item[Row]:
    return Item(
        item_id=row.question_id,
        video=row.videoID,
        units=(row.videoID,),
        categories={"duration": row.duration, "task": row.task_type, "domain": row.domain},
        frames=QUESTION_FRAMES,
        part_s=None,
        options=tuple(option[2:].strip() for option in row.options),
        truth=row.answer,
        row=row,
    )


def prompt(item: Item[Row], texts: PromptTexts) -> str:
    return render_prompt(render_question(item.row.question, item.options, texts), texts)


def _strict(item: Item[Row], reply: str) -> Mark:
    return Mark({"right": float(strict_choice(reply, item.options) == item.row.answer)})


def _lmms_eval(item: Item[Row], reply: str) -> Mark:
    return Mark({"right": float(lmms_eval_letter(lmms_eval_spoken(reply), _LETTERS) == item.row.answer)})


def _vlmevalkit(item: Item[Row], reply: str) -> Mark:
    # If there is no letter, the harness searches for lettered options inside the question, where
    # the annotations have none.
    return Mark({"right": float(vlmevalkit_letter(reply) == item.row.answer)})


FILES = ("test-*.parquet", "videomme*.parquet", "*video*mme*.json*")
BENCHMARK = Benchmark(
    name="video-mme",
    record="field names: lmms-lab/Video-MME at ead1408; compat: lmms-eval at 75571cf, VLMEvalKit at e8e78f0 (exact"
    " matching)",
    files=FILES,
    read=read,
    prompt=prompt,
    measures=(Measure("accuracy", ("right",), 100),),
    by_rule=(
        Scoring("strict", "one option, reasoning taken away; anything else is wrong", _strict),
        Scoring("compat: lmms-eval", "reasoning blocks taken away, the best-ranked letter A to D anywhere", _lmms_eval),
        Scoring("compat: VLMEvalKit", "the first letter A to D anywhere in the reply", _vlmevalkit),
    ),
)
