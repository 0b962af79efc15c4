"""Shared parts of experiments over arms and seeds: their command line, a clone for each arm, ``dvc
repro`` in it, its costs, gains and intervals over seeds, the pages of results; and a whole
experiment on a recipe.

Clones of one working folder share one DVC cache, so what arms have in common is made once, and a
run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from benchmarks.machine import keep
from stages.domain.core.records import Score
from stages.lib.evaluation.results import PolicyScores
from stages.lib.rows.jsonl import read_record, read_rows, write_json
from stages.runtime import paths
from stages.tools.ablation import seeds
from stages.tracking.runs.history import Cost, latest_costs
from stages.tracking.session import Session


def seeds_of(text: str) -> list[int]:
    return [int(seed) for seed in text.split(",")]


def parser_of(
    module: str, about: str | None, *, seeds: str, work: str, out: str, jobs: str | None = None
) -> argparse.ArgumentParser:
    """Build the command line of an experiment: ``--seeds``, ``--work`` and ``--out``, with these
    defaults, and ``--jobs``.

    Args:
        about: docstring of the module, whose first paragraph is the description.
        jobs: what runs side by side; None: nothing does.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=(about or "").split("\n\n")[0])
    parser.add_argument(
        "--seeds",
        type=seeds_of,
        default=seeds,
        help="comma-separated; each has a corpus of its own (default: %(default)s)",
    )
    parser.add_argument("--work", type=Path, default=Path(work), help="where the clones live (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(out))
    if jobs is not None:
        parser.add_argument(
            "--jobs", type=int, default=2, help=f"{jobs} at a time, one core each (default: %(default)s)"
        )
    return parser


def side_by_side(jobs: int, calls: Iterable[Callable[[], None]]) -> None:
    """Make calls, so many at a time; the error of one is raised when all have ended."""
    with ThreadPoolExecutor(jobs) as pool:
        for made in [pool.submit(call) for call in calls]:
            made.result()


def compare_on_seeds(
    module: str,
    about: str | None,
    *,
    out: str,
    arms: Callable[[dict[str, Any], int], dict[str, dict[str, Any]]],
    finish: Callable[[Path, dict[str, Any]], None],
    measure: Callable[[Path, Sequence[int], dict[str, Any]], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
) -> int:
    """Run an experiment on a recipe: clones of all arms, their trainings, seeds side by side, and
    the report.

    Experiments that use it have the same seeds and working folder, hence one DVC cache.

    Args:
        out: default of ``--out``.
        arms: parameters of each arm of a seed, by the name of its clone; of the recipe's.
        finish: does an arm's work in its clone, with its parameters.
        measure: result of the working folder, the seeds and the recipe's parameters.
        table: page of a result.
    """
    parser = parser_of(module, about, seeds="51,52,53", work=".vidbridge/bench-keep", out=out, jobs="seeds")
    parser.add_argument("--recipe", default="tiny", help="for a trial: smoke (default: %(default)s)")
    arguments = parser.parse_args()
    root, work = Path.cwd(), arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    recipe = yaml.safe_load((root / f"infra/recipes/{arguments.recipe}.yaml").read_text(encoding="utf-8"))
    of_seeds = [arms(recipe, seed) for seed in arguments.seeds]
    for of_seed in of_seeds:
        for name, params in of_seed.items():
            clone(root, work / name, params)

    def finish_seed(of_seed: Mapping[str, dict[str, Any]]) -> None:
        # One after the other, so that the next finds in the cache what they have in common.
        for name, params in of_seed.items():
            print(f"seed {params['seed']}, {params['recipe']}: see {work / name / 'repro.log'}", flush=True)
            finish(work / name, params)

    side_by_side(arguments.jobs, [partial(finish_seed, of_seed) for of_seed in of_seeds])
    result = measure(work, arguments.seeds, recipe)
    report(result, table(result), arguments.out)
    return 0


def clone(root: Path, folder: Path, params: Mapping[str, Any]) -> None:
    """Clone the committed state with these parameters; an existing clone is used again."""
    if not (folder / ".git").exists():
        subprocess.run(["git", "clone", "--quiet", "--local", str(root), str(folder)], check=True)
    (folder / paths.PARAMS_FILE).write_text(yaml.safe_dump(dict(params), sort_keys=False), encoding="utf-8")
    cache = str(folder.parent / "cache")
    subprocess.run([sys.executable, "-m", "dvc", "config", "--local", "cache.dir", cache], cwd=folder, check=True)


def tracking_store(folder: Path) -> dict[str, str]:
    """Environment variables that keep a clone's runs in the clone."""
    return {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}


def reproduce(folder: Path, *targets: str, **changes: str) -> None:
    """Run ``dvc repro`` in the clone; appends its output to ``repro.log`` there.

    Args:
        changes: variables of its environment.

    Raises:
        RuntimeError: it failed.
    """
    run(folder, "dvc", "repro", *targets, **changes)


def run(folder: Path, module: str, *arguments: str, **changes: str) -> None:
    """Run ``python -m module`` in the clone; appends its output to ``repro.log`` there.

    Args:
        changes: variables of its environment.

    Raises:
        RuntimeError: it failed.
    """
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "VIDBRIDGE_PROJECT": str(folder),
        "VIDBRIDGE_SCRATCH": str(folder / ".vidbridge/scratch"),
        **tracking_store(folder),
        **changes,
    }
    with (folder / "repro.log").open("a", encoding="utf-8") as log:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], cwd=folder, env=environ, stdout=log, stderr=log, check=False
        )
    if done.returncode:
        command = " ".join((module, *arguments[:1]))
        raise RuntimeError(f"{folder.name}: {command} failed with {done.returncode}; see {folder / 'repro.log'}")


def stage_cost(folder: Path, stage: str) -> Cost:
    """Cost of a stage in the clone that ran it.

    Raises:
        RuntimeError: it did not run there, but came out of the cache.
    """
    with patch.dict(os.environ, tracking_store(folder)):
        cost = latest_costs(Session(folder).client, folder).get(stage)
    if cost is None:
        raise RuntimeError(
            f"{folder}: {stage} was not timed here, its out came from the cache; delete {folder.parent} and start again"
        )
    return cost


def predictions(folder: Path, row: str) -> list[Score]:
    """Scores of a row's greedy replies in a clone."""
    return read_rows(paths.predictions_file(folder / paths.scores(row)), Score)


def mean_score(folder: Path, row: str) -> float | None:
    """Mean over tasks of a row in a clone."""
    return read_record(folder / paths.scores(row) / paths.SCORES_FILE, PolicyScores).mean


def seed_lines(result: Mapping[str, Any]) -> list[str]:
    """Begin a page: what was measured, and a table of ``rows`` with a line a seed."""
    names = [name for name in result["rows"][0] if name != "seed"]
    return [
        f"{result['measured']} Commit {result['commit'][:12]}.",
        "",
        f"| seed | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
        *(f"| {row['seed']} | {' | '.join(shown(row[name]) for name in names)} |" for row in result["rows"]),
    ]


def gain_lines(title: str, gains: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Table of gains of :func:`pooled`, a line each, by what it begins with."""
    tasks = list(next(iter(gains.values()))["tasks"])
    return [
        f"| {title} | {' | '.join(tasks)} | mean over tasks | t interval over seeds |",
        "|---" * (len(tasks) + 3) + "|",
        *(f"| {name}".rstrip() + f" | {gain_cells(gain, tasks)} |" for name, gain in gains.items()),
    ]


def shown(value: float | None) -> str:
    """Format a number as a cell."""
    return "-" if value is None else f"{value:.3f}"


def commit_of(folder: Path) -> str:
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def over_seeds(means: Sequence[float], confidence: float) -> list[float] | None:
    """Two ends of :func:`stages.tools.ablation.seeds.over_seeds`; None if the seeds give no
    spread."""
    found = seeds.over_seeds(means, confidence)
    return None if found is None else [found.low, found.high]


def signed(interval: Mapping[str, float]) -> str:
    """Format ``mean``, ``low`` and ``high`` as a cell of a table of gains."""
    return f"{interval['mean']:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}]"


def signed_spread(spread: Sequence[float] | None) -> str:
    """Format an interval over seeds as a cell of a table of gains."""
    return f"[{spread[0]:+.3f}, {spread[1]:+.3f}]" if spread else "none"


def pooled(pairs: Sequence[seeds.PolicyPair], confidence: float) -> dict[str, Any]:
    """Gain of the first policy over the second of each seed
    (:func:`stages.tools.ablation.seeds.pooled_gain`)."""
    mean, tasks = seeds.pooled_gain(pairs, confidence)
    return {
        "mean": mean.clips.model_dump(),
        "seeds": list(mean.seeds),
        "over_seeds": None if mean.over_seeds is None else [mean.over_seeds.low, mean.over_seeds.high],
        "tasks": {task: gain.clips.model_dump() for task, gain in tasks.items()},
    }


def gain_cells(gain: Mapping[str, Any], tasks: Iterable[str]) -> str:
    """Format a gain of :func:`pooled` as cells: each task, the mean over tasks, the interval over
    seeds."""
    cells = [signed(gain["tasks"][task]) for task in tasks]
    return " | ".join([*cells, f"**{signed(gain['mean'])}**", signed_spread(gain["over_seeds"])])


def report(result: Mapping[str, Any], page: str, out: Path) -> None:
    """Write a result, and its page beside it; print the page."""
    write_json(out, json.loads(json.dumps(result)))
    keep([page], out.with_suffix(".md"))
    print(page)
