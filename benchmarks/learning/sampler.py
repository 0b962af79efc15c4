"""Sampler that keeps the ratio of live groups against the mixture, in both GRPO rows of ``tiny``.

``make bench-sampler`` runs it. Fixed before the first run:

**What is trained.** Two arms a seed: ``mixture``, the recipe as it is, and ``ratio``, whose rows of
``grpo`` have ``sampler`` :data:`RATIO`. Corpus and cold start of a seed are the same for both, and
those of ``make bench-keep``, out of one DVC cache. In both arms ``gauges_every`` is on, which
changes no weight, because the share of dead groups of a task is logged with it alone.

**What is reported.** Test scores of the last row, greedy, on the 240 samples a task that evaluation
uses: the gain of ``ratio`` over ``mixture``, paired by sample, with an interval over the clips of
all seeds and a t interval over the seeds' own gains. Of each arm and row, by task and as means over
the seeds: the share of the prompts that it trained on, the share of their groups that were dead
(mean over steps), and the share of the task in all live groups, which the sampler holds to the
weights; all from ``history.jsonl``.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning.arms import (
    commit_of,
    compare_on_seeds,
    gain_lines,
    mean_score,
    pooled,
    predictions,
    reproduce,
    seed_lines,
    shown,
)
from stages.lib.evaluation.results import HistoryRow
from stages.lib.rows.jsonl import read_rows
from stages.runtime import paths
from stages.runtime.machine import measured
from stages.tools.ablation.results import content_digests
from stages.tools.ablation.seeds import PolicyPair

ARMS = ("mixture", "ratio")
RATIO = {"live_decay": 0.9, "least_live": 0.25}
#: Shares of a task in a row.
SHARES = ("prompts", "dead", "live")
CONFIDENCE = 0.95


def arm_params(params: Mapping[str, Any], arm: str, seed: int) -> dict[str, Any]:
    """The recipe's parameters changed as the arm says."""
    changed = copy.deepcopy(dict(params))
    changed |= {"recipe": f"sampler-{arm}", "seed": seed, "ablation": None}
    for row in changed["grpo"].values():
        # Any number logs dead groups at every step; this one takes the further pass over the
        # rollouts once.
        row["gauges_every"] = row["steps"]
        if arm == "ratio":
            row["sampler"] = dict(RATIO)
    changed["evaluation"]["of"] = [*changed["sft"], list(changed["grpo"])[-1]]
    return changed


def groups(folder: Path, weights: Mapping[str, float]) -> dict[str, dict[str, float | None]]:
    """Share of each task in the prompts of a row, share of its groups that were dead (None: it was
    not asked), and its share in the live groups (None: there were none).

    Args:
        folder: of the row, with its history.
        weights: of the row's tasks, which are their shares of the prompts where the history has no
            ``prompt_share``.
    """
    rows = [row.__pydantic_extra__ for row in read_rows(folder / paths.HISTORY_FILE, HistoryRow)]
    prompts, dead, live = {}, {}, {}
    for task, weight in weights.items():
        shares = [row.get(f"prompt_share/{task}", weight / sum(weights.values())) for row in rows]
        of_steps = [row.get(f"dead_groups/{task}") for row in rows]  # None: the step asked nothing of the task
        asked = [(share, part) for share, part in zip(shares, of_steps, strict=True) if part is not None]
        prompts[task], dead[task] = mean(shares), mean([part for _, part in asked])
        live[task] = sum(share * (1 - part) for share, part in asked)
    whole = sum(live.values())
    return {
        task: {"prompts": prompts[task], "dead": dead[task], "live": live[task] / whole if whole else None}
        for task in weights
    }


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the numbers among the values; None: there are none."""
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else None


def measure(work: Path, seeds: Sequence[int], params: Mapping[str, Any]) -> dict[str, Any]:
    start, last = next(iter(params["sft"])), list(params["grpo"])[-1]
    at = {(seed, arm): work / name_of(seed, arm) for seed in seeds for arm in ARMS}

    def pair(seed: int) -> PolicyPair:
        ratio, mixture = (predictions(at[seed, arm], last) for arm in ("ratio", "mixture"))
        return PolicyPair(ratio, mixture, content_digests(at[seed, "ratio"]))

    def means(arm: str, row: str, weights: Mapping[str, float]) -> dict[str, dict[str, float | None]]:
        of_seeds = [groups(at[seed, arm] / paths.model(row), weights) for seed in seeds]
        return {task: {name: mean(of[task][name] for of in of_seeds) for name in SHARES} for task in weights}

    return {
        "measured": measured("torch", "transformers", "trl"),
        "commit": commit_of(next(iter(at.values()))),
        "rows": [
            {
                "seed": seed,
                start: mean_score(at[seed, ARMS[0]], start),
                **{arm: mean_score(at[seed, arm], last) for arm in ARMS},
            }
            for seed in seeds
        ],
        "gain": pooled([pair(seed) for seed in seeds], CONFIDENCE),
        "groups": {
            row: {arm: means(arm, row, trained["tasks"]) for arm in ARMS} for row, trained in params["grpo"].items()
        },
    }


def table(result: Mapping[str, Any]) -> str:
    """Format the result as three Markdown tables."""
    lines = [*seed_lines(result), "", *gain_lines("ratio - mixture", {"": result["gain"]}), ""]
    tasks = list(result["gain"]["tasks"])
    lines += ["Share of prompts / dead groups / share of live groups:", ""]
    lines += [f"| row, arm | {' | '.join(tasks)} |", "|---" * (len(tasks) + 1) + "|"]
    for row, arms in result["groups"].items():
        for arm, of_task in arms.items():
            cells = [
                " / ".join(shown(of_task[task][name]) for name in SHARES) if task in of_task else "" for task in tasks
            ]
            lines.append(f"| {row}, {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def name_of(seed: int, arm: str) -> str:
    return f"{seed}-sampler-{arm}"


def finish(folder: Path, params: dict[str, Any]) -> None:
    reproduce(folder, *(f"evaluate@{row}" for row in params["evaluation"]["of"]))


def main() -> int:
    return compare_on_seeds(
        "benchmarks.learning.sampler",
        __doc__,
        out="benchmarks/results/learning/sampler.json",
        arms=lambda params, seed: {name_of(seed, arm): arm_params(params, arm, seed) for arm in ARMS},
        finish=finish,
        measure=measure,
        table=table,
    )


if __name__ == "__main__":
    sys.exit(main())
