"""A request that gets no answer: a status and one sentence that says field, value and remedy."""

from __future__ import annotations


class Refused(Exception):
    """Why a request gets no answer. What is in the sentence is sent to a stranger: no path of this machine, no long value of theirs.

    Attributes:
        status: as HTTP has it.
        sentence: for a person.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(status, sentence)
        self.status = status
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence
