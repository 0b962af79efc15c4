"""Gain of reinforcement learning over SFT on several seeds, with the controls that could explain it
away.

``make bench-learning`` runs it: for every seed a corpus of its own, and four arms of the present
recipe, each a plain ``dvc repro`` in a clone of the committed state (they share one DVC cache, so
what arms have in common is made once, and a run that was stopped goes on where it was):

- ``recipe``   the recipe as it is: ``careless_share`` of the answers that SFT sees are right and
  short, a fault that GRPO can mend
- ``clean``    every answer is right and complete; in the proxy tasks the thinking before half of
  them is brief, and only reward can tell which way of thinking pays
- ``thorough`` complete answers, full thinking: what is left for GRPO when a person has picked the
  traces
- ``longer``   no GRPO; SFT on the recipe's teacher for as many more steps as take GRPO's time
  (``EXTRA_SFT_STEPS``)

The report was fixed before measuring: greedy decoding on the test split, mean over tasks,
paired by sample.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.learning.arms import (
    clone,
    commit_of,
    gain_cells,
    parser_of,
    pooled,
    predictions,
    report,
    reproduce,
    side_by_side,
)
from stages.domain.core.records import Score
from stages.domain.core.replies import parse_reply
from stages.domain.statistics.metrics import task_results
from stages.runtime import paths
from stages.runtime.machine import measured
from stages.tools.ablation.results import content_digests
from stages.tools.ablation.seeds import PolicyPair

ARMS = ("recipe", "clean", "thorough", "longer")
#: The teachers of the arms that differ from the recipe's in nothing else.
TEACHERS: dict[str, dict[str, Any]] = {
    "clean": {"careless_share": 0.0, "brief_share": {"dark_event_infer": 0.5, "mix_vid_qa": 0.5}},
    "thorough": {"careless_share": 0.0, "brief_share": {}},
}
#: Tasks in which brief thinking is taught beside the full one and the answer has to be found; the
#: length of a policy's thinking is measured there.
THINKING_TASKS = ("dark_event_infer", "mix_vid_qa")
#: Both GRPO rows of `tiny` take about as long as so many SFT steps (stage times of the same run,
#: one core).
EXTRA_SFT_STEPS = 500
CONFIDENCE = 0.95


def arm_params(params: dict[str, Any], arm: str, seed: int) -> dict[str, Any]:
    """The recipe's parameters changed as the arm says."""
    changed = copy.deepcopy(params)
    changed |= {"seed": seed, "ablation": None}
    changed["gate"]["registered_model"] += "-bench"
    (start,) = changed["sft"]
    # Only what the tables need: the untrained start scores 0, and other arms' middle rows
    # answer no question asked here.
    changed["evaluation"]["of"] = [row for row in changed["evaluation"]["of"] if row != "base"]
    if arm in TEACHERS:
        changed["sft"][start] |= TEACHERS[arm]
        changed["evaluation"]["of"] = [start, list(changed["grpo"])[-1]]
    if arm == "longer":
        changed["sft"][start]["steps"] += EXTRA_SFT_STEPS
        changed["difficulty"], changed["grpo"] = {}, {}
        changed["evaluation"]["of"] = [start]
    return changed


#: A row of an arm: the clone it was made in, and its name.
Made = tuple[Path, str]


def thinking_words(rows: Sequence[Score]) -> float:
    """Mean number of words between the think tags in :data:`THINKING_TASKS`; a reply without them
    has none.
    """
    replies = [parse_reply(row.reply) for row in rows if row.task in THINKING_TASKS]
    return float(np.mean([len(reply.thinking.split()) if reply else 0 for reply in replies]))


def pair(later: Made, earlier: Made) -> PolicyPair:
    return PolicyPair(predictions(*later), predictions(*earlier), content_digests(later[0]))


def measure(work: Path, seeds: Sequence[int], rows: dict[str, Any]) -> dict[str, Any]:
    """Absolute means of every arm and row, and the gains in question."""
    start, *_, last = rows["of"]
    at = {(seed, arm): work / f"{seed}-{arm}" for seed in seeds for arm in ARMS}
    policies = {
        **{f"recipe: {row}": ("recipe", row) for row in rows["of"]},
        **{f"{arm}: {name}": (arm, row) for arm in TEACHERS for name, row in (("SFT", start), (last, last))},
        "longer SFT": ("longer", start),
    }
    absolute = {}
    for name, (arm, row) in policies.items():
        results = [task_results(predictions(at[s, arm], row), content_digests(at[s, arm]), CONFIDENCE) for s in seeds]
        absolute[name] = {
            "tasks": {task: float(np.mean([result[task].mean for result in results])) for task in results[0]},
            "seeds": [float(np.mean([r.mean for r in result.values()])) for result in results],
            "format": float(np.mean([np.mean([r.format for r in result.values()]) for result in results])),
            "thinking_words": float(np.mean([thinking_words(predictions(at[s, arm], row)) for s in seeds])),
        }
    compared = {
        **{f"recipe: {row} - SFT": (("recipe", row), ("recipe", start)) for row in rows["of"][1:]},
        **{f"{arm}: {last} - SFT": ((arm, last), (arm, start)) for arm in TEACHERS},
        "longer SFT - SFT": (("longer", start), ("recipe", start)),
        f"recipe: {last} - longer SFT": (("recipe", last), ("longer", start)),
        f"recipe: {last} - thorough: SFT": (("recipe", last), ("thorough", start)),
    }
    gains = {
        name: pooled([pair((at[s, later[0]], later[1]), (at[s, earlier[0]], earlier[1])) for s in seeds], CONFIDENCE)
        for name, (later, earlier) in compared.items()
    }
    return {
        "measured": measured("torch", "transformers", "trl"),
        "seeds": list(seeds),
        "commit": commit_of(next(iter(at.values()))),
        "absolute": absolute,
        "gains": gains,
    }


def table(result: dict[str, Any]) -> str:
    """Format the result as two Markdown tables."""
    tasks = list(next(iter(result["absolute"].values()))["tasks"])
    seeds = ", ".join(str(seed) for seed in result["seeds"])
    lines = [f"{result['measured']} Commit {result['commit'][:12]}, seeds {seeds}.", ""]
    lines += [
        f"| policy | {' | '.join(tasks)} | mean, a seed each | format | words of thinking |",
        "|---" * (len(tasks) + 4) + "|",
    ]
    for name, row in result["absolute"].items():
        cells = " | ".join(f"{row['tasks'][task]:.3f}" for task in tasks)
        seed_means = " ".join(f"{mean:.3f}" for mean in row["seeds"])
        lines.append(f"| {name} | {cells} | {seed_means} | {row['format']:.3f} | {row['thinking_words']:.1f} |")
    lines += [
        "",
        f"| gain | {' | '.join(tasks)} | mean over tasks | t interval over seeds |",
        "|---" * (len(tasks) + 3) + "|",
    ]
    for name, gain in result["gains"].items():
        lines.append(f"| {name} | {gain_cells(gain, tasks)} |")
    return "\n".join(lines)


def main() -> int:
    parser = parser_of(
        "benchmarks.learning",
        __doc__,
        seeds="21,22,23",
        work=".vidbridge/bench-learning",
        out="benchmarks/results/learning/learning.json",
        jobs="arms",
    )
    arguments = parser.parse_args()
    root, work, seeds = Path.cwd(), arguments.work.resolve(), arguments.seeds
    work.mkdir(parents=True, exist_ok=True)
    params = yaml.safe_load((root / paths.PARAMS_FILE).read_text(encoding="utf-8"))

    def run(seed: int, arm: str, *targets: str) -> None:
        folder = work / f"{seed}-{arm}"
        print(f"seed {seed}, {arm}: {' '.join(targets)}, see {folder / 'repro.log'}", flush=True)
        reproduce(folder, *targets)

    for seed in seeds:
        for arm in ARMS:
            clone(root, work / f"{seed}-{arm}", arm_params(params, arm, seed))
    # Stages that the arms of a seed share run once, before the arms start, which find them in the
    # cache.
    side_by_side(arguments.jobs, [partial(run, seed, ARMS[0], "base", "baselines") for seed in seeds])
    side_by_side(arguments.jobs, [partial(run, seed, arm, "summary") for seed in seeds for arm in ARMS])
    result = measure(work, seeds, {"of": [row for row in params["evaluation"]["of"] if row != "base"]})
    report(result, table(result), arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
