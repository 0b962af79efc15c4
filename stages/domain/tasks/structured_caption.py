"""Structured captioning (VideoCap-R1): the thinking analyses subjects, attributes and actions as
JSON; then comes the caption.

Example thinking:
``{"subjects":[{"name":"bar","attributes":["red"],"actions":["rises","grows"]}]}``. Score: T (the
analysis, no judge needed) + E (event coverage of the caption) or CN (its completeness and
naturalness), unweighted, after SPEC 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from stages.domain.core.records import Clip, Reject, Sample, Subject, Trace, Verdict
from stages.domain.core.replies import Reply, parse_analysis, render_analysis
from stages.domain.tasks.caption import MAX_EVENTS, event_recall
from stages.domain.tasks.qa_utility import MOST_CALLS, qa_utility
from stages.domain.tasks.rewards import Embedder, Judge, Referee, RewardRules, TaskScore, coverage_step, f1, unavailable
from stages.domain.tasks.task import BaseSettings, Context, Part, Task, TaskSamples, TraceBrief, sample_of

NAME = "structured_caption"
QUESTION = "list the subjects , then describe the video ."
#: T and E, or T and CN: 1 each. As published the format counts 1 beside them; here it is a gate.
MAXIMUM, PAPER_MAXIMUM = 2.0, 3.0


class Settings(BaseSettings):
    per_clip: Literal[1]


def make(clip: Clip, settings: Settings, context: Context) -> TaskSamples:  # noqa: ARG001 - one signature for all tasks
    missing = [name for name, value in (("caption", clip.caption), ("subjects", clip.subjects)) if not value]
    if missing or not clip.caption:
        return [], [
            Reject(item=clip.clip_id, reason="no-analysis", detail=f"the annotation lacks {' and '.join(missing)}")
        ]
    first = clip.events[0].caption if len(clip.events) > 1 else None
    trace = Trace(thinking=render_analysis(clip.subjects), answer=clip.caption, careless_answer=first)
    events, frames = tuple(event.caption for event in clip.events)[:MAX_EVENTS], context.sampled_frames
    sample = sample_of(
        NAME, clip, clip.clip_id, frames, QUESTION, clip.caption, trace, events=events, subjects=clip.subjects
    )
    return [sample.model_copy(update={"qa_pairs": clip.open_questions})], []


def assign(
    predicted: Sequence[str], reference: Sequence[str], embedder: Embedder, threshold: float
) -> list[tuple[int, int, float]]:
    """Match one to one for the greatest total similarity: (predicted, reference, similarity); pairs
    below the threshold are dropped."""
    if not predicted or not reference:
        return []
    # Imported here: it takes a second, which loading parameters should not pay.
    from scipy.optimize import linear_sum_assignment

    table = embedder.similarities(predicted, reference)
    rows, columns = linear_sum_assignment(-table)
    return [
        (int(i), int(j), float(table[i, j])) for i, j in zip(rows, columns, strict=True) if table[i, j] >= threshold
    ]


def thinking_score(
    predicted: Sequence[Subject], reference: Sequence[Subject], embedder: Embedder, threshold: float
) -> dict[str, float]:
    """Compute the T-score: mean of attribute F1 and action F1 over subjects matched one to one by
    name.

    The phrases of unmatched subjects stay in the counts, as false positives or negatives.
    """

    def side(phrases: Callable[[Subject], Sequence[str]]) -> float:
        matched = sum(
            weight
            for i, j, _ in pairs
            for _, _, weight in assign(phrases(predicted[i]), phrases(reference[j]), embedder, threshold)
        )
        return f1(matched, sum(len(phrases(s)) for s in predicted), sum(len(phrases(s)) for s in reference))

    pairs = assign([s.name for s in predicted], [s.name for s in reference], embedder, threshold)
    attribute_f1, action_f1 = side(lambda s: s.attributes), side(lambda s: s.actions)
    if not pairs:
        attribute_f1 = action_f1 = 0.0
    return {"attribute_f1": attribute_f1, "action_f1": action_f1, "thinking": (attribute_f1 + action_f1) / 2}


def score(reply: Reply, sample: Sample, referee: Referee, rules: RewardRules) -> TaskScore | None:
    """Score T + E, or T + CN; None if the thinking is not such JSON, which fails the format gate.
    ``paper`` adds 1 for the format."""
    analysis = parse_analysis(reply.thinking)
    if analysis is None:
        return None
    maximum = PAPER_MAXIMUM if rules.scoring == "paper" else MAXIMUM
    caption = caption_score(sample, reply.answer, referee.judge, rules)
    if isinstance(caption, Verdict):
        return unavailable(caption, maximum)
    parts = {**thinking_score(analysis.subjects, sample.subjects, referee.embedder, rules.match_threshold), **caption}
    total = parts["thinking"] + parts["caption"] + (maximum - MAXIMUM)
    return TaskScore(
        value=total, maximum=maximum, parts=parts, reason=f"T {parts['thinking']:.2f} caption {parts['caption']:.2f}"
    )


def caption_score(sample: Sample, caption: str, judge: Judge, rules: RewardRules) -> dict[str, float] | Verdict:
    """Compute ``caption`` in [0, 1], the E-score, the CN-score or the utility for answering
    questions, and its parts; a verdict if the judge did not score.

    ``paper``: CN is the mean of completeness and naturalness. ``hardened``: naturalness is
    multiplied by completeness, otherwise any fluent caption of another video would earn half.
    """
    if rules.caption_scorer == "coverage":
        recall = event_recall(sample, caption, judge)
        if isinstance(recall, Verdict):
            return recall
        return {"recall": recall, "caption": coverage_step(recall, rules)}
    if rules.caption_scorer == "qa_utility":
        utility = qa_utility(sample, caption, judge)
        return utility if isinstance(utility, Verdict) else {"caption": utility.share, **utility.parts}
    complete, natural = judge.complete(sample, caption), judge.natural(sample, caption)
    for verdict in (complete, natural):
        if verdict.score is None:
            return verdict
    assert complete.score is not None
    assert natural.score is not None
    naturalness = natural.score * complete.score if rules.scoring == "hardened" else natural.score
    return {"completeness": complete.score, "naturalness": natural.score, "caption": (complete.score + naturalness) / 2}


TASK = Task(
    name=NAME,
    title="structured captions",
    settings=Settings,
    make=make,
    score=score,
    answer="caption",
    all_or_nothing=False,
    judge_calls=lambda rules: {"coverage": 1 + MAX_EVENTS, "completeness_naturalness": 2, "qa_utility": MOST_CALLS}[
        rules.caption_scorer
    ],
    parts=(Part("thinking", title="the analysis (T-score)"), Part("caption", title="the caption (E-score)")),
    analysed=True,
    trace=TraceBrief(
        name="write_analysis",
        situation=(
            "The viewer first lists the subjects and then describes the video. For each subject give the noun that"
            " names it, what it looks like, and what it does, in order; then the description: every event, in order."
        ),
        answer=" Claim nothing that `seen` does not bear out.",
    ),
)
