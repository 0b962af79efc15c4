"""Published options and answers: one reading or a refusal, never a guess."""

from __future__ import annotations

import pytest

from stages.lib.annotations.choices import stated_letter, unlettered

OPTIONS = ("It is pushed", "It slips", "A cat jumps")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        *(
            (text, "B")
            for text in (
                "B",
                "b",
                " B ",
                "(B)",
                "( b )",
                "[B]",
                "B.",
                "B)",
                "(B).",
                "B:",
                '"B"',
                "“B”",
                "**B**",
                "`b`",
                "\uff22",
                "（B）",
            )
        ),
        *(
            (text, "B")
            for text in (
                "B. It slips",
                "B) it slips.",
                "(B) It slips",
                "B: It slips",
                "B - It slips",
                "**B.** It slips",
            )
        ),
        *((text, "B") for text in ("It slips", "it  slips", "It slips.")),
        ("A cat jumps", "C"),
        ("C. A cat jumps", "C"),
    ],
)
def test_one_letter_is_read(answer: str, letter: str) -> None:
    assert stated_letter(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        *(
            (text, "names no option")
            for text in ("", "D", "1", "AB", "A B", "A or B", "Because it is pushed", "A man pushes it", "B it slips")
        ),
        ("B. It is pushed", "has the letter B and not the words of that option, 'It slips'"),
        ("A, B", "has the letter A and not the words"),
        ("A. Actually no, B.", "has the letter A and not the words"),
    ],
)
def test_what_is_no_single_letter_is_refused(answer: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        stated_letter(answer, OPTIONS)


def test_a_letter_that_is_also_another_option_is_refused() -> None:
    assert stated_letter("B", ("A", "B", "C")) == "B"
    with pytest.raises(ValueError, match="is the letter of one option and the words of another"):
        stated_letter("A", ("B", "A"))


@pytest.mark.parametrize(
    ("options", "bare"),
    [
        (("A. It rises", "B. It falls"), ("It rises", "It falls")),
        (("(A) It rises", "(B) It falls"), ("It rises", "It falls")),
        (("a) It rises", "b) It falls"), ("It rises", "It falls")),
        (("A: It rises", "B: It falls", "C: x"), ("It rises", "It falls", "x")),
        (("A. Smith", "Jones"), ("A. Smith", "Jones")),
        (("It rises", "It falls"), ("It rises", "It falls")),
        (("A cat", "B side"), ("A cat", "B side")),
        (("A.", "B."), ("A.", "B.")),
        ((), ()),
    ],
)
def test_options_lose_the_letters_that_all_of_them_have(options: tuple[str, ...], bare: tuple[str, ...]) -> None:
    assert unlettered(options) == bare


def test_letters_in_another_order_are_refused() -> None:
    with pytest.raises(ValueError, match="options carry the letters B, A; need A, B, C"):
        unlettered(("B. It rises", "A. It falls"))
