"""The answer in a reply, and the end of its first event."""

from __future__ import annotations

import pytest

from stages.grpo.by_task.answers import AnswerSpan, answer_span, first_event_end


@pytest.mark.parametrize(
    ("answer", "first"),
    [
        ("the red bar rises then grows", "the red bar rises"),
        ("the red bar rises and grows", "the red bar rises"),  # of the generated world
        ("a man and a woman dance. they bow.", "a man and a woman dance"),
        ("it weighs 2.5 kg. then it falls", "it weighs 2.5 kg"),
        ("A cat sits, then it jumps", "A cat sits"),
        ("A cat sits and then jumps", "A cat sits"),
        ("一个男人走路。他坐下", "一个男人走路"),
        ("he strengthens his then-unknown grip", "he strengthens his then-unknown grip"),
        ("... a cat", "... a cat"),
        (" a cat sits \n", " a cat sits"),
    ],
)
def test_the_first_event_ends_at_its_last_word(answer: str, first: str) -> None:
    length = first_event_end(answer)
    assert length is not None
    assert answer[:length] == first


def test_without_a_word_there_is_no_event() -> None:
    assert [first_event_end(text) for text in ("", "...", " \n")] == [None, None, None]


def test_an_answer_may_be_cut_off() -> None:
    assert answer_span("<think>x</think><answer>ab</answer>") == AnswerSpan(24, 26, True)
    assert answer_span("<think>x</think><answer>ab") == AnswerSpan(24, 26, False)
    assert answer_span("<think>x</think>") is None
