"""VDC, Video Detailed Captions (arXiv 2410.03051): five kinds of captions; questions are answered
from the caption alone, and the answers are judged yes or no and from 0 to 5.

Example row of ``VDCScore_qa/camera.jsonl``: ``{"-0mW3q1h5Zg": [{"question": "What is the angle?",
"answer": "Eye level"}]}``; rows of the public harness, ``{"video_name": "…", "caption": "…",
"qa_list": […]}``, are also read. The kind is the file's name; the id of a prediction is
``camera/VIDEO``.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from stages.domain.core.prompts import PromptTexts, render_prompt
from stages.domain.core.records import Verdict
from stages.tools.suites.asked_of_judges import Examiner
from stages.tools.suites.published.benchmark import (
    CAPTION_FRAMES,
    AnnotationError,
    Benchmark,
    Item,
    JudgedScoring,
    Mark,
    Measure,
    PublishedRow,
    Questions,
    Words,
)
from stages.tools.suites.published.captions import strict_caption
from stages.tools.suites.published.choices import lmms_eval_spoken
from stages.tools.suites.published.files import Raw, collect_questions, parse_row, rows, text_of, without_blanks

#: Prompts by kind.
QUESTIONS = {
    "short": "Tell in one sentence what the video shows.",
    "detailed": "Describe the video in detail.",
    "main_object": "Describe the main subject of the video: what it looks like, where it is, what it does and how it"
    " moves.",
    "background": "Describe the background of the video: objects, place, weather and time.",
    "camera": "Describe the work of the camera in the video: shots, angles and movements.",
}


class Pair(PublishedRow):
    question: Words
    answer: Words


class Row(PublishedRow):
    video_name: Words
    #: Not in ``VDCScore_qa``, and not used for scoring.
    caption: str | None = None
    qa_list: list[Pair] = Field(min_length=1)


def read(path: Path) -> Questions[Row]:
    whole, empty = without_blanks(
        [each for raw in rows(path, FILES) for each in _videos(raw)], ("qa_list",), fields=("question", "answer")
    )
    return collect_questions(whole, lambda raw: [_item(raw)], _id, empty)


def _item(raw: Raw) -> Item[Row]:
    row, kind = parse_row(Row, raw), _kind(raw)
    if kind is None:
        raise AnnotationError(
            "annotations",
            f"{raw.where}: the file's name does not name a kind of caption",
            f"call it one of {', '.join(QUESTIONS)}, as published",
        )
    return Item(
        item_id=f"{kind}/{row.video_name}",
        video=row.video_name,
        units=(row.video_name,),
        categories={"kind": kind},
        frames=CAPTION_FRAMES,
        part_s=None,
        options=(),
        truth=row.caption or " ".join(pair.answer for pair in row.qa_list),
        row=row,
    )


def _kind(raw: Raw) -> str | None:
    return next((kind for kind in QUESTIONS if kind in raw.stem), None)


def _id(raw: Raw) -> str | None:
    name = text_of(raw, "video_name")
    return None if name is None else f"{_kind(raw)}/{name}"


def _videos(raw: Raw) -> list[Raw]:
    """Rows in the harness's form: such a row unchanged, and one for each video of a published line,
    which may hold several."""
    value = raw.value
    if not (isinstance(value, dict) and value and all(isinstance(pairs, list) for pairs in value.values())):
        return [raw]
    return [raw._replace(value={"video_name": name, "qa_list": pairs}) for name, pairs in value.items()]


def prompt(item: Item[Row], texts: PromptTexts) -> str:
    return render_prompt(QUESTIONS[item.categories["kind"]], texts)


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
            verdict = examiner.agrees(pair.question, pair.answer, answer)
            if isinstance(verdict, Verdict):
                return Mark(None)
            right, marks = right + verdict.right, marks + verdict.marks
    return Mark({"right": right / len(row.qa_list), "marks": marks / len(row.qa_list)})


FILES = ("VDCScore_qa/*.jsonl", "*.jsonl", "*.parquet")
BENCHMARK = Benchmark(
    name="vdc",
    record="field names: wchai/Video-Detailed-Caption at dc19e7e, lmms-eval at 75571cf; compat: lmms-eval, on this"
    " project's judge",
    files=FILES,
    read=read,
    prompt=prompt,
    measures=(Measure("accuracy", ("right",), 100), Measure("score", ("marks",), 1, 5)),
    by_judge=(
        JudgedScoring("strict", "reasoning taken away; a question that the caption does not answer is wrong", _strict),
        JudgedScoring(
            "compat: lmms-eval", "complete reasoning blocks taken away; whatever else is there is the caption", _compat
        ),
    ),
)
