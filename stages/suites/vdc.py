"""VDC, Video Detailed Captions (arXiv 2410.03051): five kinds of captions; questions are answered from the caption alone, and the
answers are judged yes or no and from 0 to 5.

Example row of ``VDCScore_qa/camera.jsonl``: ``{"-0mW3q1h5Zg": [{"question": "What is the angle?", "answer": "Eye level"}]}``; read
too is a row of the public harness, ``{"video_name": "…", "caption": "…", "qa_list": […]}``. The kind is the file's name; the id
of a prediction is ``camera/VIDEO``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from stages.domain.examiner import Examiner
from stages.domain.prompts import PromptTexts, render_prompt
from stages.domain.records import Verdict
from stages.suites.benchmark import (
    CAPTION_FRAMES,
    AnnotationError,
    Benchmark,
    Item,
    Mark,
    Measure,
    PublishedRow,
    Scoring,
)
from stages.suites.captions import strict_caption
from stages.suites.choices import lmms_eval_spoken
from stages.suites.files import Raw, rows, typed, unique

#: What a model is asked for, by kind.
QUESTIONS = {
    "short": "Tell in one sentence what the video shows.",
    "detailed": "Describe the video in detail.",
    "main_object": "Describe the main subject of the video: what it looks like, where it is, what it does and how it moves.",
    "background": "Describe the background of the video: objects, place, weather and time.",
    "camera": "Describe the work of the camera in the video: shots, angles and movements.",
}


class Pair(PublishedRow):
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)


class Row(PublishedRow):
    video_name: str = Field(min_length=1)
    #: Not in ``VDCScore_qa``; nothing is scored by it.
    caption: str | None = None
    qa_list: Annotated[list[Pair], Field(min_length=1)]


def read(path: Path) -> list[Item[Row]]:
    return unique(item for raw in rows(path, FILES) for item in _items(raw))


def _items(raw: Raw) -> Iterator[Item[Row]]:
    kind = next((kind for kind in QUESTIONS if kind in raw.stem), None)
    for value in _values(raw):
        row = typed(Row, raw._replace(value=value))
        if kind is None:
            raise AnnotationError(
                f"annotations: {raw.where}: the file's name tells no kind of caption; call it one of {', '.join(QUESTIONS)}, as"
                f" published"
            )
        yield Item(
            item_id=f"{kind}/{row.video_name}",
            video=row.video_name,
            categories={"kind": kind},
            frames=CAPTION_FRAMES,
            part_s=None,
            options=(),
            truth=row.caption or " ".join(pair.answer for pair in row.qa_list),
            row=row,
        )


def _values(raw: Raw) -> list[object]:
    """A row of the harness as it is; each entry of a published line, which may hold several videos, as such a row."""
    value = raw.value
    published = isinstance(value, dict) and value and all(isinstance(pairs, list) for pairs in value.values())
    return [{"video_name": name, "qa_list": pairs} for name, pairs in value.items()] if published else [value]


def prompt(item: Item[Row], texts: PromptTexts) -> str:
    return render_prompt(QUESTIONS[item.categories["kind"]], "caption", texts)


def _strict(item: Item[Row], reply: str, examiner: Examiner) -> Mark:
    return _mark(item.row, strict_caption(reply), examiner)


def _compat(item: Item[Row], reply: str, examiner: Examiner) -> Mark:
    return _mark(item.row, lmms_eval_spoken(reply), examiner)


def _mark(row: Row, caption: str, examiner: Examiner) -> Mark:
    right, marks = 0, 0
    for pair in row.qa_list if caption.strip() else ():
        answer = examiner.answer_from(pair.question, caption)
        if isinstance(answer, Verdict):
            return Mark(None)
        if answer:
            found = examiner.agrees(pair.question, pair.answer, answer)
            if isinstance(found, Verdict):
                return Mark(None)
            right, marks = right + found.right, marks + found.marks
    return Mark({"right": right / len(row.qa_list), "marks": marks / len(row.qa_list)})


FILES = ("VDCScore_qa/*.jsonl", "*.jsonl", "*.parquet")
BENCHMARK = Benchmark(
    name="vdc",
    record="field names: wchai/Video-Detailed-Caption at dc19e7e, lmms-eval at 75571cf; compat: lmms-eval, on this project's judge",
    files=FILES,
    read=read,
    prompt=prompt,
    measures=(Measure("accuracy", ("right",), 100), Measure("score", ("marks",), 1)),
    scorings=(
        Scoring("strict", "reasoning taken away; a question that the caption does not answer is wrong", _strict),
        Scoring("compat: lmms-eval", "complete reasoning blocks taken away; whatever else is there is the caption", _compat),
    ),
    judged=True,
)
