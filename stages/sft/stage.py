"""Cold start: teach the think/answer format and the tasks on traces of the training split.

Run as ``python -m stages sft ROW``; writes ``models/ROW``.
"""

from __future__ import annotations

from functools import partial

from stages.domain.core.prompts import sample_prompt
from stages.errors import InputError
from stages.lib.judging.batch import usages_of
from stages.lib.judging.build import referee_of
from stages.lib.models.resizing import fit_of
from stages.lib.rows.samples import load_samples
from stages.lib.training.loop import Hooks
from stages.lib.training.mixture import Example
from stages.lib.validation.watch import validation_samples, watch_of
from stages.lib.video.open import frame_loader
from stages.params import load_params
from stages.runtime import paths
from stages.runtime.dispatch import one_row
from stages.runtime.ranks.distributed import launch
from stages.sft.teacher import teach
from stages.sft.train import train_sft
from stages.tracking.runs.run import kept_tag, stage_run
from stages.tracking.runs.scratch import scratch_of


def main(*arguments: str) -> int:
    params = load_params()
    name = one_row("sft", list(arguments), list(params.sft))
    row = params.sft[name]
    if (status := launch("stages", ("sft", *arguments), shards=row.shards)) is not None:
        return status
    with stage_run(f"sft@{name}", params) as run:
        policy = paths.final_model(row.init)
        loader = frame_loader(params, partial(fit_of, policy))
        samples = load_samples("train", row.tasks)
        examples = [
            Example(
                s.sample_id,
                s.task,
                sample_prompt(s, params.prompt),
                reply,
                partial(loader.load, s),
                partial(loader.outline, s),
            )
            for s in samples
            if (reply := teach(s, row, params.seed)) is not None
        ]
        if not examples:
            raise InputError(
                f"sft.{name}.tasks",
                f"none of {len(samples)} samples has a trace to learn from",
                "have traces written, or set `sft: {}`",
            )
        watch, referee = None, None
        if (watched := row.watch) is not None:
            referee = referee_of(params)
            watch = watch_of(
                row,
                validation_samples(f"sft.{name}", row, watched, params.seed),
                label=f"sft@{name}",
                texts=params.prompt,
                load=loader.load,
                referee=referee,
                rules=params.rewards,
                batch_size=row.samples_per_device,
                seed=params.seed,
            )
        with scratch_of(f"sft@{name}") as scratch:
            on_metrics = scratch.guarded(
                lambda step, values: run.log(step, {**values, **(usages_of(referee) if referee is not None else {})})
            )
            summary = train_sft(
                policy,
                examples,
                row,
                stage=f"sft@{name}",
                seed=params.seed,
                out=paths.model(name),
                scratch=scratch.folder,
                hooks=Hooks(on_metrics, scratch.guarded(run.checkpoint), scratch.check),
                watch=watch,
            )
        run.cpu_s_elsewhere = summary["cpu_s_elsewhere"]
        run.tag({"engine": summary["engine"], "resumed_from": str(summary["resumed_from"])} | kept_tag(summary))
        run.summary({**loader.counts(), "without_trace": len(samples) - len(examples)})
        print(f"sft@{name}: {row.steps} steps on {len(examples):,} samples, {len(samples) - len(examples)} without a"
        f" trace left out; resumed from step {summary['resumed_from']}, trained by {summary['engine']}")  # fmt: skip
    return 0
