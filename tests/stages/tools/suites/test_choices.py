"""The option that a reply names: strictly, and as public harnesses read it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.crosscheck import SUBJECTS
from stages.domain.core.replies import final_answer
from stages.tools.suites.published.choices import (
    lmms_eval_letter,
    lmms_eval_spoken,
    strict_choice,
    vlmevalkit_letter,
    vlmevalkit_right,
)
from tests.support.checkout import ROOT

RECORDS = ROOT / "tests/data/crosscheck"
OPTIONS = ("Apples.", "Candles", "Berries", "A dog")


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_compat_says_what_the_harness_said(subject) -> None:  # type: ignore[no-untyped-def]
    """The outcomes were recorded from the harness's own function, at the revision in the file (make
    crosscheck)."""
    file = RECORDS / f"{subject.name.split(':')[0].replace(', ', '_').lower()}.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["function"] == subject.name
    assert len(record["rows"]) >= 100
    unlike = [row for *row, outcome in record["rows"] if subject.ours(row[0], tuple(row[1]), row[2]) != outcome]
    assert unlike == []
    assert len({str(outcome) for *_, outcome in record["rows"]}) > 1, "it tells replies apart"


@pytest.mark.parametrize(
    ("reply", "chosen"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("B. Candles", "B"),
        ("**B**", "B"),
        ("candles.", "B"),
        ("The best answer is B.", "B"),
        ("Final answer: (B)", "B"),
        ("So the correct option is: **B**", "B"),
        ("A dog", "D"),
        ("<think>A or C, surely not D</think><answer>B</answer>", "B"),
        ("<think>A</think>\n\nB", "B"),
        ("", None),
        ("   ", None),
        ("A or B", None),
        ("AB", None),
        ("E", None),
        ("Because it burns", None),
        ("A man lights it", None),
        ("I cannot tell", None),
        ("B. Berries", None),  # contradicts itself
        ("<think>B", None),  # cut off while thinking
        ("<think>B</think>", None),
        ("<think>x</think><answer></answer>", None),
        ("<think>x</think><answer>A</answer><answer>B</answer>", None),
        ("<think>x</think><answer>B</answer> and more", None),
        ("<answer>B", None),
        ("<think>x</think></think>B", None),
        ("x<think>y</think>B", None),
        # The template opened the block, or the model was trained on other tags, or on none.
        ("I count them.\n</think>\n\nB", "B"),
        ("I count them.\n</think>\n\n<answer>B</answer>", "B"),
        ("<think>\n\n</think>\n\nB", "B"),
        ("<answer>B</answer>", "B"),
        ("I see a wick. <answer>B</answer>", "B"),
        ("<think>x</think>So: <answer>(B) Candles</answer>\n", "B"),
        ("I see a wick and a flame.\n\nAnswer: B", "B"),
        # An end token that was not removed.
        ("B<|im_end|>", "B"),
        ("<think>x</think><answer>B</answer><|im_end|>\n<|endoftext|>", "B"),
        ("<think>x</think>B</s>", "B"),
    ],
)
def test_strict_takes_one_option_or_nothing(reply: str, chosen: str | None) -> None:
    assert strict_choice(reply, OPTIONS) == chosen


@given(st.text(max_size=80))
def test_no_reply_breaks_a_reading(reply: str) -> None:
    assert strict_choice(reply, OPTIONS) in (None, "A", "B", "C", "D")
    assert lmms_eval_letter(reply, "ABCD") in ("", "A", "B", "C", "D")
    assert vlmevalkit_letter(reply) in ("", "A", "B", "C", "D")
    assert vlmevalkit_right(reply, OPTIONS, 0, 0) in (True, False)


def test_thinking_never_counts_strictly_and_may_in_the_harnesses() -> None:
    reply = "<think>It could be A. B is out.</think><answer>C</answer>"
    assert strict_choice(reply, OPTIONS) == "C"
    assert vlmevalkit_letter(reply) == "A"
    # lmms-eval removes whole blocks, and keeps one that never ends.
    assert lmms_eval_spoken(reply) == "<answer>C</answer>"
    assert lmms_eval_spoken(" thinking</think> B ") == "B"
    assert lmms_eval_letter(lmms_eval_spoken("<think>It is B, no, it is A"), "ABCD") == "A"
    assert final_answer(reply) == "C"
