"""A watch of training that takes a second: some of the examples, scored by a plain function; and,
run as several processes, trainings that are watched."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState

from stages.domain.core.records import Sample, Score
from stages.grpo.train import train_grpo
from stages.lib.training.mixture import Example
from stages.lib.training.watching import Watch
from stages.lib.validation.watch import Asking, measure
from stages.params import WatchParams, load_params
from stages.runtime.ranks.distributed import launch
from stages.sft.train import train_sft
from tests.support.checkout import ROOT
from tests.support.training.tiny import (
    Paying,
    Seen,
    examples_of_colours,
    grpo_row,
    length_reward,
    sample_of,
    sft_row,
    share_by_length,
    tasks_of,
)

#: Scores of replies, as shares of the maximum; None: there is no verdict.
Shares = Callable[[Any, Sequence[str]], Sequence[float | None]]


def never(*_: Any) -> None:
    """Any number of replies may have no verdict."""


def settings(**changes: Any) -> WatchParams:
    values: dict[str, Any] = {"every": 2, "samples_per_task": 3, "max_new_tokens": 8, "keep": "last"}
    return WatchParams.model_validate({**values, "sampled": {"replies": 3, "temperature": 1.0}, **changes})


def watching(
    examples: Sequence[Example],
    shares: Shares = share_by_length,
    check: Callable[[int, int, str], None] = never,
    asked: list[int] | None = None,
    **changes: Any,
) -> Watch:
    """Watch the first examples; ``asked`` gets the number of replies of each call of the judge."""
    shown = {example.sample_id: example.load for example in examples}
    chosen = sorted(map(sample_of, examples[:6]), key=lambda sample: sample.task)

    def score(samples: Sequence[Sample], replies: Sequence[str]) -> list[Score]:
        if asked is not None:
            asked.append(len(replies))
        return [
            Score(sample_id=sample.sample_id, task=sample.task, reply=reply, format_ok=True, value=value)
            for sample, reply, value in zip(samples, replies, shares(samples, replies), strict=True)
        ]

    texts = load_params(ROOT / "params.yaml").prompt
    params = settings(**changes)
    asking = Asking("stage", chosen, texts, lambda s: shown[s.sample_id](), score, check, 4, "1/watch")
    return Watch(params.every, params.keep, lambda *whom: measure(asking, params, *whom))


def main(home: Path, frozen: bool) -> int:
    if (status := launch("tests.support.training.watched", sys.argv[1:])) is not None:
        return status
    examples = examples_of_colours(12)
    told: dict[str, Any] = {}
    freeze = ["vision"] if frozen else []
    rows = {
        "sft": lambda **kwargs: train_sft(row=sft_row(steps=3, samples_per_step=4, freeze=freeze), **kwargs),
        "grpo": lambda **kwargs: train_grpo(
            row=grpo_row(steps=3, prompts_per_step=2, completions_per_device=2, freeze=freeze),
            rewards=Paying(length_reward, tasks=tasks_of(examples)),
            **kwargs,
        ),
    }
    for name, train in rows.items():
        for kind, watch in (("watched", watching(examples, keep="best")), ("unwatched", None)):
            AcceleratorState._reset_state()  # the verbs train once a process; here one start has to do for all
            seen, place = Seen(), home / f"{name}-{kind}"
            train(
                model_folder=home / "base",
                examples=examples,
                stage=name,
                seed=1,
                hooks=seen.hooks,
                out=place / "out",
                scratch=place / "scratch",
                watch=watch,
            )
            told[f"{name}-{kind}"] = [[step, values] for step, values in seen.metrics if "watch/greedy" in values]
    if told["sft-watched"]:  # the first process
        (home / "told.json").write_text(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:] == ["frozen"]))
