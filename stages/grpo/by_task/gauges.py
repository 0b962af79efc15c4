"""Gauges of each task of a mixture, from one pass over the rollouts of a step.

They look for the mechanism that VidBridge-R1 (arXiv 2506.09079) names for the conflict of tasks:
the first answer tokens of question answering have low entropy, those of captions high, and a naive
mixture raises the former. Formulas, all at the temperature of the rollouts:

- ``answer_entropy``: mean entropy of the policy at the first :data:`FIRST_TOKENS` tokens of an
  answer, of all it has if it is shorter; the mean over replies.
- ``stop_after_first``: probability that an answer ends behind its first event, see
  :func:`stop_probability`.
- ``logp_gap``, ``logp_gap_max``: mean and maximum over tokens of ``|log p(sampler) - log
  p(trainer)|``. Both have the same weights, so it is what generation (caches, padding, another
  engine, other arithmetic) differs by.
- ``dead_groups``: share of the groups whose rewards are all equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from stages.domain.core.records import TaskName
from stages.domain.tasks import task_of
from stages.grpo.by_task.answers import CLOSING, AnswerSpan, answer_span, first_event_end

#: Number of tokens at the start of an answer whose entropy is measured.
FIRST_TOKENS = 4
#: Punctuation that may stand between the last word of an event and the closing tag.
_MARKS = ".!?;,。！？；，"


class Places(NamedTuple):
    """Tokens of a reply that the gauges look at, by number.

    Attributes:
        first: the first ones of the answer.
        ends: those at which the answer may end behind its first event: the token behind the event's
            last word, and the one behind that, if the first is punctuation only. Empty: the reply
            has no such place. The last may be one behind the last token of the reply.
    """

    first: tuple[int, ...]
    ends: tuple[int, ...]


def places(pieces: Sequence[str], task: TaskName) -> Places:
    """Find the places in a reply.

    Args:
        pieces: text of each token. A character of several tokens may be spelled wrongly, since only
            the tags, marks and words of the answer are looked for.
    """
    text, starts = "".join(pieces), [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece))
    span = answer_span(text)
    if span is None:
        return Places((), ())
    inside = [n for n in range(len(pieces)) if starts[n + 1] > span.start and starts[n] < span.stop]
    first = tuple(n for n in inside if pieces[n].strip())[:FIRST_TOKENS]
    return Places(first, () if task_of(task).answer == "letter" else _ends(pieces, starts, text, span))


def _ends(pieces: Sequence[str], starts: Sequence[int], text: str, span: AnswerSpan) -> tuple[int, ...]:
    answer = text[span.start : span.stop]
    length = first_event_end(answer)
    if length is None or (length == len(answer.rstrip()) and not span.closed):
        return ()  # no word, or cut off within the first event
    if span.start + length not in starts:
        return ()  # in the middle of a token
    behind = starts.index(span.start + length)
    if behind < len(pieces) and pieces[behind].strip() and not pieces[behind].strip().strip(_MARKS):
        return (behind, behind + 1)
    return (behind,)


def ending_tokens(texts: Sequence[str], ends: Iterable[int]) -> list[int]:
    """Numbers of the tokens that end an answer: those that end a reply (``ends``), and those that
    begin the closing tag, with or without a mark before it (``.</`` is one token of Qwen's).

    Args:
        texts: text of each token of the vocabulary.
    """

    def closes(text: str) -> bool:
        tag = text.lstrip().lstrip(_MARKS).lstrip()
        return tag.startswith("</") and (CLOSING.startswith(tag) or tag.startswith(CLOSING))

    return sorted({*(n for n, text in enumerate(texts) if closes(text)), *ends})


def stop_probability(ending: Sequence[float], mark: float) -> float:
    """Probability that an answer ends behind its first event, on the path that the reply takes.

    It is ``e_0``, or ``e_0 + p e_1`` where the reply has a mark behind the event: the sum over the
    tokens that end an answer (:func:`ending_tokens`) of their probability behind the last word, and
    the same behind the mark, which the policy writes with probability ``p``. Other marks that it
    might have written are not counted.

    Args:
        ending: e_0 and, if there is a mark, e_1.
        mark: p.
    """
    return ending[0] + (mark * ending[1] if len(ending) > 1 else 0.0)


class Total(NamedTuple):
    """Sum and number of measurements, and the largest of them."""

    sum: float
    number: int
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Total:
        return cls(math.fsum(values), len(values), max(values, default=-math.inf))

    def with_others(self, other: Total) -> Total:
        return Total(self.sum + other.sum, self.number + other.number, max(self.most, other.most))


#: Measurements by gauge and task.
Totals = Mapping[tuple[str, str], Total]


def merged(parts: Iterable[Totals]) -> dict[tuple[str, str], Total]:
    """Add the measurements of several processes or replies."""
    whole: dict[tuple[str, str], Total] = {}
    for totals in parts:
        for key, total in totals.items():
            whole[key] = total if key not in whole else whole[key].with_others(total)
    return whole


def metrics_of(totals: Totals) -> dict[str, float]:
    """Mean of each gauge and task, as a metric ``<gauge>/<task>``; of the gap the maximum, too."""
    found: dict[str, float] = {}
    for (gauge, task), total in sorted(totals.items()):
        if total.number:
            found[f"{gauge}/{task}"] = total.sum / total.number
            if gauge == "logp_gap":
                found[f"logp_gap_max/{task}"] = total.most
    return found
