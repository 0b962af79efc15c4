"""Write the base policy into ``models/base``: a tiny model of the real architecture, or a model
from the hub.

Run as ``python -m stages base``.
"""

from __future__ import annotations

from stages.base.tiny import build_tiny
from stages.domain.core.prompts import sample_prompt
from stages.domain.core.records import Checkpoint
from stages.domain.core.replies import ANALYSIS_SCAFFOLDING, render_reply
from stages.lib.models.load import load_pretrained, save_model
from stages.lib.rows.jsonl import write_json, write_rows
from stages.lib.rows.samples import load_samples, samples_present
from stages.params import Params, TinyModelParams, load_params
from stages.runtime import paths
from stages.tracking.runs.run import stage_run


def texts(params: Params) -> list[str]:
    """Training texts of the tiny tokenizer: prompts and replies of the training split."""
    lines: list[str] = []
    for sample in load_samples("train", samples_present()["train"]):
        lines.append(sample_prompt(sample, params.prompt))
        if sample.trace is not None:
            lines += [render_reply(sample.trace.thinking, sample.trace.answer), sample.trace.careless_answer or ""]
    return lines


def main() -> int:
    params = load_params()
    with stage_run("base", params) as run:
        if isinstance(params.model, TinyModelParams):
            model, processor = build_tiny(params.model, texts(params), ANALYSIS_SCAFFOLDING, params.seed)
        else:
            model, processor = load_pretrained(
                params.model.name, params.model.revision, params.model.precision, params.model.max_pixels_per_frame
            )
        save_model(model, processor, paths.final_model("base"))
        counts = {
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "tokens": len(processor.tokenizer),
        }
        checkpoint = Checkpoint(stage="base", step=0, path=paths.FINAL, final=True)
        write_rows(paths.model("base") / paths.CHECKPOINTS_FILE, [checkpoint])
        write_json(paths.model("base") / paths.SUMMARY_FILE, counts)
        run.checkpoint(checkpoint, paths.final_model("base"))
        run.summary({name: float(value) for name, value in counts.items()})
        print(f"base: {type(model).__name__}, {counts['parameters']:,} parameters, {counts['tokens']} tokens")
    return 0
