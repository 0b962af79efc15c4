"""Checks around the functions of a project's own tasks: what they raise or return wrongly is an
error that names clip or sample, and is never scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from typing import Any

from stages.domain.core.records import Clip, Reject, Sample
from stages.domain.core.replies import Reply
from stages.domain.tasks.rewards import Referee, RewardRules, TaskScore
from stages.domain.tasks.task import AnswerForm, Context, Task, TaskSamples
from stages.errors import InputError, VidbridgeError

#: Describes an exception: its text, file and line.
Where = Callable[[BaseException], str]


class OwnTaskError(InputError):
    """A function of a project's own task raised, or returned what it must not."""


def guarded(task: Task[Any], where: Where) -> Task[Any]:
    """Return the task with checks around its functions, which raise :class:`OwnTaskError`."""
    form = None if task.form is None else AnswerForm(_parse(task, task.form, where), task.form.about)
    checked = replace(task, form=form)
    return replace(
        checked, make=_make(checked, where), score=_score(task, where), judge_calls=_judge_calls(task, where)
    )


def _make(task: Task[Any], where: Where) -> Callable[[Clip, Any, Context], TaskSamples]:
    def make(clip: Clip, settings: Any, context: Context) -> TaskSamples:
        def wrong(problem: str, remedy: str) -> OwnTaskError:
            return OwnTaskError(f"{task.name}.make", f"clip {clip.clip_id!r}: {problem}", remedy)

        try:
            made = task.make(clip, settings, context)
        except VidbridgeError:
            raise
        except Exception as error:
            raise wrong(
                where(error), "correct make; for a clip that gives no sample, return a Reject that says why"
            ) from error
        if not (isinstance(made, tuple) and len(made) == 2 and all(isinstance(part, list) for part in made)):
            raise wrong(f"returned {made!r:.100}", "return two lists: samples, and rejects")
        samples, rejects = made
        if strange := [row for row in rejects if not isinstance(row, Reject)]:
            raise wrong(f"returned {strange[0]!r:.100} among the rejects", "write Reject(...) for each of them")
        for number, sample in enumerate(samples):
            if (problem := _misfit(sample, clip, task)) is not None:
                raise wrong(f"sample {number}: {problem}", "make samples with sample_of(NAME, clip, ...)")
        names = [sample.sample_id for sample in samples]
        if len(set(names)) < len(names):
            raise wrong(f"two samples with one id ({', '.join(names):.200})", "give each a key of its own")
        return samples, rejects

    return make


def _misfit(sample: Any, clip: Clip, task: Task[Any]) -> str | None:
    """Describe what is wrong with a sample; None if nothing is."""
    if not isinstance(sample, Sample):
        return f"{sample!r:.100} is not a Sample"
    about = (sample.task, sample.split, sample.clip_id)
    if about != (task.name, clip.split, clip.clip_id) or not sample.sample_id.startswith(f"{task.name}/"):
        return f"{sample.sample_id!r} is of {', '.join(about)}, not of {task.name}, {clip.split}, {clip.clip_id}"
    if sample.subjects:
        return f"{sample.sample_id!r} lists subjects, which only structured_caption has"
    if task.form is not None:
        answers = {"reference": sample.reference, **({"trace.answer": sample.trace.answer} if sample.trace else {})}
        for name, answer in answers.items():
            if task.form.parse(answer) is None:
                return f"{name} {answer!r:.100} of {sample.sample_id!r} is not {task.form.about}"
    return None


def _score(task: Task[Any], where: Where) -> Callable[[Reply, Sample, Referee, RewardRules], TaskScore | None]:
    def score(reply: Reply, sample: Sample, referee: Referee, rules: RewardRules) -> TaskScore | None:
        def wrong(problem: str, remedy: str) -> OwnTaskError:
            return OwnTaskError(
                f"{task.name}.score",
                f"sample {sample.sample_id!r}, answer {reply.answer!r:.100}: {problem}",
                f"{remedy}; nothing is scored 0 for it",
            )

        try:
            result = task.score(reply, sample, referee, rules)
        except VidbridgeError:
            raise
        except Exception as error:
            raise wrong(where(error), "correct score, which must have a result for any answer") from error
        if result is None:
            return None
        if not isinstance(result, TaskScore):
            raise wrong(f"returned {result!r:.100}", "return TaskScore(...), or None if the form is wrong")
        if not isfinite(result.maximum) or not all(map(isfinite, result.parts.values())):
            raise wrong(f"maximum {result.maximum:g}, parts {result.parts}", "return finite numbers")
        # NaN is not between them either.
        if result.value is not None and not 0 <= result.value <= result.maximum:
            raise wrong(f"value {result.value:g}", f"return a number from 0 to the maximum, {result.maximum:g}")
        lacking = [part.name for part in task.parts if part.name not in ("answer", *result.parts)]
        if lacking and result.value is not None:
            raise wrong(f"parts without {lacking[0]!r}", "return each part that the Task lists")
        return result

    return score


def _parse(task: Task[Any], form: AnswerForm, where: Where) -> Callable[[str], object | None]:
    def parse(answer: str) -> object | None:
        try:
            return form.parse(answer)
        except VidbridgeError:
            raise
        except Exception as error:
            raise OwnTaskError(
                f"{task.name}.form",
                f"answer {answer!r:.100}: {where(error)}",
                "correct parse, which must return None for any text without the form",
            ) from error

    return parse


def _judge_calls(task: Task[Any], where: Where) -> Callable[[RewardRules], int]:
    def judge_calls(rules: RewardRules) -> int:
        try:
            calls = task.judge_calls(rules)
        except Exception as error:
            raise OwnTaskError(f"{task.name}.judge_calls", where(error), "return the number of requests") from error
        if not isinstance(calls, int) or calls < 0:
            raise OwnTaskError(f"{task.name}.judge_calls", f"returned {calls!r:.100}", "return a number >= 0")
        return calls

    return judge_calls
