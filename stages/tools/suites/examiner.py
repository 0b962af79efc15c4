"""Judges for captioning benchmarks: the endpoint's and the rule judge, extended by questions about
objects and answers from a caption."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, TypeVar

from pydantic import Field

from stages.domain.core.records import Record, Verdict
from stages.domain.core.words import words
from stages.domain.tasks.caption import MAX_EVENTS
from stages.domain.tasks.lexicon import content_words, facts, stem
from stages.domain.tasks.rewards import Agreement
from stages.lib.judging.build import arguments_of
from stages.lib.judging.endpoint import EndpointJudge
from stages.lib.judging.entailment import EntailmentJudge
from stages.lib.judging.local import LocalJudge
from stages.lib.judging.prompts import AS_JSON, FENCED, MOST_MARKS, Form, fenced
from stages.lib.judging.questions import AskingJudge, CollectingJudge, in_rounds
from stages.lib.judging.rule import RuleJudge
from stages.lib.judging.similarity import SimilarityJudge
from stages.params import (
    EntailmentJudgeParams,
    KindOfJudge,
    LocalJudgeParams,
    OpenAIJudgeParams,
    PlacedJudge,
    RuleJudgeParams,
    SimilarityJudgeParams,
)
from stages.tools.suites.asked_of_judges import Examiner

Result = TypeVar("Result")
ParamsT = TypeVar("ParamsT", bound=LocalJudgeParams)


class Objects(Record):
    objects: tuple[Annotated[str, Field(min_length=1)], ...] = Field(max_length=MAX_EVENTS)


class Seen(Record):
    reason: str
    seen: bool


_OBJECTS = Form(
    "objects",
    f"You list what a description of a video says is to be seen: at most {MAX_EVENTS} persons, animals or things, each"
    " in one short phrase with one attribute such as its colour, size, shape, material or place; a thing with two"
    " attributes stands twice. What happens is no object. Write a noun for a pronoun, and add nothing that the"
    " description does not say." + FENCED + AS_JSON + '{"objects": a list of strings}.',
    Objects,
    placeholder=Objects(objects=()),
)
_SHOWS = Form(
    "shows",
    "You decide whether a description of a video says that something is to be seen."
    + FENCED
    + " `object` is seen when whoever believes `description` must believe that it is there, with that attribute. It is"
    " not when the description contradicts it, leaves it open, or only makes it likely."
    + AS_JSON
    + '{"reason": one short sentence, "seen": true or false}.',
    Seen,
    placeholder=Seen(reason="", seen=False),
)
#: Questions of benchmarks beyond those of training.
FORMS: tuple[Form, ...] = (_OBJECTS, _SHOWS)


class AskingExaminer(AskingJudge):
    """Asks a judge's questions, and those of benchmarks."""

    def extract_objects(self, text: str) -> tuple[str, ...] | Verdict:
        answer = self.answer(fenced(_OBJECTS, {}, {"description": text}))
        if isinstance(answer, Verdict):
            return answer
        assert isinstance(answer, Objects)
        return answer.objects

    def shows(self, seen: str, caption: str) -> Verdict:
        answer = self.answer(fenced(_SHOWS, {}, {"description": caption, "object": seen}))
        if isinstance(answer, Verdict):
            return answer
        assert isinstance(answer, Seen)
        return Verdict(outcome="scored", score=float(answer.seen), reason=answer.reason, judge=self.name)


class NotingExaminer(AskingExaminer, CollectingJudge):
    """Records the questions of benchmarks, too. A caption whose answer is still open is not
    judged."""


class EndpointExaminer(AskingExaminer, EndpointJudge):
    """A language model that is queried in parallel."""

    def score_many(self, score: Callable[[Examiner], Result]) -> Result:
        """Score many replies in parallel.

        Raises:
            JudgeError: the judge cannot be used as it is set up.
        """
        return in_rounds(self.ask, partial(NotingExaminer, self.name), score)


class RuleExaminer(RuleJudge):
    """Compares content words: a crude stand-in that reads no question, for a first look and for
    tests. Benchmarks are reported with a model."""

    def extract_objects(self, text: str) -> tuple[str, ...]:
        """List shapes with their colours in the generated world, else clauses, as for events."""
        shapes = facts(text)
        if shapes is not None:
            return tuple(dict.fromkeys(f"{fact.colour} {fact.shape}".strip() for fact in shapes if fact.shape))
        return self.extract_events(text)

    def shows(self, seen: str, caption: str) -> Verdict:
        share = _share(seen, caption)
        return self._scored(float(share >= self.full_share), f"{share:.2f} of the object's content words")

    def answer_from(self, question: str, caption: str) -> str:  # noqa: ARG002 - the protocol's; which part answers takes a reader
        return caption

    def agrees(self, question: str, reference: str, answer: str) -> Agreement:  # noqa: ARG002 - the protocol's
        share = _share(reference, answer)
        return Agreement(share >= self.full_share, round(MOST_MARKS * share))


class _ComparingExaminer(LocalJudge[ParamsT]):
    """Methods for benchmarks of a judge that compares texts and writes none: a crude stand-in, as
    the rule judge's."""

    def extract_objects(self, text: str) -> tuple[str, ...] | Verdict:
        return self.extract_events(text)

    def shows(self, seen: str, caption: str) -> Verdict:
        return self.entailed(seen, caption)

    def answer_from(self, question: str, caption: str) -> str | Verdict:  # noqa: ARG002 - which part answers takes a reader
        return caption

    def agrees(self, question: str, reference: str, answer: str) -> Agreement | Verdict:  # noqa: ARG002 - the protocol's
        verdict = self.entailed(reference, answer)
        if verdict.score is None:
            return verdict
        return Agreement(verdict.score == 1, round(MOST_MARKS * verdict.score))


class SimilarityExaminer(SimilarityJudge, _ComparingExaminer[SimilarityJudgeParams]):
    """Compares texts by their cosine."""


class EntailmentExaminer(EntailmentJudge, _ComparingExaminer[EntailmentJudgeParams]):
    """Compares texts by what follows from what."""


def _share(reference: str, text: str) -> float:
    """Share of the content words of one text that another has too; 0 if there are none."""
    need = content_words(reference)
    return len(need & {stem(word) for word in words(text)}) / len(need) if need else 0.0


#: Judges for benchmarks, by the type of their table.
EXAMINERS: Mapping[type[KindOfJudge], Callable[..., Examiner]] = {
    RuleJudgeParams: RuleExaminer,
    OpenAIJudgeParams: EndpointExaminer,
    SimilarityJudgeParams: SimilarityExaminer,
    EntailmentJudgeParams: EntailmentExaminer,
}


def examiner_of(place: PlacedJudge) -> Examiner:
    """Build a judge of ``params.yaml``, for benchmarks.

    Raises:
        JudgeError: the judge is an endpoint, and the environment does not set its address; or its
            model cannot be loaded.
    """
    return EXAMINERS[type(place.params)](*arguments_of(place.params, place))
