"""The example tasks of docs/examples/tasks: their rewards, and the clips that they are tried on."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.domain.core.records import Clip, Excerpt, Sample
from stages.domain.core.replies import render_reply
from stages.domain.tasks import task_of
from stages.domain.tasks.rewards import RewardRules
from stages.domain.tasks.scoring import score_reply
from stages.domain.tasks.synthesis import synthesise
from stages.params import Params
from tests.support.builders import REFEREE, clip, rules, truth
from tests.support.projects.own_tasks import EXAMPLES, lay_out, loaded

ANSWERS = {
    "count": ({"question": "how many bars are there ?", "number": 3},),
    "grounding": ({"question": "when is the square seen ?", "spans": [[0.5, 1.25]]},),
    "ocr": ({"text": "47"},),
}
RULES: RewardRules = rules()
TASKS = tuple(ANSWERS)


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Params]:
    with loaded(lay_out(tmp_path_factory.mktemp("own"))) as found:
        yield found


def made(params: Params, task: str, about: Clip) -> list[Sample]:
    return [s for _, samples, _ in synthesise([about], task, params.synthesize.tasks, 8, 7) for s in samples]


def value(sample: Sample, answer: str) -> float | None:
    return score_reply(sample, render_reply("so", answer), REFEREE, RULES).value


@pytest.mark.parametrize("task", TASKS)
def test_the_truth_earns_the_maximum_and_any_text_stays_in_range(params: Params, task: str) -> None:
    (sample,) = made(params, task, clip(answers=ANSWERS))
    assert score_reply(sample, truth(sample), REFEREE, RULES).value == 1.0
    assert sample.trace is not None
    assert value(sample, sample.trace.answer) == 1.0

    @settings(max_examples=40)
    @given(st.one_of(st.text(), st.text("0123456789.-, to"), st.floats().map(str)))
    def in_range(answer: str) -> None:
        earned = value(sample, answer)
        assert earned is not None
        assert 0 <= earned <= 1
        assert earned == value(sample, answer)
        assert task_of(task).all_or_nothing is False or earned in (0, 1)

    in_range()
    listed = {"count": "1, 2, 3, 4", "grounding": "0 - 2, 0.5 - 1.25", "ocr": "47 74 41 17 47"}[task]
    assert (value(sample, listed) or 0) < 0.5


@pytest.mark.parametrize(
    ("answer", "earned"), [("20", 1), ("22", 1), ("18", 1), ("22.01", 0), ("17.9", 0), ("-20", 0), ("20 bars", 0)]
)
def test_numbers_are_right_within_the_tolerance(params: Params, answer: str, earned: float) -> None:
    about = clip(answers={"count": ({"question": "?", "number": 20},)})
    tolerant = params.model_dump(mode="json")["synthesize"]["tasks"] | {"count": {"per_clip": 1, "tolerance": 0.1}}
    chosen = type(params.synthesize.tasks).model_validate(tolerant)
    ((_, (sample,), _),) = synthesise([about], "count", chosen, 8, 7)
    assert sample.truth == {"number": 20.0, "error": 2.0}
    assert value(sample, answer) == earned


@pytest.mark.parametrize(
    ("answer", "earned"),
    [
        ("0.5 - 1.25", 1.0),
        ("0.5 to 1.25", 1.0),
        ("0.5 - 1, 1 - 1.25", 1.0),
        ("0 - 2", 0.375),
        ("1 - 1.25", 1 / 3),
        ("1 - 1.5", 0.25),
        ("1.25 - 2", 0.0),
        ("1.25 - 0.5", 0.0),
        ("soon", 0.0),
    ],
)
def test_spans_earn_their_intersection_over_union(params: Params, answer: str, earned: float) -> None:
    (sample,) = made(params, "grounding", clip(answers=ANSWERS))
    assert value(sample, answer) == pytest.approx(earned)


def test_times_of_a_row_are_of_the_file_and_questions_of_the_clip(params: Params) -> None:
    asked = {"question": "?", "spans": [[3.0, 3.5], [3.75, 9.0]]}
    part = clip(answers={"grounding": (asked,)}, excerpt=Excerpt(first=20, file_frames=99), events=())
    (sample,) = made(params, "grounding", part)
    assert sample.reference == "0.5 - 1, 1.25 - 2"
    outside = clip(answers={"grounding": ({"question": "?", "spans": [[5, 6]]},)})
    ((_, samples, (reject,)),) = synthesise([outside], "grounding", params.synthesize.tasks, 8, 7)
    assert (samples, reject.reason) == ([], "bad-spans")


def test_events_give_questions_where_the_row_has_none(params: Params) -> None:
    (sample,) = made(params, "grounding", clip())
    assert (sample.question, sample.reference) == ('when does this happen: "the red bar rises" ?', "0.25 - 0.75")


@pytest.mark.parametrize(
    ("answer", "earned"), [("47", 1.0), ("41", 0.5), ("4", 0.5), ("74", 0.0), ("147", 0.5), ("x" * 100_000, 0.0)]
)
def test_a_text_earns_less_for_each_edit(params: Params, answer: str, earned: float) -> None:
    (sample,) = made(params, "ocr", clip(answers=ANSWERS))
    assert value(sample, answer) == earned


def test_their_parameters_and_rows_are_those_that_the_tutorial_names(params: Params) -> None:
    assert params.recipe == "own-tasks"
    assert params.candidate == "own"
    text = (EXAMPLES / "make_clips.py").read_text(encoding="utf-8")
    assert all(f'"{task}": {{' in text for task in TASKS)
    assert json.loads(json.dumps(ANSWERS)) == json.loads(clip(answers=ANSWERS).model_dump_json())["answers"]
