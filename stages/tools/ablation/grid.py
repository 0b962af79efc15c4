"""The ablation grid: scores of all variants over seeds, and their differences.

Not a stage of DVC: every variant of every seed is a pipeline of its own, which ``vidbridge ablate``
runs (:mod:`flows.ablation`); this module reads the scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from stages.domain.core.digest import digest
from stages.domain.core.records import Record, Score, TaskName
from stages.domain.statistics.intervals import Design, Interval, mean_interval
from stages.domain.statistics.metrics import Shown, mean_over_tasks, task_results
from stages.errors import InputError
from stages.lib.evaluation.results import PolicyScores
from stages.lib.rows.jsonl import read_record
from stages.params import GrpoRow, Params
from stages.runtime import paths
from stages.tools.ablation.results import Results
from stages.tools.ablation.seeds import Gain, PolicyPair, over_seeds, pooled_gain
from stages.tools.ablation.variants import start_of, variant_params


class NothingRunError(InputError):
    """No seed is complete yet, so there is no table."""


class PolicyResult(Record):
    """A policy over all seeds: shares of each task's maximum, greedy, on held-out samples.

    ``columns``: for each task, and each part that is an axis, the mean over seeds with its t
    interval, cut at 0 and 1 (if seeds have no spread, the interval over the recordings of all
    seeds); ``by_seed``: the same for each seed; ``seeds``: the mean over tasks of each seed;
    ``blank``: that mean on a black video; ``format``: share of well-formed replies.
    """

    name: str
    title: str
    trained_on: tuple[TaskName, ...]
    columns: dict[str, Interval]
    by_seed: dict[str, tuple[float, ...]]
    seeds: tuple[float, ...]
    format: float
    blank: float | None


class Contrast(Record):
    after: str
    before: str
    mean: Gain
    columns: dict[str, Gain]


class Grid(Record):
    """Result of an ablation.

    ``commit``: the commit it ran from; shortened commits if there are several. ``missing``:
    variants of seeds that have not run, so that nothing partial looks whole. ``other_parameters``:
    it was trained with the parameters of that commit, and params.yaml differs now.
    """

    recipe: str
    commit: str
    other_parameters: bool
    command: str
    measured: str
    seeds: tuple[int, ...]
    #: Of each variant that is trained by GRPO; those of ``without_rollouts`` are trained by SFT.
    rollouts: int = Field(ge=0)
    without_rollouts: tuple[str, ...]
    axes: tuple[str, str]
    #: The row that all variants start from.
    start: str
    rows: tuple[PolicyResult, ...]
    contrasts: tuple[Contrast, ...]
    missing: tuple[str, ...]


def read_grid(params: Params, results: Results, *, command: str, measured: str) -> Grid:
    """Read all scores, on the seeds that are complete.

    Raises:
        NothingRunError: no seed is complete.
        InputError: all scores belong to other parameters and several commits.
    """
    grid = params.ablation
    assert grid is not None
    start = start_of(params)
    variants_of_seed = (start, *params.variants)
    kept = {(seed, name): results.identity(seed, name) for seed in grid.seeds for name in params.variants}
    fresh = {
        key for key, identity in kept.items() if identity and identity["params"] == digest(variant_params(params, *key))
    }
    # Scores of other parameters are never mixed with these. If there are no others, they are
    # displayed, with a note.
    counted = fresh or {key for key, identity in kept.items() if identity}
    missing = tuple(f"seed {seed}: {name}" for seed, name in kept if (seed, name) not in counted)
    seeds = tuple(seed for seed in grid.seeds if all((seed, name) in counted for name in params.variants))
    if not seeds:
        raise NothingRunError(
            "ablation", f"no seed has run whole ({len(missing)} trainings are missing)", "go on: vidbridge ablate"
        )
    commits = sorted({identity["commit"] for (seed, _), identity in kept.items() if identity and seed in seeds})
    if not fresh and len(commits) > 1:
        raise InputError(
            "ablation",
            "all results were trained with other parameters than params.yaml has, from several commits"
            f" ({_short(commits)}), so they are not one grid",
            "run it with these: vidbridge ablate",
        )
    rows = [_trivial(name, results, seeds, params) for name in ("random", "constant")]
    rows += [_measured(name, results, seeds, params) for name in variants_of_seed]
    # Every variant against the start, which the figure displays, and the contrasts the recipe
    # requests.
    pairs = dict.fromkeys([*((name, start) for name in params.variants), *grid.contrasts])
    contrasts = tuple(_contrast(after, before, results, seeds, params) for after, before in pairs)
    budgets = [
        row.steps * row.prompts_per_step * row.rollouts for row in params.variants.values() if isinstance(row, GrpoRow)
    ]
    return Grid(
        recipe=params.recipe,
        commit=commits[0] if len(commits) == 1 else _short(commits),
        other_parameters=not fresh,
        command=command,
        measured=measured,
        seeds=seeds,
        rollouts=budgets[0] if budgets else 0,
        without_rollouts=tuple(name for name, row in params.variants.items() if not isinstance(row, GrpoRow)),
        axes=grid.axes,
        start=start,
        rows=tuple(rows),
        contrasts=contrasts,
        missing=missing,
    )


def _as_part(scores: Sequence[Score], axis: str) -> list[Score]:
    """Replace the value of a task's scores by one of their parts; a reply that the format gate
    refuses scores 0.

    Raises:
        InputError: no reply has such a part.
    """
    task, part = axis.split("/")
    rows = [row for row in scores if row.task == task]
    if not any(part in row.parts for row in rows):
        part_names = ", ".join(sorted({name for row in rows for name in row.parts} - {"native"})) or "none"
        raise InputError(
            "ablation.axes",
            f"{axis!r}: no reply's score has a part {part!r} (they have {part_names})",
            "name one of these",
        )
    return [row.model_copy(update={"value": None if row.value is None else row.parts.get(part, 0.0)}) for row in rows]


def _part_axes(params: Params) -> list[str]:
    return [axis for axis in (params.ablation.axes if params.ablation else ()) if "/" in axis]


def _over(
    name: str, title: str, trained_on: Sequence[TaskName], scores: Sequence[Sequence[Score]], clips: Sequence[Shown],
    blank: float | None, params: Params,
) -> PolicyResult:  # fmt: skip
    confidence = params.evaluation.confidence
    results = [task_results(rows, contents, confidence) for rows, contents in zip(scores, clips, strict=True)]
    of_column: dict[str, list[list[Score]]] = {
        task: [[row for row in rows if row.task == task] for rows in scores] for task in results[0]
    }
    of_column |= {axis: [_as_part(rows, axis) for rows in scores] for axis in _part_axes(params)}
    by_seed = {column: tuple(_mean(rows) for rows in each) for column, each in of_column.items()}
    return PolicyResult(
        name=name,
        title=title,
        trained_on=tuple(trained_on),
        columns={column: _share(by_seed[column], each, clips, confidence) for column, each in of_column.items()},
        by_seed=by_seed,
        seeds=tuple(mean_over_tasks(result) for result in results),
        format=sum(row.format_ok for rows in scores for row in rows) / sum(len(rows) for rows in scores),
        blank=blank,
    )


def _mean(rows: Sequence[Score]) -> float:
    values = [row.value for row in rows if row.value is not None]
    return sum(values) / len(values)


def _share(
    values: Sequence[float], scores: Sequence[Sequence[Score]], clips: Sequence[Shown], confidence: float
) -> Interval:
    """Mean of the seeds' shares with its t interval, cut at 0 and 1 because the normal distribution
    is unbounded.

    If seeds have no spread, the interval over the recordings of all of them.
    """
    interval = over_seeds(values, confidence)
    if interval is not None:
        return Interval(mean=interval.mean, low=max(0.0, interval.low), high=min(1.0, interval.high))
    judged = [
        (row.value, contents[row.sample_id], str(seed))
        for seed, (rows, contents) in enumerate(zip(scores, clips, strict=True))
        for row in rows
        if row.value is not None
    ]
    design = Design.of([names for _, names, _ in judged], [seed for _, _, seed in judged])
    return mean_interval(np.array([value for value, _, _ in judged], dtype=np.float64), design, confidence)


def _measured(name: str, results: Results, seeds: Sequence[int], params: Params) -> PolicyResult:
    variants = params.ablation.variants if params.ablation else {}
    title = variants[name].title if name in variants else f"{name} (the start)"
    trained_on = params.variants[name].trained_tasks if name in variants else ()
    blank = [read_record(results.of(seed, name) / paths.SCORES_FILE, PolicyScores).blank_mean for seed in seeds]
    scores = [results.scores(seed, name) for seed in seeds]
    clips = [results.clips(seed) for seed in seeds]
    return _over(name, title, trained_on, scores, clips, sum(blank) / len(blank), params)


def _trivial(kind: str, results: Results, seeds: Sequence[int], params: Params) -> PolicyResult:
    scores = [results.scores(seed, "baselines", f"predictions_{kind}") for seed in seeds]
    clips = [results.clips(seed) for seed in seeds]
    return _over(kind, f"{kind} reply", (), scores, clips, None, params)


def _contrast(after: str, before: str, results: Results, seeds: Sequence[int], params: Params) -> Contrast:
    confidence = params.evaluation.confidence
    pairs = [
        PolicyPair(results.scores(seed, after), results.scores(seed, before), results.clips(seed)) for seed in seeds
    ]
    mean, tasks = pooled_gain(pairs, confidence)
    columns: dict[str, Gain] = {str(task): gain for task, gain in tasks.items()}
    for axis in _part_axes(params):
        parts = [PolicyPair(_as_part(pair.after, axis), _as_part(pair.before, axis), pair.contents) for pair in pairs]
        columns[axis] = pooled_gain(parts, confidence)[0]
    return Contrast(after=after, before=before, mean=mean, columns=columns)


def _short(commits: Sequence[str]) -> str:
    return ", ".join(commit[:12] for commit in commits)
