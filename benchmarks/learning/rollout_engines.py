"""Rollouts by vLLM, and by vLLM one generation ahead, against this project's own decoding: the
recipe ``tiny`` on several seeds.

``make bench-engine-learning`` runs it (``make vllm`` first builds the engine). Fixed before the
first run:

**What is trained.** `tiny` as it is, both GRPO rows from one cold start a seed, in three arms:

- ``hf``     the training process decodes its rollouts
- ``vllm``   an engine on the same machine draws them (``VIDBRIDGE_ROLLOUT_ENGINE=vllm``)
- ``ahead``  as ``vllm``, with ``staleness: 1``: while a step trains, the next generation is drawn

An engine has a sampler of its own, so the arms draw other replies and part in the first step: they
are samples of one training, not copies of it.

**What is reported**, on the 240 test samples a task that evaluation uses, greedy, decoded by this
project in all arms: each seed's score; the difference to ``hf``, paired by sample, with an interval
over the recordings of all seeds and a t interval over the seeds; and the largest difference between
a token's log-probability when it was drawn and when it was trained on, which for ``ahead`` is also
that of the weights.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.learning.arms import (
    commit_of,
    compare_on_seeds,
    gain_lines,
    mean_score,
    pooled,
    predictions,
    reproduce,
    seed_lines,
)
from stages.lib.engine.process import ENVIRONMENT, ENVIRONMENT_VARIABLE, VARIABLE, engine_python
from stages.lib.evaluation.results import HistoryRow
from stages.lib.rows.jsonl import read_rows
from stages.runtime import paths
from stages.runtime.machine import measured
from stages.tools.ablation.results import content_digests
from stages.tools.ablation.seeds import PolicyPair

ARMS = ("hf", "vllm", "ahead")
GAUGE = "sampling/logp_difference/max"
CONFIDENCE = 0.95


def arm_params(params: Mapping[str, Any], arm: str, seed: int) -> dict[str, Any]:
    """Parameters of one arm of one seed."""
    table = copy.deepcopy(dict(params))
    table |= {"recipe": f"rollouts-{arm}", "seed": seed, "ablation": None}
    # What the tables need.
    table["evaluation"]["of"] = [next(iter(table["sft"])), list(table["grpo"])[-1]]
    if arm == "ahead":
        for row in table["grpo"].values():
            row["staleness"] = 1
    return table


def name_of(seed: int, arm: str) -> str:
    """Name of the clone of an arm."""
    return f"{seed}-rollouts-{arm}"


def finish(folder: Path, params: Mapping[str, Any]) -> None:
    """Train and evaluate an arm in its clone."""
    if not folder.name.endswith("-hf"):
        reproduce(folder, *(f"sft@{row}" for row in params["sft"]))
        engine = {VARIABLE: "vllm", ENVIRONMENT_VARIABLE: str(Path.cwd() / ENVIRONMENT)}
        # Who draws is no parameter: DVC would take the other arm's out of its cache.
        reproduce(folder, "--no-run-cache", *(f"grpo@{row}" for row in params["grpo"]), **engine)
    reproduce(folder, *(f"evaluate@{row}" for row in params["evaluation"]["of"]))


def measure(work: Path, seeds: Sequence[int], params: Mapping[str, Any]) -> dict[str, Any]:
    """Scores and gauges of all arms, and their differences."""
    start, last = next(iter(params["sft"])), list(params["grpo"])[-1]
    at = {(seed, arm): work / name_of(seed, arm) for seed in seeds for arm in ARMS}

    def pair(seed: int, arm: str) -> PolicyPair:
        own, theirs = (predictions(at[seed, name], last) for name in (arm, "hf"))
        return PolicyPair(own, theirs, content_digests(at[seed, arm]))

    def gauge(arm: str) -> float:
        rows = [
            row.__pydantic_extra__ or {}
            for seed in seeds
            for name in params["grpo"]
            for row in read_rows(at[seed, arm] / paths.model(name) / paths.HISTORY_FILE, HistoryRow)
        ]
        return max(float(row[GAUGE]) for row in rows)

    return {
        "measured": measured("torch", "transformers", "trl"),
        "commit": commit_of(next(iter(at.values()))),
        "rows": [
            {
                "seed": seed,
                start: mean_score(at[seed, ARMS[0]], start),
                **{f"{last}, {arm}": mean_score(at[seed, arm], last) for arm in ARMS},
            }
            for seed in seeds
        ],
        "gauge": {arm: gauge(arm) for arm in ARMS[1:]},
        "difference": {arm: pooled([pair(seed, arm) for seed in seeds], CONFIDENCE) for arm in ARMS[1:]},
    }


def table(result: Mapping[str, Any]) -> str:
    """Format the result as two Markdown tables."""
    lines = [*seed_lines(result), "", *gain_lines("minus hf", result["difference"])]
    largest = ", ".join(f"{arm} {value:.1e}" for arm, value in result["gauge"].items())
    return "\n".join([*lines, "", f"Largest difference of a token's log-probability, drawn and trained on: {largest}."])


def main() -> int:
    engine_python()  # before an hour of training
    return compare_on_seeds(
        "benchmarks.learning.rollout_engines",
        __doc__,
        out="benchmarks/results/learning/rollout-engines.json",
        arms=lambda params, seed: {name_of(seed, arm): arm_params(params, arm, seed) for arm in ARMS},
        finish=finish,
        measure=measure,
        table=table,
    )


if __name__ == "__main__":
    sys.exit(main())
