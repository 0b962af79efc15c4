"""Training and generation on a GPU, at the sizes of the published models: ``make bench-gpu``.

Needs no published weights: Qwen2.5-VL of 3B or 7B is built from its configuration with random
weights, and videos are noise, so that nothing of it says how well a model answers. Each part runs
in a process of its own, so that its peak of memory is its own. Before anything is timed, the three
families answer on the CPU and on the GPU, and have to agree.

`benchmarks/results/gpu.md` tells what was seen so far; this writes its own page beside the runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import cast

import torch

from benchmarks.gpu.models import FRAMES, SIDE_PX, tiny, video
from benchmarks.gpu.parts import PARTS, PROMPTS, ROLLOUTS, TOKENS, run_part
from benchmarks.machine import keep
from stages.lib.inference.generate import generate
from stages.lib.models.processor import encode_prompts, training_batch
from stages.runtime.machine import measured


def agreement() -> list[str]:
    """Compare replies and logits of the CPU and of the GPU, in float32."""
    lines = ["| family | largest difference of a log-probability | equal greedy replies |", "|---|---|---|"]
    for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        model, processor = tiny(family)
        items = [(f"what happens {number} ?", video(number, 64)) for number in range(16)]
        prompts = encode_prompts(processor, [(text, (frames,)) for text, frames in items])
        batch = training_batch(processor, prompts, ["the red bar rises then grows"] * len(items))
        found: list[torch.Tensor] = []
        replies: list[list[str]] = []
        for place in ("cpu", "cuda"):
            cast(torch.nn.Module, model).to(place)
            with torch.no_grad():
                inputs = {name: tensor.to(place) for name, tensor in batch.items() if name != "labels"}
                found.append(model(**inputs).logits.log_softmax(-1).cpu())
            replies.append(generate(model, processor, items, max_new_tokens=24, batch_size=16))
        seen = batch["attention_mask"].bool()
        difference = (found[0] - found[1]).abs()[seen].max().item()
        if difference > 1e-3:
            raise SystemExit(f"error: {family}: CPU and GPU differ by {difference:.2g}; nothing else was measured")
        equal = sum(one == other for one, other in zip(*replies, strict=True))
        lines.append(f"| {family} | {difference:.1e} | {equal} of {len(items)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=4, help="steps of each part, the first of which is not counted")
    parser.add_argument("--only", choices=[part.name for part in PARTS], action="append", help="these parts only")
    parser.add_argument("--in-process", choices=[part.name for part in PARTS], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(".vidbridge/gpu.md"))
    arguments = parser.parse_args()
    by_name = {part.name: part for part in PARTS}
    if arguments.in_process:
        print(json.dumps(run_part(by_name[arguments.in_process], arguments.steps)))
        return 0
    if not torch.cuda.is_available():
        print(
            "error: torch sees no GPU here; run this where there is one, or make bench-grpo on a CPU", file=sys.stderr
        )
        return 1
    card = torch.cuda.get_device_properties(0)
    lines = [
        f"{measured('torch', 'transformers', 'trl')} {card.name}, {card.total_memory / 2**30:.0f} GiB.",
        "",
        *agreement(),
        "",
        f"Qwen2.5-VL from random weights, {FRAMES} frames of {SIDE_PX} px, gradient checkpointing, one GPU, no"
        f" DeepSpeed. GRPO: {PROMPTS} prompts x {ROLLOUTS} rollouts x {TOKENS} tokens a step; SFT: 8 samples a step.",
        "",
    ]
    failed = []
    for name in arguments.only or by_name:
        command = [sys.executable, "-m", "benchmarks.gpu", "--in-process", name, "--steps", str(arguments.steps)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        last = (done.stdout.strip().splitlines() or [""])[-1]
        if done.returncode:
            failed.append(name)
            lines.append(f"- {name}: failed with exit status {done.returncode}")
        else:
            values = json.loads(last)
            lines.append(f"- {values.pop('part')}: " + ", ".join(f"{key} {value:g}" for key, value in values.items()))
        print(lines[-1], flush=True)
    keep(lines, arguments.out)
    print("\n".join(lines))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
