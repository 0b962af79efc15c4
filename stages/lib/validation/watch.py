"""Answers of the policy in training to a held-out subset of the validation split, and their scores.

The subset and the seeds of sampled replies are fixed for the whole run: a curve compares equal
questions and equal draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean, pstdev
from typing import Any, NamedTuple

from stages.domain.core.frames import Frames
from stages.domain.core.prompts import PromptTexts, sample_prompt
from stages.domain.core.records import Sample, Score, TaskName
from stages.domain.tasks.rewards import Referee, RewardRules
from stages.errors import InputError
from stages.lib.inference.generate import generate, rollouts
from stages.lib.inference.policy import ModelPolicy, Policy
from stages.lib.judging.batch import check_step, score_replies
from stages.lib.rows.samples import drawn_samples, samples_present
from stages.lib.training.checkpoints import WATCHED
from stages.lib.training.watching import GREEDY, Ranks, Watch
from stages.params import TrainingRow, WatchParams

#: Scores replies to the samples at the same positions.
ScoreReplies = Callable[[Sequence[Sample], Sequence[str]], list[Score]]
#: Raises if too many replies have no verdict: their number, that of all, and what they are.
CheckVerdicts = Callable[[int, int, str], None]


class Scored(NamedTuple):
    """Score of one reply to the sample at ``position``; ``number`` is None for the greedy reply."""

    position: int
    number: int | None
    score: Score


class Asking(NamedTuple):
    """What is asked, and how replies are scored.

    Attributes:
        label: opens messages, such as ``grpo@bridge``.
        samples: the subset, task after task.
        texts: texts of prompts.
        load: loads the frames of a sample.
        score: scores replies.
        check: checks the number of replies without a verdict.
        batch_size: most replies that are generated at once.
        seed: seed of sampled replies.
    """

    label: str
    samples: Sequence[Sample]
    texts: PromptTexts
    load: Callable[[Sample], Frames]
    score: ScoreReplies
    check: CheckVerdicts
    batch_size: int
    seed: str


def validation_samples(name: str, row: TrainingRow, watch: WatchParams, seed: int) -> list[Sample]:
    """Draw the subset for row ``name`` (``grpo.bridge``): at most ``samples_per_task`` of each task
    that it trains.

    Raises:
        InputError: the validation split has no sample of a task.
    """
    present = samples_present()["validation"]
    if missing := [task for task in row.trained_tasks if task not in present]:
        raise InputError(
            f"{name}.watch",
            f"the validation split has no sample of {', '.join(missing)}",
            "annotate videos with that split, raise ingest.validation_share, or write watch: null",
        )
    return drawn_samples("validation", row.trained_tasks, watch.samples_per_task, seed)


def watch_of(
    row: TrainingRow,
    samples: Sequence[Sample],
    *,
    label: str,
    texts: PromptTexts,
    load: Callable[[Sample], Frames],
    referee: Referee,
    rules: RewardRules,
    batch_size: int,
    seed: int,
) -> Watch | None:
    """Build the watch of a row; None if it has none.

    Args:
        samples: the subset, of :func:`validation_samples`.
    """
    if row.watch is None:
        return None
    asking = Asking(
        label,
        samples,
        texts,
        load,
        partial(score_replies, referee=referee, rules=rules),
        partial(check_step, referee, Counter(sample.task for sample in samples)),
        batch_size,
        f"{seed}/watch",
    )
    return Watch(row.watch.every, row.watch.keep, partial(measure, asking, row.watch))


def measure(asking: Asking, watch: WatchParams, model: Any, processor: Any, ranks: Ranks) -> dict[str, float]:
    """Ask all samples, score the replies, and return their metrics, equal on every process.

    Raises:
        JudgeUnavailableError: too many replies have no verdict; on every process.
    """
    policy = ModelPolicy(model, processor)
    scored = _greedy(asking, watch, policy, ranks)
    if watch.sampled is not None:
        scored += _sampled(asking, watch, policy, ranks)
    every = sorted(ranks.gather(scored), key=lambda one: (one.position, -1 if one.number is None else one.number))
    # Together, as those of a step of GRPO: of a task's few replies, one is a large share.
    unjudged = sum(one.score.value is None for one in every)
    asking.check(unjudged, len(every), f"{asking.label}, a measurement on the validation split")
    return metrics(every, watch.sampled.replies if watch.sampled is not None else 0)


def _greedy(asking: Asking, watch: WatchParams, policy: Policy, ranks: Ranks) -> list[Scored]:
    scored: list[Scored] = []
    for positions, wanted in _dealt(len(asking.samples), asking.batch_size, ranks):
        replies = generate(
            policy, _items(asking, positions), max_new_tokens=watch.max_new_tokens, batch_size=len(positions)
        )
        if wanted:
            scores = asking.score([asking.samples[position] for position in positions], replies)
            scored += [Scored(position, None, score) for position, score in zip(positions, scores, strict=True)]
    return scored


def _sampled(asking: Asking, watch: WatchParams, policy: Policy, ranks: Ranks) -> list[Scored]:
    assert watch.sampled is not None
    count, scored = watch.sampled.replies, list[Scored]()
    for positions, wanted in _dealt(len(asking.samples), max(1, asking.batch_size // count), ranks):
        groups = rollouts(
            policy,
            _items(asking, positions),
            [f"{asking.seed}/{asking.samples[position].sample_id}" for position in positions],
            count=count,
            max_new_tokens=watch.max_new_tokens,
            temperature=watch.sampled.temperature,
            batch_size=len(positions),
        )
        if wanted:
            places = [(position, number) for position in positions for number in range(count)]
            replies = [reply for group in groups for reply in group]
            scores = asking.score([asking.samples[position] for position, _ in places], replies)
            scored += [Scored(*place, score) for place, score in zip(places, scores, strict=True)]
    return scored


def _items(asking: Asking, positions: Sequence[int]) -> list[tuple[str, Callable[[], Frames]]]:
    chosen = [asking.samples[position] for position in positions]
    return [(sample_prompt(sample, asking.texts), partial(asking.load, sample)) for sample in chosen]


def _dealt(count: int, size: int, ranks: Ranks) -> list[tuple[tuple[int, ...], bool]]:
    """Deal batches of positions out to the processes, as many to each: the batches, and so the
    replies, are those of one process. A batch that is only generated, because the others generate
    one more, comes with False: with sharded weights all of them pass through the model together."""
    batches = [tuple(range(start, min(start + size, count))) for start in range(0, count, size)]
    turns = -(-len(batches) // ranks.count)
    numbers = [turn * ranks.count + ranks.index for turn in range(turns)]
    return [(batches[number % len(batches)], number < len(batches)) for number in numbers]


def metrics(scored: Sequence[Scored], count: int) -> dict[str, float]:
    """Compute the metrics of a measurement: each one's mean over tasks, and each task's.

    ``watch/greedy``: score of the greedy reply; ``watch/sampled``: mean over ``count`` sampled
    replies; ``watch/pass``: best of all of them; ``watch/spread``: standard deviation among them.
    Replies without a verdict are in no mean, and a mean over tasks needs all of them.
    """
    greedy: dict[TaskName, list[float]] = {}
    groups: dict[tuple[TaskName, int], list[float]] = {}
    for one in scored:
        if one.number is None:
            greedy.setdefault(one.score.task, [])
        if one.score.value is not None:
            if one.number is None:
                greedy[one.score.task].append(one.score.value)
            else:
                groups.setdefault((one.score.task, one.position), []).append(one.score.value)
    well_formed = [one.score.format_ok for one in scored if one.number is None]
    values = {
        f"{WATCHED}format": sum(well_formed) / len(well_formed),
        f"{WATCHED}unjudged": float(sum(one.score.value is None for one in scored)),
        **_over_tasks(GREEDY, greedy),
    }
    if count:
        by_task = {task: [group for (name, _), group in groups.items() if name == task] for task in greedy}
        values |= _over_tasks(f"{WATCHED}sampled", {task: [*map(fmean, each)] for task, each in by_task.items()})
        values |= _over_tasks(f"{WATCHED}spread", {task: [*map(pstdev, each)] for task, each in by_task.items()})
        whole = {task: [max(group) for group in each if len(group) == count] for task, each in by_task.items()}
        values |= _over_tasks(f"{WATCHED}pass", whole)
    return values


def _over_tasks(name: str, values: Mapping[TaskName, Sequence[float]]) -> dict[str, float]:
    means = {task: fmean(each) for task, each in values.items() if each}
    overall = {name: fmean(means.values())} if len(means) == len(values) else {}
    return overall | {f"{name}/{task}": mean for task, mean in means.items()}
