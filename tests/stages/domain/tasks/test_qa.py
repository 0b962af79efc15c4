"""Open questions, their samples and their marks by rule; several captions of one clip."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stages.corpus.shapes import combinations
from stages.domain.core.records import Clip, Event, OpenQuestion, Sample, Span, Verdict
from stages.domain.core.replies import render_reply
from stages.domain.tasks import caption, qa
from stages.domain.tasks.lexicon import COLOURS, SHAPES, VAGUE_VERBS, VERBS, Fact, facts
from stages.domain.tasks.scoring import score_reply
from stages.domain.tasks.synthesis import synthesise
from stages.domain.tasks.task import Context
from stages.params import load_params
from tests.support.builders import JUDGE, REFEREE, SAMPLES, SETTINGS, clip, rules
from tests.support.checkout import ROOT

ALL = SETTINGS.model_copy(update={"qa": qa.Settings(per_clip=9, from_events=True)})
ASKED = (OpenQuestion(question="What is it?", answer="a bar"), OpenQuestion(question="Who made it?", answer="nobody"))


def _made(one: Clip, settings: qa.Settings = qa.Settings(per_clip=9, from_events=True)) -> list[Sample]:
    samples = synthesise([one], "qa", SETTINGS.model_copy(update={"qa": settings}), 8, 7)
    return [sample for _, made, _ in samples for sample in made]


def test_questions_ask_for_the_first_the_last_and_the_next_event() -> None:
    assert [(sample.question, sample.reference) for sample in _made(clip())] == [
        ("What happens first?", "the red bar rises"),
        ("What happens last?", "the red bar grows"),
        ('What happens right after "the red bar rises"?', "the red bar grows"),
    ]
    assert [sample.sample_id for sample in _made(clip())] == ["qa/c0/0", "qa/c0/1", "qa/c0/2"]
    assert all(sample.options == () and sample.events == () for sample in _made(clip()))


@pytest.mark.parametrize(
    "events",
    [
        (("a", 0, 8),),
        (("a", 0, 8), ("a", 8, 16)),
        (("a", 0, 12), ("b", 3, 9)),
        (("a", 0, 8), ("b", 2, 8)),
    ],
)
def test_there_is_no_question_without_a_single_answer(events: tuple[tuple[str, int, int], ...]) -> None:
    timed = tuple(Event(span=Span(start=start, stop=stop), caption=name) for name, start, stop in events)
    ((_, samples, (reject,)),) = synthesise([clip(events=timed)], "qa", ALL, 8, 7)
    assert (samples, reject.reason) == ([], "no-questions")
    assert "no open question, and no events whose order could be asked" in reject.detail


def test_the_annotations_own_questions_come_first() -> None:
    asked = clip(open_questions=ASKED)
    assert [(s.question, s.reference) for s in _made(asked)] == [(q.question, q.answer) for q in ASKED]
    assert len(_made(asked, qa.Settings(per_clip=1, from_events=True))) == 1
    drawn = {
        _made(clip(number, open_questions=ASKED), qa.Settings(per_clip=1, from_events=False))[0].question
        for number in range(20)
    }
    assert drawn == {question.question for question in ASKED}
    ((_, samples, (reject,)),) = synthesise(
        [clip()], "qa", SETTINGS.model_copy(update={"qa": qa.Settings(per_clip=1, from_events=False)}), 8, 7
    )
    assert (samples, reject.detail) == ([], "the annotation lists no open question")


def _score(sample: Sample, answer: str) -> float:
    score = score_reply(sample, render_reply("I look at it.", answer), REFEREE, rules())
    assert score.value is not None
    assert score.parts["right"] == score.value
    return score.value


def _asked(question: str, reference: str) -> Sample:
    return SAMPLES["qa"].model_copy(update={"question": question, "reference": reference})


NEXT = _asked('What happens right after "the red bar rises"?', "the red bar grows")


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("the red bar grows", 1),
        ("The red bar grows.", 1),
        ("then the red bar grows", 1),
        ("the red bar grows and grows", 1),
        ("grows", 0),
        ("the bar grows", 0),
        ("the red bar changes", 0),
        ("the red bar rises", 0),
        ("the red bar rises then grows", 0),
        ("the red bar grows then falls", 0),
        ("the red bar grows then the red bar rises", 0),
        ("the red bar grows or falls", 0),
        ("the red bar grows or the red bar falls", 0),
        ("possibly the red bar grows", 0),
        ("the red bar might be growing", 0),
        ("the red bar does not grow", 0),
        ("the blue circle the red bar grows", 0),
        ("green blue red bar grows", 0),
        ("the red bar grows the blue circle", 0),
        ("bar red grows", 0),
        ("grows the red bar", 0),
        ("the red bar", 0),
        ("", 0),
    ],
)
def test_the_rule_judge_is_exact_in_the_generated_world(answer: str, value: float) -> None:
    verdict = JUDGE.right(NEXT, answer)
    assert (verdict.outcome, verdict.score) == ("scored", value), verdict.reason


def test_the_contents_of_the_corpus_feed_it_and_a_further_event_is_wrong() -> None:
    recipe = load_params(ROOT / "infra/recipes/smoke.yaml").synthesize.tasks.of(qa.TASK)
    assert recipe is not None
    for number, (colour, shape, *verbs) in enumerate(combinations()[::7]):
        samples = _made(clip(number, colour, shape, (verbs[0], verbs[1])), recipe)
        assert len(samples) == recipe.per_clip
        for sample in samples:
            assert JUDGE.right(sample, sample.reference).score == 1
            assert sample.trace is not None
            assert JUDGE.right(sample, sample.trace.answer).score == 1
            (true,) = facts(sample.reference) or ()
            for verb in VERBS.keys() - {true.verb}:
                other = f"the {colour} {shape} {verb}"
                for answer in (other, f"{sample.reference} then {verb}", f"{other} then {true.verb}"):
                    assert JUDGE.right(sample, answer).score == 0, (sample.question, answer)


@pytest.mark.parametrize(
    ("question", "reference", "right", "wrong"),
    [
        # The question names the subject: it may be told, as it is.
        ("what does the red bar do first ?", "rises", ["rises", "the red bar rises"], ["the blue bar rises", "falls"]),
        ("what happens ?", "rises", ["rises"], ["the red bar rises"]),
        # Several events, in their order.
        (
            "what happens ?",
            "the red bar rises then grows",
            ["the red bar rises then grows", "the red bar rises and the red bar grows"],
            [
                "the red bar grows then rises",
                "the red bar rises",
                "the red bar rises then grows then falls",
                "the red bar rises then grows then rises",
                "the red bar rises after grows",
            ],
        ),
        # Things instead of events.
        (
            "what colour is the bar ?",
            "red",
            ["red", "the red"],
            ["blue", "red blue", "red and blue", "red or blue", ""],
        ),
        (
            "what moves ?",
            "the red bar",
            ["red bar", "a red bar"],
            ["bar red", "bar", "red bar circle", "the red bar rises"],
        ),
    ],
)
def test_references_of_other_forms_are_exact_too(
    question: str, reference: str, right: list[str], wrong: list[str]
) -> None:
    sample = _asked(question, reference)
    assert [answer for answer in right if JUDGE.right(sample, answer).score != 1] == []
    assert [answer for answer in wrong if JUDGE.right(sample, answer).score != 0] == []


WORDS = st.sampled_from(
    [*COLOURS, *SHAPES, *VERBS, *VAGUE_VERBS, "the", "then", "and", "a", "first", "or", "not", "it"]
)
FACTS = st.builds(
    lambda colour, shape, verb: f"the {colour} {shape} {verb}",
    st.sampled_from(COLOURS),
    st.sampled_from(SHAPES),
    st.sampled_from(sorted(VERBS)),
)


@settings(max_examples=25)
@given(FACTS, st.lists(WORDS, max_size=8).map(" ".join))
def test_an_answer_is_right_only_if_it_states_the_reference_and_nothing_else(reference: str, answer: str) -> None:
    (true,) = facts(reference) or ()
    spelled = [word for word in answer.split() if word not in {"the", "then", "and", "a", "first", "it"}]
    told = [Fact(*spelled[at : at + 3]) for at in range(0, len(spelled), 3)] if len(spelled) % 3 == 0 else []
    expected = bool(told) and set(told) == {true}
    # A verb alone repeats what the subject before it does.
    assume(expected or spelled[:3] != list(true) or set(spelled[3:]) != {true.verb})
    assert JUDGE.right(_asked("What happens?", reference), answer).score == float(expected)


@settings(max_examples=25)
@given(FACTS, FACTS, st.sampled_from([" then ", " and ", ", ", "; ", " or ", " "]))
def test_an_extra_event_makes_an_answer_wrong(reference: str, other: str, joiner: str) -> None:
    assume(reference != other)
    sample = _asked("What happens?", reference)
    assert JUDGE.right(sample, reference).score == 1
    for answer in (f"{reference}{joiner}{other}", f"{other}{joiner}{reference}"):
        assert JUDGE.right(sample, answer).score == 0, answer


@settings(max_examples=25)
@given(st.lists(FACTS, min_size=2, max_size=4, unique=True), st.randoms(use_true_random=False))
def test_events_are_told_in_the_order_of_the_reference(told: list[str], rng: object) -> None:
    sample = _asked("What happens?", " then ".join(told))
    assert JUDGE.right(sample, " and ".join(told)).score == 1
    shuffled = list(told)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert JUDGE.right(sample, " then ".join(shuffled)).score == float(shuffled == told)
    assert JUDGE.right(sample, " then ".join(told[1:])).score == 0


REAL = _asked("What is the man peeling at the table?", "a red onion")


@pytest.mark.parametrize(
    ("question", "reference", "right", "wrong"),
    [
        (
            REAL.question,
            REAL.reference,
            ["a red onion", "The man is peeling a red onion.", "red onions", "He is peeling a red onion at the table."],
            [
                "an apple",
                "a red onion and an apple",
                "a red onion, an apple",
                "a red onion; an apple",
                "a red onion or an apple",
                "a red onion, a green apple, a yellow pear",
                "not a red onion",
                "a red onion apple pear",
                "a red onion. An apple.",
                "",
            ],
        ),
        ("How many cups are there?", "3", ["3", "3 cups", "There are 3 cups."], ["2 3", "2 3 4", "3 or 4", "2"]),
        ("Is it raining?", "yes", ["yes", "Yes."], ["no", "yes no", "yes or no", "not yes"]),
        ("桌上有什么？", "红色的杯子", ["红色的杯子"], ["红色的杯子，蓝色的书本", "蓝色的书本"]),
    ],
)
def test_a_second_answer_is_wrong_outside_the_generated_world_as_well(
    question: str, reference: str, right: list[str], wrong: list[str]
) -> None:
    sample = _asked(question, reference)
    assert [answer for answer in right if JUDGE.right(sample, answer).score != 1] == []
    assert [answer for answer in wrong if JUDGE.right(sample, answer).score != 0] == []


NOUNS = st.sampled_from(["lamp", "river", "guitar", "ladder", "window", "horse", "pencil", "basket"])


@settings(max_examples=25)
@given(
    st.lists(NOUNS, min_size=1, max_size=3, unique=True), NOUNS, st.sampled_from([" and ", ", ", " or ", "; ", ". "])
)
def test_a_further_thing_makes_a_real_answer_wrong(reference: list[str], other: str, joiner: str) -> None:
    assume(other not in reference)
    sample = _asked("What is there?", "a " + " and a ".join(reference))
    assert JUDGE.right(sample, sample.reference).score == 1
    assert JUDGE.right(sample, f"{sample.reference}{joiner}a {other}").score == 0


def test_a_reply_is_scored_0_or_1_and_an_unanswered_judge_is_not_a_0() -> None:
    sample = SAMPLES["qa"]
    assert _score(sample, sample.reference) == 1
    assert _score(sample, "the green circle falls") == 0

    class Silent:
        name = "silent"

        def right(self, sample: Sample, answer: str) -> Verdict:
            return Verdict(outcome="unavailable", reason="no answer", judge="silent")

    referee = REFEREE.__class__(Silent(), REFEREE.embedder)  # type: ignore[arg-type]
    assert score_reply(sample, render_reply("x", "y"), referee, rules()).value is None


# Captions.


def _captions(per_clip: int, *further: str, number: int = 0) -> list[Sample]:
    one = clip(number, captions=further or None)
    context = Context(8, 7, None)  # type: ignore[arg-type]
    return caption.make(one, caption.Settings(per_clip=per_clip), context)[0]


def test_several_captions_of_a_clip_are_several_samples() -> None:
    (today,) = _captions(1)
    further = [f"The bar does thing {n}." for n in range(6)]
    assert _captions(1, *further) == [today]
    assert _captions(5) == [today]
    first, *others = _captions(3, *further)
    assert first == today
    assert len(others) == 2
    assert {sample.reference for sample in others} < set(further)
    assert [sample.sample_id for sample in others] == [
        f"caption/c0/{further.index(sample.reference) + 1}" for sample in others
    ]
    for sample in others:
        assert sample.trace is not None
        assert sample.trace.answer == sample.trace.thinking == sample.reference
    assert len(_captions(99, *further)) == 7
    drawn = {sample.reference for number in range(20) for sample in _captions(2, *further, number=number)[1:]}
    assert len(drawn) > 3
