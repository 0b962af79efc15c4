"""Reading a text in the picture: the reward falls with the edits that the answer needs.

Example: "47" is drawn above the bars. Question: "what is written ?". Reference: "47"; the answer
"41" needs one edit of two letters and earns 0.5. The row of the clip says ``"answers": {"ocr":
{"text": "47"}}``.
"""

from __future__ import annotations

from pydantic import Field

from stages.domain.core.records import Clip, Record, Reject, Sample, Trace, folded
from stages.domain.core.replies import Reply
from stages.domain.tasks.rewards import Referee, RewardRules, TaskScore
from stages.domain.tasks.task import BaseSettings, Context, Task, TaskSamples, answers_of, sample_of

NAME = "ocr"


class Written(Record):
    """What a row says: ``answers.ocr``, one object or a list of them."""

    text: str = Field(min_length=1, max_length=200)
    question: str = "what is written ?"


def edits(ours: str, theirs: str) -> int:
    """Levenshtein distance: insertions, deletions and replacements of letters."""
    row = list(range(len(theirs) + 1))
    for i, a in enumerate(ours, 1):
        before, row = row, [i]
        for j, b in enumerate(theirs, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b)))
    return row[-1]


def make(clip: Clip, settings: BaseSettings, context: Context) -> TaskSamples:
    written = answers_of(clip, NAME, Written)
    if not written:
        return [], [Reject(item=clip.clip_id, reason="no-text", detail="the row has no answers.ocr")]
    return [
        sample_of(
            NAME,
            clip,
            f"{clip.clip_id}/{place}",
            context.sampled_frames,
            one.question,
            one.text,
            Trace(thinking=f"it says {one.text}", answer=one.text),
        )
        for place, one in enumerate(written[: settings.per_clip])
    ], []


def score(reply: Reply, sample: Sample, referee: Referee, rules: RewardRules) -> TaskScore:  # noqa: ARG001 - one signature for all tasks
    true = folded(sample.reference)
    # More than twice as long earns nothing whatever it says, and long answers cost time.
    given = folded(reply.answer)[: 2 * len(true) + 1]
    needed = edits(given, true)
    value = max(0.0, 1 - needed / len(true))
    return TaskScore(value=value, maximum=1.0, parts={"letters": value}, reason=f"{needed} edits of {len(true)}")


TASK = Task(
    name=NAME,
    title="reading",
    settings=BaseSettings,
    make=make,
    score=score,
    answer="value",
    all_or_nothing=False,
    judge_calls=lambda _: 0,
    answers=Written,
)
