"""What DarkEventInfer-Test and MixVidQA-Test share: their annotations are this project's own samples,
``data/samples/test/TASK.jsonl``.

The mean of the judge's score x 100 is reported, as the paper does (SPEC 1): of at most 200 and 100.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from stages.domain.core.prompts import PromptTexts, sample_prompt
from stages.domain.core.records import Sample, TaskName, Verdict
from stages.domain.core.replies import final_answer
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
from stages.tools.suites.published.files import Raw, gathered, rows, shown, text_of, typed
from stages.tools.suites.released import released_answer

#: What a judge says of an answer to a sample.
Says = Callable[[Examiner, Sample, str], Verdict]
Reads = Callable[[str], str | None]


def benchmark(name: str, task: TaskName, says: Says, most: float) -> Benchmark[Sample]:
    """The benchmark of one proxy task. ``most``: the judge's best score."""
    files = (f"test/{task}.jsonl", f"{task}.jsonl")
    return Benchmark(
        name=name,
        record="this project's held-out samples (stages/domain/core/records.py, Sample); compat: the released code of VidBridge-R1",
        files=files,
        read=partial(_read, files=files, task=task),
        prompt=_prompt,
        measures=(Measure("mean judge score x 100", ("native",), 100, most),),
        by_judge=(
            JudgedScoring(
                "strict", "reasoning taken away; an empty or unreadable reply is 0", partial(_mark, reads=final_answer, says=says)
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
        sample = typed(Sample, raw)
        if (sample.task, sample.split) != (task, "test"):
            raise AnnotationError(
                f"annotations: {raw.where}: task {shown(sample.task)}, split {shown(sample.split)}: needs {task!r} of split"
                f" 'test'; give data/samples/test/{task}.jsonl"
            )
        return [
            Item(
                item_id=sample.sample_id,
                video=sample.clip_id,
                units=sample.timeline.clip_ids,
                categories={},
                frames=FrameProtocol(fps=None, frames=sample.sampled_frames),
                part_s=None,
                options=(),
                truth=sample.reference,
                row=sample,
            )
        ]

    return gathered(rows(path, files), items_of, lambda raw: text_of(raw, "sample_id"))


def _prompt(item: Item[Sample], texts: PromptTexts) -> str:
    return sample_prompt(item.row, texts)


def _mark(item: Item[Sample], reply: str, examiner: Examiner, reads: Reads, says: Says) -> Mark:
    answer = reads(reply)
    if not answer:
        return Mark({"native": 0.0})
    verdict = says(examiner, item.row, answer)
    return Mark(None if verdict.score is None else {"native": verdict.score})
