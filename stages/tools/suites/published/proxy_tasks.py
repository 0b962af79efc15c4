"""DarkEventInfer-Test and MixVidQA-Test: their annotations are this project's own samples,
``data/samples/test/TASK.jsonl``.

DarkEventInfer-Test: infer the event where the video is black; the judge scores 2, 1 or 0 (SPEC 1).
MixVidQA-Test: a question about one of two interleaved videos; the judge scores right (1) or wrong
(0). The mean of the judge's score x 100 is reported, as in the paper: at most 200 and 100.

Examples: see :mod:`stages.domain.tasks.dark_event_infer` and :mod:`stages.domain.tasks.mix_vid_qa`;
the id of a prediction is ``sample_id``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from stages.domain.core.prompts import PromptTexts, sample_prompt
from stages.domain.core.records import Sample, TaskName, Verdict
from stages.domain.core.replies import final_answer
from stages.domain.statistics.metrics import recordings_of
from stages.tools.suites.asked_of_judges import Examiner
from stages.tools.suites.published.benchmark import (
    AnnotationError,
    Benchmark,
    FrameProtocol,
    Item,
    JudgedScoring,
    Mark,
    Measure,
    Questions,
)
from stages.tools.suites.published.files import Raw, collect_questions, display_value, parse_row, rows, text_of
from stages.tools.suites.released import released_answer

#: A judge's verdict on an answer to a sample.
Says = Callable[[Examiner, Sample, str], Verdict]
Reads = Callable[[str], str | None]


def _benchmark(name: str, task: TaskName, says: Says, most: float) -> Benchmark[Sample]:
    """Define the benchmark of one proxy task. ``most``: the judge's best score."""
    files = (f"test/{task}.jsonl", f"{task}.jsonl")
    return Benchmark(
        name=name,
        record="this project's held-out samples (stages/domain/core/records.py, Sample); compat: the released code of"
        " VidBridge-R1",
        files=files,
        read=partial(_read, files=files, task=task),
        prompt=_prompt,
        measures=(Measure("mean judge score x 100", ("native",), 100, most),),
        by_judge=(
            JudgedScoring(
                "strict",
                "reasoning taken away; an empty or unreadable reply is 0",
                partial(_mark, reads=final_answer, says=says),
            ),
            JudgedScoring(
                "compat: VidBridge-R1",
                "think and answer blocks at the beginning, whatever follows; else 0",
                partial(_mark, reads=released_answer, says=says),
            ),
        ),
    )


def _read(path: Path, files: tuple[str, ...], task: TaskName) -> Questions[Sample]:
    def items_of(raw: Raw) -> list[Item[Sample]]:
        sample = parse_row(Sample, raw)
        if (sample.task, sample.split) != (task, "test"):
            raise AnnotationError(
                "annotations",
                f"{raw.where}: task {display_value(sample.task)}, split {display_value(sample.split)}:"
                f" needs {task!r} of split 'test'",
                f"pass data/samples/test/{task}.jsonl",
            )
        return [
            Item(
                item_id=sample.sample_id,
                video=sample.clip_id,
                units=recordings_of(sample),
                categories={},
                frames=FrameProtocol(fps=None, frames=sample.sampled_frames),
                part_s=None,
                options=(),
                truth=sample.reference,
                row=sample,
            )
        ]

    return collect_questions(rows(path, files), items_of, lambda raw: text_of(raw, "sample_id"))


def _prompt(item: Item[Sample], texts: PromptTexts) -> str:
    return sample_prompt(item.row, texts)


def _mark(item: Item[Sample], reply: str, examiner: Examiner, reads: Reads, says: Says) -> Mark:
    answer = reads(reply)
    if not answer:
        return Mark({"native": 0.0})
    verdict = says(examiner, item.row, answer)
    return Mark(None if verdict.score is None else {"native": verdict.score})


DARK_EVENT_INFER = _benchmark(
    "dark-event-infer-test", "dark_event_infer", lambda judge, sample, answer: judge.covers(sample, answer), most=2.0
)
MIX_VID_QA = _benchmark(
    "mix-vid-qa-test", "mix_vid_qa", lambda judge, sample, answer: judge.right(sample, answer), most=1.0
)
