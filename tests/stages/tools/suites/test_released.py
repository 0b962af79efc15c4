"""The released code's parsing: its gaps are pinned, and it equals ours where a reply is
unambiguous."""

from __future__ import annotations

import pytest
from hypothesis import given

from stages.domain.core.replies import render_reply
from stages.domain.tasks import TASK_NAMES
from stages.domain.tasks.scoring import score_reply
from stages.tools.suites.released import released_letter, same_mathematics, score_as_released
from tests.support.builders import REFEREE, SAMPLES, rules, truth
from tests.support.texts import TEXTS

PAPER = rules(scoring="paper")


def released(task: str, reply: str) -> float:
    score = score_as_released(SAMPLES[task], reply, REFEREE, PAPER)
    assert score.value is not None
    return score.value


@pytest.mark.parametrize("task", TASK_NAMES)
def test_the_plain_truth_scores_as_published(task: str) -> None:
    published = score_reply(SAMPLES[task], truth(SAMPLES[task]), REFEREE, PAPER)
    assert released(task, truth(SAMPLES[task])) == published.value


@pytest.mark.parametrize("task", TASK_NAMES)
@given(answer=TEXTS)
def test_any_reply_has_a_score_of_at_most_one(task: str, answer: str) -> None:
    score = score_as_released(SAMPLES[task], render_reply("x", answer), REFEREE, PAPER)
    assert score.value is not None
    assert score.value <= 1.0


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("B", "B"), ("Because", "B"), ("C or B", "B"), ("Apple", "A"), ("it is so", None), ("H", None)],
)
def test_the_first_letter_in_the_alphabet_counts(answer: str, letter: str | None) -> None:
    assert released_letter(answer) == letter


def test_what_passes_there_and_not_here() -> None:
    assert SAMPLES["mcqa"].reference == "B"
    for reply in (render_reply("x", "B") + " I am sure.", render_reply("x", "Because"), render_reply("x", "C or B")):
        assert released("mcqa", reply) == 1.0
        assert score_reply(SAMPLES["mcqa"], reply, REFEREE, PAPER).value == 0.0
    assert released("mcqa", "so " + render_reply("x", "B")) == 0.0, "the check is anchored at the start"
    empty = score_as_released(SAMPLES["caption"], render_reply("x", "the red bar"), REFEREE, PAPER)
    assert empty.parts["native"] == pytest.approx(0.5), "a caption without an event has precision 1"


def test_mathematics_is_asked_first() -> None:
    sample = SAMPLES["mcqa"].model_copy(update={"reference": "0.5"})
    assert score_as_released(sample, render_reply("x", "$\\frac{1}{2}$"), REFEREE, PAPER).value == 1.0
    assert not same_mathematics("B", "B"), "a bare letter is no expression to it"
