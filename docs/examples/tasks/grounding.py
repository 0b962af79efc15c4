"""When something happens: the reward is the intersection of the spans over their union.

Example: a white square is seen from second 0.5 to second 1.25. Question: "when is the white square
seen ?". Reference: "0.5 - 1.25"; several spans stand between commas. The row of the clip says
``"answers": {"grounding": {"question": "when is the white square seen ?", "spans": [[0.5,
1.25]]}}``, in seconds of the file, as all times of a row are. Without it, each event of the clip
whose caption is its only one gives a question.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

from pydantic import Field

from stages.domain.core.records import Clip, Record, Reject, Sample, Trace, folded
from stages.domain.core.replies import Reply
from stages.domain.tasks.rewards import Referee, RewardRules, TaskScore
from stages.domain.tasks.task import AnswerForm, BaseSettings, Context, Task, TaskSamples, answers_of, sample_of

NAME = "grounding"
Spans = list[tuple[float, float]]
_NUMBER = r"[0-9]{1,6}(?:\.[0-9]{1,3})?"
_SPAN = re.compile(rf"\s*({_NUMBER})\s*(?:-|to)\s*({_NUMBER})\s*")


class Asked(Record):
    """What a row says: ``answers.grounding``, one object or a list of them."""

    question: str = Field(min_length=1)
    spans: Spans = Field(min_length=1)


def read_spans(answer: str) -> Spans | None:
    """Read "0.5 - 1.25, 2 - 3"; None if it is anything else, or a span does not end after its
    start."""
    spans = []
    for text in answer.split(","):
        match = _SPAN.fullmatch(text)
        if match is None or float(match[1]) >= float(match[2]):
            return None
        spans.append((float(match[1]), float(match[2])))
    return spans


def overlap(ours: Spans, theirs: Spans) -> float:
    """Seconds in both, over seconds in one of them; spans of one side may overlap."""
    edges = sorted({edge for span in (*ours, *theirs) for edge in span})
    both = either = 0.0
    for start, stop in pairwise(edges):
        inside = [any(a <= start and stop <= b for a, b in spans) for spans in (ours, theirs)]
        both += (stop - start) * all(inside)
        either += (stop - start) * any(inside)
    return both / either


def asked_about(clip: Clip) -> list[Asked]:
    """Questions with spans in seconds of the clip."""
    begins, ends = clip.part_s
    if given := answers_of(clip, NAME, Asked):
        cut = [[(max(a, begins) - begins, min(b, ends) - begins) for a, b in one.spans] for one in given]
        return [Asked(question=one.question, spans=spans) for one, spans in zip(given, cut, strict=True)]
    told = Counter(folded(event.caption) for event in clip.events)
    once = [event for event in clip.events if told[folded(event.caption)] == 1]
    return [
        Asked(
            question=f'when does this happen: "{event.caption}" ?',
            spans=[(float(event.span.start / clip.rate), float(event.span.stop / clip.rate))],
        )
        for event in once
    ]


def make(clip: Clip, settings: BaseSettings, context: Context) -> TaskSamples:
    samples, rejects = [], []
    for place, one in enumerate(asked_about(clip)[: settings.per_clip]):
        answer = ", ".join(f"{round(a, 3):g} - {round(b, 3):g}" for a, b in one.spans)
        if read_spans(answer) is None:
            detail = f"answers.{NAME}.{place}.spans: {one.spans} s do not lie in the clip; correct them"
            rejects.append(Reject(item=clip.clip_id, reason="bad-spans", detail=detail))
            continue
        trace = Trace(thinking=f"it is seen {answer}", answer=answer)
        key = f"{clip.clip_id}/{place}"
        samples.append(sample_of(NAME, clip, key, context.sampled_frames, one.question, answer, trace))
    if not samples and not rejects:
        rejects.append(Reject(item=clip.clip_id, reason="no-times", detail=f"no answers.{NAME}, and no events"))
    return samples, rejects


def score(reply: Reply, sample: Sample, referee: Referee, rules: RewardRules) -> TaskScore:  # noqa: ARG001 - one signature for all tasks
    given, true = read_spans(reply.answer), read_spans(sample.reference)
    assert given is not None  # the form of the answer is checked first
    assert true is not None
    value = overlap(given, true)
    return TaskScore(value=value, maximum=1.0, parts={"iou": value}, reason=f"IoU {value:.2f}")


TASK = Task(
    name=NAME,
    title="finding when something happens",
    settings=BaseSettings,
    make=make,
    score=score,
    answer="value",
    all_or_nothing=False,
    judge_calls=lambda _: 0,
    answers=Asked,
    form=AnswerForm(read_spans, 'spans in seconds, such as "0.5 - 1.25"'),
)
