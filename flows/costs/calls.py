"""Number of questions that a planned run sends to judges and to a writer: bounds from the
parameters, exact from the samples if they exist.

Every figure is "at most": an ill-formed reply is not judged, equal questions are sent once, and
cached answers are not requested.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flows.costs.rates import Who
from flows.repro.steps import Plan
from stages.domain.core.records import SPLITS, Split, TaskName
from stages.domain.statistics.metrics import CONSTANTS, TRIED_ON
from stages.domain.tasks import mix_vid_qa, task_of
from stages.lib.rows.jsonl import RowError, read_json
from stages.params import GrpoRow, LiveRatio, Params, TrainingRow
from stages.runtime import paths

#: A proposed question is tried from nothing, from the other clip and from its own; each answer gets
#: a verdict.
_TRIES_OF_A_QUESTION = 3
#: A proposed event is read again, and both readings are compared.
_READINGS_OF_AN_EVENT = 2


@dataclass(frozen=True)
class Calls:
    """Questions of a stage. ``at_most``: upper bound; None: it depends on data that are not made
    yet. ``about``: an expected number (the rollouts that a held-out judge sees are drawn by their
    text). ``measured``: the number of an earlier run, scaled.
    """

    who: Who
    at_most: int | None
    about: bool = False
    measured: int | None = None


def calls_of(root: Path, params: Params, plan: Plan) -> dict[str, tuple[Calls, ...]]:
    """Map each stage of the plan that runs to its questions; stages without any are left out."""
    counts = _Counts(root, params, plan)
    found: dict[str, tuple[Calls, ...]] = {}
    for step in plan.to_run:
        if calls := tuple(call for call in counts.of(step.name) if call.at_most != 0):
            found[step.name] = calls
    return found


class _Counts:
    def __init__(self, root: Path, params: Params, plan: Plan) -> None:
        self._root, self._params = root, params
        self._running = {step.name for step in plan.to_run}

    def of(self, stage: str) -> Iterable[Calls]:
        verb, _, name = stage.partition("@")
        if verb == "synthesize":
            return self.synthesize()
        if verb == "difficulty" and name in self._params.difficulty:
            return self.difficulty(name)
        if verb == "sft" and name in self._params.sft:
            return self._judges(self._watched(self._params.sft[name]))
        if verb == "grpo" and name in self._params.grpo:
            return self.grpo(self._params.grpo[name])
        if verb == "baselines":
            return self.baselines()
        return self.evaluate() if verb == "evaluate" else ()

    def synthesize(self) -> Iterable[Calls]:
        writer = self._params.synthesize.writer
        if writer is None:
            return
        written: int | None = 0
        judged: dict[TaskName, int | None] = {}
        if writer.questions:
            written = _plus(
                written, _times(self._made(mix_vid_qa.NAME, SPLITS), writer.tries * (1 + 2 * _TRIES_OF_A_QUESTION))
            )
        if writer.traces is not None:
            for task in writer.traces.tasks:
                proposed = _times(self._made(task, ("train",)), writer.tries)
                written = _plus(written, proposed)
                judged[task] = _times(proposed, task_of(task).judge_calls(writer.traces.rewards))
        if writer.events is not None:
            per_clip = writer.tries * (1 + _READINGS_OF_AN_EVENT * writer.events.most)
            written = _plus(written, _times(self._clips(SPLITS), per_clip))
        yield Calls("writer", written)
        if writer.traces is not None:
            yield from self._judges(judged)

    def difficulty(self, name: str) -> Iterable[Calls]:
        row = self._params.difficulty[name]
        yield from self._judges(
            {
                task: _times(
                    _times(self._at_most(task, "train", row.max_samples_per_task), row.rollouts), self._worth(task)
                )
                for task in self._params.grpo[name].trained_tasks
            }
        )

    def grpo(self, row: GrpoRow) -> Iterable[Calls]:
        asked: dict[TaskName, int] = {}
        for weights, tasks in self._mixtures(row):
            asked |= {task: count for task, count in self._rolled(row, weights).items() if task in tasks}
        yield from self._judges(asked, self._watched(row))
        held_out = self._params.held_out_judge
        if held_out is not None:
            asked, prompts = {}, math.ceil(row.steps / row.iterations) * row.prompts_per_step
            for weights, tasks in self._mixtures(row, held_out=True):
                rollouts = {task: count * row.rollouts for task, count in _dealt(weights, prompts).items()}
                asked |= {task: count * self._worth(task) for task, count in rollouts.items() if task in tasks}
            for calls in self._judges(asked, held_out=True):
                assert calls.at_most is not None
                yield replace(calls, at_most=math.ceil(held_out.share * calls.at_most), about=held_out.share < 1)

    def _mixtures(
        self, row: GrpoRow, *, held_out: bool = False
    ) -> Iterable[tuple[Mapping[TaskName, float], Collection[TaskName]]]:
        """Weights of a row's tasks with which each judge is asked most, and the tasks that it
        judges."""
        by_judge: dict[Who, list[TaskName]] = {}
        for task in row.trained_tasks:
            by_judge.setdefault(self._params.judges.of(task)[held_out].name, []).append(task)
        for tasks in by_judge.values():
            weights = {task: row.tasks[task] for task in row.trained_tasks}
            if isinstance(row.sampler, LiveRatio):
                # At most, the task whose replies cost most has the smallest live share, and no
                # other.
                weights[max(tasks, key=self._worth)] /= row.sampler.least_live
            yield weights, tasks

    def _rolled(self, row: GrpoRow, weights: Mapping[TaskName, float]) -> dict[TaskName, int]:
        """Questions about the replies that a row samples, by task."""
        generations = math.ceil(row.steps / row.iterations)
        prompts = generations * row.prompts_per_step
        # Dynamic sampling replaces at most every group in each round; what is shown shuffled for
        # the contrast is replaced with it.
        replies_a_prompt = row.rollouts + (row.temporal_contrast.rollouts if row.temporal_contrast is not None else 0)
        replies = {task: count * replies_a_prompt for task, count in _dealt(weights, prompts).items()}
        a_round = prompts if row.oversample is None else math.ceil(prompts / row.oversample.least_live)
        for task, count in _dealt(weights, a_round * row.resample_rounds).items():
            replies[task] += count * replies_a_prompt
        if row.controls_every:
            looked_at = (row.steps // row.controls_every + 1) * row.prompts_per_step
            for task, count in _dealt(weights, looked_at).items():
                replies[task] += 2 * count  # a black and a shuffled video, a reply each
        return {task: count * self._worth(task) for task, count in replies.items()}

    def baselines(self) -> Iterable[Calls]:
        asked: dict[TaskName, int | None] = {}
        for task in self._params.synthesize.tasks.named:
            tried = CONSTANTS * TRIED_ON
            samples = self._at_most(task, self._params.evaluation.split, self._params.evaluation.samples_per_task)
            asked[task] = _times(_plus(_times(samples, 2), tried if samples != 0 else 0), self._worth(task))
        yield from self._judges(asked)

    def evaluate(self) -> Iterable[Calls]:
        asked: dict[TaskName, int | None] = {}
        for task in self._params.synthesize.tasks.named:
            samples = self._at_most(task, self._params.evaluation.split, self._params.evaluation.samples_per_task)
            # With its video, with a black and with a shuffled one.
            drawn = self._params.evaluation.sampled
            replies = 3 + (drawn.replies if drawn is not None else 0)
            asked[task] = _times(samples, replies * self._worth(task))
        yield from self._judges(asked)

    def _watched(self, row: TrainingRow) -> dict[TaskName, int | None]:
        """Questions about the replies to the validation samples that a row is watched on, by
        task."""
        if (watch := row.watch) is None:
            return {}
        # At the start, and at the last step wherever it lies.
        measured = -(-row.steps // watch.every) + 1
        replies = measured * (1 + (watch.sampled.replies if watch.sampled is not None else 0))
        return {
            task: _times(self._at_most(task, "validation", watch.samples_per_task), replies * self._worth(task))
            for task in row.trained_tasks
        }

    def _judges(self, *asked: Mapping[TaskName, int | None], held_out: bool = False) -> Iterable[Calls]:
        """Sum questions by the judge that they go to; those in the stages' own process are left
        out."""
        totals: dict[Who, int | None] = {}
        for task, count in (item for table in asked for item in table.items()):
            place = self._params.judges.of(task)[held_out]
            if place.params.at_endpoint:
                totals[place.name] = _plus(totals.get(place.name, 0), count)
        yield from (Calls(who, count) for who, count in totals.items())

    def _worth(self, task: TaskName) -> int:
        """Most questions that one reply can cause."""
        return task_of(task).judge_calls(self._params.rewards)

    def _at_most(self, task: TaskName, split: Split, most: int | None) -> int | None:
        available = self._made(task, (split,))
        return available if most is None else most if available is None else min(available, most)

    def _made(self, task: TaskName, splits: Iterable[Split]) -> int | None:
        """Number of samples of a task, or its upper bound; None: the clips are not known yet."""
        if "synthesize" not in self._running:
            table = self._summary(paths.SAMPLES)
            return None if table is None else sum(int(table["samples"][split].get(task, 0)) for split in splits)
        # Every task makes so many of a clip at most.
        return _times(self._clips(splits), int(getattr(self._params.synthesize.tasks, task).per_clip))

    def _clips(self, splits: Iterable[Split]) -> int | None:
        if "ingest" not in self._running:
            table = self._summary(paths.CLIPS)
            return None if table is None else sum(int(table["splits"][split]) for split in splits)
        if Path(self._params.ingest.source) == paths.CORPUS:
            corpus = self._params.corpus
            counts = {"train": corpus.train_clips, "validation": corpus.validation_clips, "test": corpus.test_clips}
            return sum(counts[split] for split in splits)
        return None

    def _summary(self, folder: Path) -> Mapping[str, Any] | None:
        try:
            found: Mapping[str, Any] = read_json(self._root / folder / paths.SUMMARY_FILE)
        except (FileNotFoundError, RowError):
            return None
        return found


def _dealt(weights: Mapping[TaskName, float], prompts: int) -> dict[TaskName, int]:
    """Most prompts of each task among so many: its share, to within one
    (:func:`stages.lib.training.mixture.draw`).
    """
    total = sum(weights.values())
    return {
        task: min(prompts, math.floor(prompts * weight / total) + 1) if prompts else 0
        for task, weight in weights.items()
    }


def _plus(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def _times(count: int | None, factor: int) -> int | None:
    return 0 if factor == 0 else None if count is None else count * factor
