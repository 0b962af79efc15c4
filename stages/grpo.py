"""Reinforcement learning with video on one row of the ``grpo`` table.

Run as ``python -m stages grpo ROW``; writes ``models/ROW``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

from tqdm import tqdm

from stages import layout
from stages.domain.gauges import alarms, measure
from stages.domain.prompts import sample_prompt
from stages.domain.records import Score
from stages.domain.scoring import reward
from stages.entry import one_row
from stages.inputs import frame_loader, load_samples
from stages.judging.batch import check_judged, score_replies, usage_of
from stages.judging.choose import judge_of
from stages.learning.distributed import launch
from stages.learning.examples import Example
from stages.params import load_params
from stages.scratch import scratch_folder
from stages.tracking.runs import stage_run


def main(*arguments: str) -> int:
    params = load_params()
    name = one_row("grpo", list(arguments), list(params.grpo))
    if (status := launch("stages", ("grpo", *arguments))) is not None:
        return status
    from stages.learning.grpo import train_grpo  # after the launch: the launching process needs no TRL

    row = params.grpo[name]
    with stage_run(f"grpo@{name}", params) as run:
        loader, referee = frame_loader(params), judge_of(params.judge)
        samples = {sample.sample_id: sample for sample in load_samples("train", row.trained_tasks, Path(row.samples))}
        examples = [
            Example(s.sample_id, s.task, sample_prompt(s, params.prompt), None, partial(loader.load, s)) for s in samples.values()
        ]

        @lru_cache(maxsize=1)  # the reward and the format share ask about the same replies, one after the other
        def scored(ids: tuple[str, ...], replies: tuple[str, ...]) -> list[Score]:
            return score_replies([samples[i] for i in ids], replies, referee, params.rewards)

        raised: set[str] = set()

        def gauges(ids: Sequence[str], replies: Sequence[str], rewards: Sequence[float | None]) -> dict[str, float]:
            found = measure([samples[i] for i in ids], replies, rewards, params.rewards)
            for gauge, alarm in alarms(found).items():
                if gauge not in raised:
                    tqdm.write(f"grpo@{name}: look at {alarm}", file=sys.stderr)
            raised.clear()
            raised.update(alarms(found))
            return found

        summary = train_grpo(
            layout.final_model(row.init),
            examples,
            row,
            reward=lambda ids, replies: [reward(score, params.rewards) for score in scored(tuple(ids), tuple(replies))],
            well_formed=lambda ids, replies: [score.format_ok for score in scored(tuple(ids), tuple(replies))],
            on_masked=lambda masked, rollouts: check_judged(referee, masked, rollouts, f"a step of grpo@{name}"),
            gauges=gauges,
            stage=f"grpo@{name}",
            seed=params.seed,
            out=layout.model(name),
            scratch=scratch_folder(
                f"grpo@{name}",
                [row, params.prompt, params.rewards, params.judge, params.seed],
                [Path(row.samples), layout.model(row.init)],
                [Path("stages/learning"), Path("stages/domain"), Path("stages/judging"), Path(__file__)],
            ),
            # What judging cost depends on what was cached: it is reported, and stays out of the history that the out holds.
            on_metrics=lambda step, values: run.log(step, {**values, **usage_of(referee)}),
            on_checkpoint=run.checkpoint,
        )
        run.summary({"frames_served_by_decord": loader.stats.decord})
        print(
            f"grpo@{name}: {row.steps} steps of {row.prompts_per_step} prompts x {row.rollouts} rollouts;"
            f" resumed from step {summary['resumed_from']}, DeepSpeed stage {summary['deepspeed_stage']}"
        )
    return 0
