"""The reader of multiple choice: a golden file of answers, and properties for any text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.domain.core.records import Sample
from stages.domain.core.replies import render_reply
from stages.domain.tasks.choice import chosen_letter
from stages.domain.tasks.scoring import score_reply
from stages.domain.tasks.synthesis import synthesise
from stages.lib.judging.rule import RuleJudge
from stages.tools.suites.published.choices import strict_choice
from tests.support.builders import SETTINGS, clip, referee, rules
from tests.support.checkout import ROOT

#: ``options`` by name; ``rows`` of [name of the options, answer, the letter that a careful reader
#: chooses, or null].
BATTERY: dict[str, Any] = json.loads((ROOT / "tests/data/choices/battery.json").read_text(encoding="utf-8"))
REFEREE = referee(RuleJudge(full_share=0.8, partial_share=0.4))
SAMPLE: Sample = next(sample for _, samples, _ in synthesise([clip(0)], "mcqa", SETTINGS, 8, 7) for sample in samples)


def asked(options: tuple[str, ...], gold: str) -> Sample:
    return SAMPLE.model_copy(update={"options": options, "reference": gold})


def paid(answer: str, options: tuple[str, ...], gold: str) -> float | None:
    return score_reply(asked(options, gold), render_reply("the ball rolls", answer), REFEREE, rules()).value


@pytest.mark.parametrize("name", BATTERY["options"])
def test_reward_and_strict_read_the_battery_alike(name: str) -> None:
    options = tuple(BATTERY["options"][name])
    rows = [(answer, chosen) for group, answer, chosen in BATTERY["rows"] if group == name]
    assert len(rows) > 5
    unlike = []
    for answer, chosen in rows:
        strict = [
            strict_choice(reply, options)
            for reply in (answer, f"<think>A or B</think>{answer}", render_reply("x", answer))
        ]
        rewards = [paid(answer, options, gold) for gold in "ABCDEFGHI"[: len(options)]]
        wanted = [float(gold == chosen) for gold in "ABCDEFGHI"[: len(options)]]
        if set(strict) != {chosen} or (rewards != wanted):
            unlike.append((answer, chosen, strict, rewards))
    assert unlike == []


def test_the_battery_tells_readers_apart() -> None:
    """Rows of both kinds for most options: neither "always the first letter" nor "only a bare
    letter" passes."""
    chosen = [row[2] for row in BATTERY["rows"]]
    assert len(chosen) > 700
    assert 0.3 < sum(letter is None for letter in chosen) / len(chosen) < 0.7


OPTIONS = st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=26).map(tuple)
PIECES = (
    *"ABCa().:,- \n1$\"'?", "or", "and", "not", "no", "actually", "because", "the answer is", "Answer:", "It moves"
    " left",
    "It moves right", "\\boxed{", "}", "**", "答案", "是", "<think>", "</answer>",
)  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join),
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
)
MOVES = ("It moves right", "It moves left", "It stays", "A ball")


@given(OPTIONS, st.data())
def test_the_letter_itself_scores_the_maximum_whatever_the_options_say(
    options: tuple[str, ...], data: st.DataObject
) -> None:
    gold = data.draw(st.sampled_from([chr(ord("A") + n) for n in range(len(options))]))
    assert paid(gold, options, gold) == 1.0
    assert strict_choice(gold, options) == gold


@given(TEXTS)
def test_any_answer_chooses_at_most_one_option_and_always_the_same(answer: str) -> None:
    chosen = chosen_letter(answer, MOVES)
    assert chosen in (None, "A", "B", "C", "D")
    assert chosen_letter(answer, MOVES) == chosen
    rewards = [paid(answer, MOVES, gold) for gold in "ABCD"]
    assert set(rewards) <= {0.0, 1.0}
    assert sum(value or 0.0 for value in rewards) <= 1


@given(TEXTS)
def test_what_is_paid_is_right_strictly_and_the_other_way_round(answer: str) -> None:
    reply = render_reply("the ball rolls", answer)
    for gold in "ABCD":
        score = score_reply(asked(MOVES, gold), reply, REFEREE, rules())
        if score.format_ok:
            assert (score.value == 1.0) == (strict_choice(reply, MOVES) == gold)
        else:
            assert score.value == 0.0


@given(
    st.sampled_from("ABCD"),
    st.sampled_from("ABCD"),
    st.sampled_from([" ", ", ", ". ", "/", " or ", " and ", "\n", ") ", ": ", " - "]),
)
def test_two_letters_are_no_choice(one: str, other: str, between: str) -> None:
    if one != other:
        assert chosen_letter(f"{one}{between}{other}", (*MOVES[:3], "It jumps")) is None
        assert chosen_letter(f"The answer is {one}{between}{other}.", (*MOVES[:3], "It jumps")) is None


def test_a_long_answer_is_read_in_time() -> None:
    """No pattern backtracks catastrophically: each of these texts once took minutes."""
    for piece in ("so ", "option ", "\n so", "It moves left ", "\\text{", " ", "\nanswer: B "):
        assert chosen_letter(piece * (100_000 // len(piece)), MOVES) in (None, "B")
