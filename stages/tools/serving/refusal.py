"""Refusal of a request: a status and one sentence with field, value and remedy."""

from __future__ import annotations


class Refused(Exception):
    """Reason for refusing a request. The sentence is sent to an untrusted client: no path of this
    machine, no long value of theirs.

    Attributes:
        status: of HTTP.
        sentence: for a person.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(status, sentence)
        self.status = status
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence
