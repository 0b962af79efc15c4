"""Rules by which a difficulty row keeps samples, over the scores of their rollouts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.domain.core.records import Sample, TaskName
from stages.domain.rl.difficulty import DropRules, Rolled, Verdict, counts, judged
from stages.domain.tasks import TASK_NAMES, caption
from stages.domain.tasks.partners import ring_of
from stages.domain.tasks.task import Context
from tests.support.builders import clip

RULES = DropRules(drop_always_right=True, min_spread=0.1)


def sample(task: TaskName = "mcqa") -> Sample:
    (made,), _ = caption.make(clip(), caption.Settings(per_clip=1), Context(8, 0, ring_of(())))
    return made.model_copy(update={"task": task, "sample_id": f"{task}/c0"})


@pytest.mark.parametrize(
    ("task", "scores", "verdict"),
    [
        ("mcqa", (1.0, 1.0, 1.0), "always-right"),
        ("mcqa", (1.0, 0.0, 1.0), "kept"),
        ("mix_vid_qa", (0.0, 0.0, 0.0), "kept"),
        ("dark_event_infer", (0.5, 0.5, 0.5), "kept"),
        ("dark_event_infer", (1.0, 1.0, 1.0), "always-right"),
        ("caption", (0.4, 0.4, 0.4), "never-moves"),
        ("caption", (1.0, 1.0, 1.0), "never-moves"),
        ("caption", (0.0, 0.2), "kept"),  # a spread of 0.1 of the population is not below 0.1
        ("structured_caption", (0.5, 0.6, 0.5), "never-moves"),
        ("structured_caption", (0.2, 0.9, 0.5), "kept"),
        # A failed judge never drops a sample.
        ("mcqa", (1.0, None, 1.0), "not-judged"),
        ("caption", (None, None, None), "not-judged"),
        ("caption", (0.4, 0.4, None), "not-judged"),
    ],
)
def test_what_is_always_right_or_never_moves_goes(
    task: TaskName, scores: tuple[float | None, ...], verdict: Verdict
) -> None:
    row = judged(sample(task), scores, RULES)
    assert (row.sample_id, row.task, row.scores, row.verdict) == (f"{task}/c0", task, scores, verdict)
    assert row.kept == (verdict in ("kept", "not-judged"))
    assert Rolled.model_validate_json(row.model_dump_json(exclude_none=True)) == row


def test_rules_can_be_switched_off() -> None:
    rules = DropRules(drop_always_right=False, min_spread=0.0)
    assert judged(sample("mcqa"), (1.0, 1.0), rules).kept
    assert judged(sample("caption"), (0.5, 0.5), rules).kept


SCORES = st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1)), min_size=1, max_size=6)


@given(st.lists(st.tuples(st.sampled_from(TASK_NAMES), SCORES), max_size=30))
def test_every_sample_is_counted_once(drawn: list[tuple[TaskName, list[float | None]]]) -> None:
    rolled = [judged(sample(task), scores, RULES) for task, scores in drawn]
    found = counts(rolled)
    assert sum(count.rolled_out for count in found.values()) == len(rolled)
    assert sum(count.kept for count in found.values()) == sum(row.kept for row in rolled)
    for count in found.values():
        assert count.rolled_out == count.kept + count.always_right + count.never_moves
        assert count.not_judged <= count.kept
