"""The ablation grid: parameters of each variant, and its scores compared with other variants and
seeds.

Not a stage of DVC: every variant of every seed is a pipeline of its own, which ``vidbridge ablate``
runs (:mod:`flows.ablation`); this module reads the scores.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from stages.domain.core.digest import digest
from stages.domain.core.records import Clip, Record, Sample, Score, TaskName
from stages.domain.statistics.intervals import Design, Interval, mean_interval
from stages.domain.statistics.metrics import Shown, clips_shown, mean_over_tasks, task_results
from stages.domain.tasks import task_of
from stages.errors import InputError
from stages.lib.evaluation.results import PolicyScores
from stages.lib.rows.jsonl import iterate_rows, read_json, read_record, read_rows
from stages.params import GrpoRow, Params, load_params, parse_params
from stages.runtime import paths
from stages.tools.ablation.seeds import Gain, PolicyPair, over_seeds, pooled_gain

IDENTITY_FILE = "identity.json"
CLIPS_FILE = "clips.json"


class NothingRunError(InputError):
    """No seed is complete yet, so there is no table."""


def start_of(params: Params) -> str:
    """Name of the row that all variants start from."""
    return next(iter(params.variants.values())).init


def variant_params(params: Params, seed: int, variant: str) -> dict[str, Any]:
    """Build a whole ``params.yaml`` with one variant behind the rows that lead to its start, which
    is evaluated too."""
    row, rows = params.variants[variant], params.rows
    chain = [row.init]
    while chain[-1] != "base":
        chain.append(rows[chain[-1]].init)
    table = params.model_dump(mode="json")
    changed = row.model_dump(mode="json")
    kind = "grpo" if isinstance(row, GrpoRow) else "sft"
    like = params.ablation.variants[variant].like if params.ablation else variant
    for name in ("sft", "grpo", "difficulty"):
        table[name] = {key: value for key, value in table[name].items() if key in chain}
    table[kind][variant] = changed
    if kind == "grpo" and changed["samples"] != paths.SAMPLES.as_posix():
        table["difficulty"][variant] = params.difficulty[like].model_dump(mode="json") | {"init": row.init}
    table |= {"recipe": f"{params.recipe}-ablation", "seed": seed, "ablation": None}
    table["evaluation"]["of"] = [row.init, variant]
    table["gate"]["registered_model"] += "-ablation"
    parse_params(table, f"seed {seed}, {variant}")
    return table


class PolicyResult(Record):
    """A policy over all seeds: shares of each task's maximum, greedy, on held-out samples.

    ``columns``: for each task, and each part that is an axis, the mean over seeds with its t
    interval, cut at 0 and 1 (if seeds have no spread, the interval over the clips of all seeds);
    ``by_seed``: the same for each seed; ``seeds``: the mean over tasks of each seed; ``blank``:
    that mean on a black video; ``format``: share of well-formed replies.
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


class Results:
    """Folder of scores: ``<seed>/<policy>/`` with the files of evaluation, and
    ``<seed>/clips.json``.

    A variant's folder also has ``identity.json``, written last: what it was trained with.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, seed: int, policy: str) -> Path:
        return self.folder / str(seed) / policy

    def scores(self, seed: int, policy: str, kind: str = "predictions") -> list[Score]:
        return read_rows(self.of(seed, policy) / f"{kind}.jsonl", Score)

    def identity(self, seed: int, variant: str) -> dict[str, str] | None:
        """Commit and digest of the parameters (:func:`variant_params`) that it was trained with;
        None if it is not complete."""
        file = self.of(seed, variant) / IDENTITY_FILE
        return dict(read_json(file)) if file.exists() else None

    def clips(self, seed: int) -> dict[str, list[str]]:
        """Result of :func:`content_digests` for a seed."""
        file = self.folder / str(seed) / CLIPS_FILE
        digests: dict[str, list[str]] = read_json(file)
        if not all(isinstance(clips, list) for clips in digests.values()):
            raise InputError(
                str(file),
                "written by an earlier version, which stored names of clips and not their content, so that"
                " clips shared by seeds are unknown",
                f"delete {self.folder / str(seed)} and run vidbridge ablate",
            )
        return digests


def content_digests(root: Path) -> dict[str, list[str]]:
    """Map sample id to the digests of the videos that it contains, for all held-out samples of a
    project.

    Seeds give other clips the same names, and may hold out the same clip.
    """
    split = load_params(root / paths.PARAMS_FILE).evaluation.split
    content = {clip.clip_id: clip.sha256 for clip in iterate_rows(root / paths.CLIPS / paths.MANIFEST_FILE, Clip)}
    samples = [
        sample for file in sorted((root / paths.SAMPLES / split).glob("*.jsonl")) for sample in read_rows(file, Sample)
    ]
    return {name: [content[clip] for clip in clips] for name, clips in clips_shown(samples).items()}


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

    If seeds have no spread, the interval over the clips of all of them.
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


def format_commit(grid: Grid) -> str:
    """Commit as tables display it."""
    short = grid.commit if "," in grid.commit else grid.commit[:12]
    return f"{short} (with its parameters, which are others now)" if grid.other_parameters else short


def _short(commits: Sequence[str]) -> str:
    return ", ".join(commit[:12] for commit in commits)


def markdown(grid: Grid) -> str:
    """Format the grid as two Markdown tables, with commit, seeds and budget."""
    columns = list(grid.rows[0].columns)
    seeds = ", ".join(map(str, grid.seeds))
    head = f"{grid.measured} Commit {format_commit(grid)}, seeds {seeds}; {_budget(grid)}. `{grid.command}`"
    lines = [head, ""]
    if grid.missing:
        lines += [f"**Partial**: {len(grid.missing)} trainings are missing ({', '.join(grid.missing[:3])} …).", ""]
    lines += [
        f"| trained on | {' | '.join(columns)} | mean | format | blank video |",
        "|---" * (len(columns) + 4) + "|",
    ]
    for row in grid.rows:
        cells = " | ".join(_bold(_cell(row.columns[column]), row, column) for column in columns)
        mean, blank = sum(row.seeds) / len(row.seeds), "" if row.blank is None else f"{row.blank:.3f}"
        lines.append(f"| {row.title} | {cells} | {mean:.3f} | {row.format:.3f} | {blank} |")
    titles = {row.name: row.title for row in grid.rows} | {grid.start: grid.start}
    lines += ["", f"| difference | {' | '.join(columns)} | mean |", "|---" * (len(columns) + 2) + "|"]
    for contrast in grid.contrasts:
        cells = " | ".join(signed(contrast.columns[column]) for column in columns)
        lines.append(f"| {titles[contrast.after]} − {titles[contrast.before]} | {cells} | {signed(contrast.mean)} |")
    return "\n".join(lines) + "\n"


def _budget(grid: Grid) -> str:
    if not grid.without_rollouts:
        return f"each variant {grid.rollouts:,} rollouts"
    titles = {row.name: row.title for row in grid.rows}
    by_sft = f"trained by SFT, without a rollout: {', '.join(titles[name] for name in grid.without_rollouts)}"
    return f"each variant trained by GRPO {grid.rollouts:,} rollouts; {by_sft}" if grid.rollouts else by_sft


def _cell(value: Interval) -> str:
    return f"{value.mean:.3f} [{value.low:.2f}, {value.high:.2f}]"


def _bold(text: str, row: PolicyResult, column: str) -> str:
    """Highlight the tasks that a variant was trained on."""
    return f"**{text}**" if column.split("/")[0] in row.trained_on else text


def signed(gain: Gain) -> str:
    """Format the mean difference and its t interval over seeds; its interval over clips if seeds
    have no spread."""
    interval = gain.over_seeds or gain.clips
    return f"{gain.clips.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def figure(grid: Grid) -> str:
    """Draw the grid as an SVG: the change from each variant's training, answering to the right,
    describing upwards.

    Changes and not scores: seeds differ more from each other than variants of one seed do. The bars
    are t intervals over seeds.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    x, y = grid.axes
    titles = {row.name: row.title for row in grid.rows}
    # Text stays text: it can be read, searched and scaled.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": grid.commit, "font.family": "sans-serif"}):
        drawing = Figure(figsize=(8.8, 5.4), layout="constrained")
        axis = drawing.subplots()
        axis.axvline(0, color="#888888", linewidth=0.9)
        axis.axhline(0, color="#888888", linewidth=0.9)
        changes = [contrast for contrast in grid.contrasts if contrast.before == grid.start]
        for change, (colour, marker) in zip(changes, _looks(len(changes)), strict=True):
            (over_x, bar_x), (over_y, bar_y) = (_point(change.columns[column]) for column in (x, y))
            axis.errorbar(
                over_x,
                over_y,
                xerr=bar_x,
                yerr=bar_y,
                fmt=marker,
                markersize=8,
                capsize=2,
                linewidth=1,
                alpha=0.9,
                color=colour,
                label=titles[change.after],
            )
        axis.set_xlabel(f"{_axis(x)}: change from the start")
        axis.set_ylabel(f"{_axis(y)}: change from the start")
        axis.set_title(f"{grid.recipe}, {len(grid.seeds)} seeds: what each training changed", fontsize=11)
        axis.grid(alpha=0.2)
        axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), title="trained on")
        buffer = io.StringIO()
        drawing.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _point(gain: Gain) -> tuple[float, list[list[float]]]:
    interval = gain.over_seeds or gain.clips
    return interval.mean, [[interval.mean - interval.low], [interval.high - interval.mean]]


def _axis(name: str) -> str:
    """Title of a task, or of a part of its score, in a figure."""
    task, _, part = name.partition("/")
    titles = {part.name: part.title for part in task_of(task).parts}
    return (titles.get(part) or name) if part else task_of(task).title


def _looks(count: int) -> list[tuple[str, str]]:
    """Colours and markers for this many points; no two alike."""
    return [(_COLOURS[n % len(_COLOURS)], _MARKERS[n // len(_COLOURS) + n % 3]) for n in range(count)]


_MARKERS = ("o", "s", "D", "^", "v", "P")
_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e")
