"""A task's record is complete: its statements hold for the samples and scores that the task
makes."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import ValidationError

from stages.domain.core.records import Record, Sample, Verdict
from stages.domain.core.replies import render_reply
from stages.domain.tasks import TASK_NAMES, TASKS, KnownTask, task_of
from stages.domain.tasks.scoring import score_reply
from stages.domain.tasks.synthesis import TaskSettings, synthesise
from stages.domain.tasks.task import Task
from stages.lib.judging.rule import RuleJudge
from tests.support.builders import SETTINGS, clip, referee, rules

CLIPS = [clip(0), clip(1, "blue", "circle", ("falls", "shrinks"))]
EVERY_TASK = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


@dataclass(frozen=True)
class CountingJudge(RuleJudge):
    """Judge that counts its questions, one for each verdict."""

    asked: Counter[str] = field(default_factory=Counter)

    def _scored(self, score: float, reason: str) -> Verdict:
        self.asked["verdicts"] += 1
        return super()._scored(score, reason)

    def extract_events(self, text: str) -> tuple[str, ...]:
        self.asked["events"] += 1
        return super().extract_events(text)


def made(task: Task[Any]) -> list[Sample]:
    return [s for _, samples, _ in synthesise(CLIPS, task.name, SETTINGS, 8, 7) for s in samples]


@EVERY_TASK
def test_a_sample_lists_subjects_where_an_analysis_is_asked_for_and_nowhere_else(task: Task[Any]) -> None:
    samples = made(task)
    assert samples
    assert {bool(sample.subjects) for sample in samples} == {task.analysed}


@EVERY_TASK
@pytest.mark.parametrize("scorer", ["coverage", "completeness_naturalness"])
def test_a_reply_raises_no_more_questions_than_its_task_says(task: Task[Any], scorer: str) -> None:
    which = rules(caption_scorer=scorer)
    for sample in made(task):
        judge = CountingJudge(0.8, 0.4)
        assert sample.trace is not None
        score_reply(sample, render_reply(sample.trace.thinking, sample.trace.answer), referee(judge), which)
        # The rule judge reads a caption of `complete` event by event, which is one question to a
        # model.
        asked = min(judge.asked.total(), 2) if scorer != "coverage" and task.analysed else judge.asked.total()
        assert (asked > 0) == (task.judge_calls(which) > 0)
        assert asked <= task.judge_calls(which)


@EVERY_TASK
def test_all_or_nothing_is_what_replies_earn(task: Task[Any]) -> None:
    partly = {"the red bar", "the red bar moves", "the red bar rises", "the blue circle falls", "A", "B"}
    earned = {
        score_reply(sample, render_reply(sample.trace.thinking, answer), referee(RuleJudge(0.8, 0.4)), rules()).value
        for sample in made(task)
        if sample.trace is not None
        for answer in (*partly, sample.trace.answer)
    }
    assert {0.0, 1.0} <= earned or task.analysed
    assert (earned <= {0.0, 1.0}) == task.all_or_nothing


def test_an_unknown_task_is_refused_with_those_that_there_are() -> None:
    remedy = f"name one of {', '.join(TASK_NAMES)}, or the module that defines it: tasks.module"
    with pytest.raises(ValueError, match=f"^task: 'dark' is not a task; {remedy}$"):
        task_of("dark")
    with pytest.raises(ValidationError, match=f"(?m)^dark\n  'dark' is not a task; {remedy}"):
        TaskSettings.model_validate({"dark": {"per_clip": 1}})

    class Row(Record):
        task: KnownTask

    with pytest.raises(ValidationError, match=f"(?m)^task\n  'dark' is not a task; {remedy}"):
        Row(task="dark")
    assert Row.model_json_schema()["properties"]["task"]["enum"] == list(TASK_NAMES)


def test_names_are_unique_and_fit_rows_and_files() -> None:
    assert len(set(TASK_NAMES)) == len(TASKS)
    assert all(re.fullmatch("[a-z][a-z0-9_]*", name) for name in TASK_NAMES)
    assert list(TaskSettings.model_fields) == list(TASK_NAMES)
