"""Reinforcement learning with video on one row of the ``grpo`` table.

Run as ``python -m stages grpo ROW``; writes ``models/ROW``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from stages.domain.core.prompts import sample_prompt
from stages.domain.core.replies import render_reply
from stages.lib.engine.process import check_engine
from stages.lib.judging.batch import usages_of
from stages.lib.judging.build import held_out_of, referee_of
from stages.lib.rows.samples import load_samples
from stages.lib.training.mixture import Example
from stages.lib.video.open import frame_loader
from stages.params import load_params
from stages.runtime import paths
from stages.runtime.dispatch import one_row
from stages.runtime.ranks.distributed import launch
from stages.tracking.runs.run import kept_tag, stage_run
from stages.tracking.runs.scratch import scratch_of


def main(*arguments: str) -> int:
    params = load_params()
    name = one_row("grpo", list(arguments), list(params.grpo))
    engine = check_engine()  # first: an engine that cannot draw should fail before a model is loaded
    if (status := launch("stages", ("grpo", *arguments))) is not None:
        return status
    # After the launch: the launching process needs no TRL.
    from stages.grpo.rewards import JudgedRewards
    from stages.grpo.rollout_log import RolloutLog
    from stages.grpo.train import train_grpo
    from stages.lib.models.resizing import fit_of
    from stages.lib.training.loop import Hooks
    from stages.lib.validation.watch import validation_samples, watch_of

    row = params.grpo[name]
    with stage_run(f"grpo@{name}", params) as run:
        run.tag({"rollout_engine": engine})
        policy = paths.final_model(row.init)
        loader, referee = frame_loader(params, partial(fit_of, policy)), referee_of(params)
        samples = load_samples("train", row.trained_tasks, Path(row.samples))
        # Under a mixed policy the whole trace, never a careless or a brief form of it.
        written = {
            s.sample_id: render_reply(s.trace.thinking, s.trace.answer)
            for s in samples
            if row.mixed is not None and s.trace is not None
        }
        examples = [
            Example(
                s.sample_id,
                s.task,
                sample_prompt(s, params.prompt),
                written.get(s.sample_id),
                partial(loader.load, s),
                partial(loader.outline, s),
            )
            for s in samples
        ]
        held_out = held_out_of(params, referee)
        watched = [] if row.watch is None else validation_samples(f"grpo.{name}", row, row.watch, params.seed)
        with scratch_of(f"grpo@{name}") as scratch:
            # The cost of judging depends on the cache, so it is logged and stays out of the history
            # in the out.
            on_metrics = scratch.guarded(
                lambda step, values: run.log(
                    step,
                    {
                        **values,
                        **usages_of(referee),
                        **(usages_of(held_out, "held_out_judge") if held_out else {}),
                    },
                )
            )
            summary = train_grpo(
                policy,
                examples,
                row,
                stage=f"grpo@{name}",
                seed=params.seed,
                rewards=JudgedRewards(params, name, samples, referee, held_out),
                out=paths.model(name),
                scratch=scratch.folder,
                hooks=Hooks(on_metrics, scratch.guarded(run.checkpoint), scratch.check),
                rollout_log=RolloutLog(
                    f"grpo@{name}",
                    row,
                    scratch.folder,
                    {s.sample_id: s for s in samples},
                    params.prompt,
                    loader.load,
                    run.page,
                ),
                watch=watch_of(
                    row,
                    watched,
                    label=f"grpo@{name}",
                    texts=params.prompt,
                    load=loader.load,
                    referee=referee,
                    rules=params.rewards,
                    batch_size=row.completions_per_device,
                    seed=params.seed,
                ),
            )
        run.cpu_s_elsewhere = summary["cpu_s_elsewhere"]
        run.tag({"engine": summary["engine"], "resumed_from": str(summary["resumed_from"])} | kept_tag(summary))
        run.summary(loader.counts())
        print(
            f"grpo@{name}: {row.steps} steps of {row.prompts_per_step} prompts x {row.rollouts} rollouts;"
            f" resumed from step {summary['resumed_from']}, trained by {summary['engine']}"
        )
    return 0
