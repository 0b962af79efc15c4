"""Cold start: teach the think/answer format and the tasks on traces of the training split.

Run as ``python -m stages sft ROW``; writes ``models/ROW``. The generated corpus is its own teacher. ``careless_share`` of its answers
are right but short, which is what reinforcement learning then has to mend; ``brief_share`` of its replies think in brief and are as
right, and only reward can tell which way of thinking pays.
"""

from __future__ import annotations

from functools import partial
from random import Random

from stages.domain.core.prompts import sample_prompt
from stages.domain.core.records import Sample
from stages.domain.core.replies import render_reply
from stages.lib.models.processor import fit_of
from stages.lib.rows.samples import InputError, frame_loader, load_samples
from stages.lib.training.loop import Hooks
from stages.lib.training.mixture import Example
from stages.params import SftRow, load_params
from stages.runtime import paths
from stages.runtime.dispatch import one_row
from stages.runtime.distributed import launch
from stages.sft.train import train_sft
from stages.tracking.runs.run import stage_run
from stages.tracking.runs.scratch import scratch_of


def teach(sample: Sample, row: SftRow, seed: int) -> str | None:
    """What the teacher replies to this sample; None when there is no trace. Careless or not, brief or not are drawn for each sample
    on its own."""
    trace = sample.trace
    if trace is None:
        return None
    careless = Random(f"{seed}/teacher/{sample.sample_id}").random() < row.careless_share
    brief = Random(f"{seed}/teacher/{sample.sample_id}/thinking").random() < row.brief_share.get(sample.task, 0.0)
    return render_reply(
        (brief and trace.brief_thinking) or trace.thinking,
        (careless and trace.careless_answer) or trace.answer,
    )


def main(*arguments: str) -> int:
    params = load_params()
    name = one_row("sft", list(arguments), list(params.sft))
    if (status := launch("stages", ("sft", *arguments))) is not None:
        return status
    row = params.sft[name]
    with stage_run(f"sft@{name}", params) as run:
        policy = paths.final_model(row.init)
        loader = frame_loader(params, partial(fit_of, policy))
        samples = load_samples("train", row.tasks)
        examples = [
            Example(s.sample_id, s.task, sample_prompt(s, params.prompt), reply, partial(loader.load, s))
            for s in samples
            if (reply := teach(s, row, params.seed)) is not None
        ]
        if not examples:
            raise InputError(
                f"sft.{name}.tasks: none of {len(samples)} samples has a trace to learn from; write traces, or set `sft: {{}}`"
            )
        with scratch_of(f"sft@{name}") as scratch:
            summary = train_sft(
                policy,
                examples,
                row,
                stage=f"sft@{name}",
                seed=params.seed,
                out=paths.model(name),
                scratch=scratch.folder,
                hooks=Hooks(scratch.guarded(run.log), scratch.guarded(run.checkpoint), scratch.check),
            )
        run.tag({"engine": summary["engine"], "resumed_from": str(summary["resumed_from"])})
        run.summary({**loader.counts(), "without_trace": len(samples) - len(examples)})
        print(f"sft@{name}: {row.steps} steps on {len(examples):,} samples, {len(samples) - len(examples)} without a trace left out;"
              f" resumed from step {summary['resumed_from']}, trained by {summary['engine']}")  # fmt: skip
    return 0
