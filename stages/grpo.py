"""Reinforcement learning with video on one row of the ``grpo`` table.

Run as ``python -m stages grpo ROW``; writes ``models/ROW``.
"""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path

from stages import layout
from stages.domain.prompts import sample_prompt
from stages.domain.records import Score
from stages.domain.scoring import reward, score_reply
from stages.entry import one_row
from stages.inputs import frame_loader, load_samples
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

        @lru_cache(maxsize=row.prompts_per_step * row.rollouts)  # the reward and the format share ask about the same replies
        def scored(sample_id: str, reply: str) -> Score:
            return score_reply(samples[sample_id], reply, referee, params.rewards)

        summary = train_grpo(
            layout.final_model(row.init),
            examples,
            row,
            reward=lambda ids, replies: [reward(scored(i, reply), params.rewards) for i, reply in zip(ids, replies, strict=True)],
            well_formed=lambda ids, replies: [scored(i, reply).format_ok for i, reply in zip(ids, replies, strict=True)],
            stage=f"grpo@{name}",
            seed=params.seed,
            out=layout.model(name),
            scratch=scratch_folder(
                f"grpo@{name}",
                [row, params.prompt, params.rewards, params.judge, params.seed],
                [Path(row.samples), layout.model(row.init)],
                [Path("stages/learning"), Path("stages/domain"), Path("stages/judging"), Path(__file__)],
            ),
            on_metrics=run.log,
            on_checkpoint=run.checkpoint,
        )
        run.summary({"frames_served_by_decord": loader.stats.decord})
        print(
            f"grpo@{name}: {row.steps} steps of {row.prompts_per_step} prompts x {row.rollouts} rollouts;"
            f" resumed from step {summary['resumed_from']}, DeepSpeed stage {summary['deepspeed_stage']}"
        )
    return 0
