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
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import torch
from transformers import (
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    TrainerCallback,
)
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, SFTConfig, SFTTrainer

from benchmarks.grpo import Rewarded
from benchmarks.machine import keep
from stages.base.tiny import build_tiny
from stages.domain.core.frames import Frames
from stages.grpo.train import cached_encoder
from stages.grpo.trainer import VideoGRPOTrainer
from stages.lib.inference.generate import generate
from stages.lib.models.load import prepare_model
from stages.lib.models.processor import encode_prompts, training_batch
from stages.lib.training.loop import Resumes
from stages.lib.training.lora import adapters
from stages.lib.training.mixture import Example
from stages.params import LoraParams, TinyModelParams, load_params
from stages.runtime.machine import measured

FRAMES, SIDE_PX, RATE = 16, 392, Fraction(2)
PROMPTS, ROLLOUTS, TOKENS = 2, 8, 64

#: Configurations of Qwen2.5-VL as published (config.json of Qwen/Qwen2.5-VL-3B-Instruct and -7B-).
_TEXT: dict[str, dict[str, Any]] = {
    "3b": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
}
_VISION: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_VOCABULARY = 152_064


@dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes:
        verb: tower, generate, sft or grpo.
        size: 3b or 7b.
        lora: adapters on bf16 weights instead of all weights, which are then float32 masters under
            bf16 autocast.
    """

    verb: str
    size: str
    lora: bool

    @property
    def name(self) -> str:
        kind = "" if self.verb in ("generate", "tower") else ", LoRA" if self.lora else ", all weights"
        return f"{self.verb} {self.size.upper()}{kind}"


PARTS = (
    Part("tower", "3b", False),
    Part("grpo", "3b", True),
    Part("grpo", "7b", True),
    Part("grpo", "3b", False),
    Part("sft", "3b", False),
    Part("sft", "7b", True),
    Part("generate", "7b", False),
)


def video(number: int, side_px: int = SIDE_PX) -> Frames:
    pixels = np.random.default_rng(number).integers(0, 256, (FRAMES, side_px, side_px, 3), np.uint8)
    return Frames(pixels, tuple(range(FRAMES)), FRAMES, RATE)


def tiny(family: str, patch_px: int = 16) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Model of the recipe `tiny` in one of the families, and its processor."""
    params = load_params("infra/recipes/tiny.yaml").model
    assert isinstance(params, TinyModelParams)
    changed = params.model_dump() | {"family": family}
    changed["vision"] |= {"patch_px": patch_px}
    return build_tiny(TinyModelParams.model_validate(changed), ["what happens ? the red bar rises then grows"], (), 0)


def large(size: str, dtype: torch.dtype) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Qwen2.5-VL of a published size with random weights, on the GPU, and a processor whose small
    tokenizer was trained here."""
    _, processor = tiny("qwen2_5_vl", patch_px=14)
    tokenizer, text = processor.tokenizer, _TEXT[size]
    head = text["hidden_size"] // text["num_attention_heads"]
    config = Qwen2_5_VLConfig(
        text_config={
            **text,
            "vocab_size": _VOCABULARY,
            "max_position_embeddings": 128_000,
            "rms_norm_eps": 1e-6,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [head // 8, 3 * head // 16, 3 * head // 16],
            },
        },
        vision_config={**_VISION, "out_hidden_size": text["hidden_size"]},
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.vision_start_token_id,
        vision_end_token_id=tokenizer.vision_end_token_id,
        tie_word_embeddings=size == "3b",
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(_device()):
            model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    return prepare_model(model, processor), processor


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


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
        for device in ("cpu", _device()):
            cast(torch.nn.Module, model).to(device)
            with torch.no_grad():
                inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
                found.append(model(**inputs).logits.log_softmax(-1).cpu())
            replies.append(generate(model, processor, items, max_new_tokens=24, batch_size=16))
        seen = batch["attention_mask"].bool()
        difference = (found[0] - found[1]).abs()[seen].max().item()
        if difference > 1e-3:
            raise SystemExit(f"error: {family}: CPU and GPU differ by {difference:.2g}; nothing else was measured")
        equal = sum(one == other for one, other in zip(*replies, strict=True))
        lines.append(f"| {family} | {difference:.1e} | {equal} of {len(items)} |")
    return lines


class Clock(TrainerCallback):
    """Wall seconds of each optimiser step."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        _wait()
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        _wait()
        self.steps.append(time.perf_counter() - self._began)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class _Generating(VideoGRPOTrainer):
    """Notes how long generation and scoring take in each step."""

    took: list[float]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        _wait()
        began = time.perf_counter()
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        _wait()
        self.took.append(time.perf_counter() - began)
        return output


class _Supervised(Resumes, SFTTrainer):
    pass


def _settings(folder: Path, steps: int, per_device: int, rounds: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": rounds,
        "learning_rate": 1e-6,
        "bf16": True,
        "activation_checkpointing": True,
        "gradient_checkpointing": None,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "logging_steps": 1,
        "seed": 3,
        "use_cpu": not torch.cuda.is_available(),
    }


def _lora(model: PreTrainedModel, part: Part) -> Any:
    if not part.lora:
        return None
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return adapters(model, LoraParams(rank=16, alpha=32, dropout=0.0, targets=tuple(names)))


def grpo(part: Part, steps: int, folder: Path) -> dict[str, float]:
    """Steps of the GRPO trainer: 2 prompts x 8 rollouts of 64 tokens each."""
    model, processor = large(part.size, torch.bfloat16 if part.lora else torch.float32)
    by_id = {
        f"s{n}": Example(f"s{n}", "caption", "what happens ?", None, partial(video, n)) for n in range(PROMPTS * steps)
    }
    args = GRPOConfig(
        **_settings(folder, steps, ROLLOUTS, PROMPTS),
        num_generations=ROLLOUTS,
        max_completion_length=TOKENS,
        generation_kwargs={"min_new_tokens": TOKENS},
        temperature=1.0,
        beta=0.0,
        loss_type="dapo",
    )
    trainer = _Generating(
        encode=cached_encoder(processor, by_id, 2**30),
        rewards=Rewarded(),
        model=model,
        args=args,
        train_dataset=datasets.Dataset.from_dict({"prompt": list(by_id)}),
        processing_class=processor,
        peft_config=_lora(model, part),
    )
    trainer.took = []
    clock = _train(trainer)
    step, generating = _median(clock.steps), _median(trainer.took)
    return {
        "s a step": step,
        "of that rollouts": generating,
        "tokens a second in rollouts": PROMPTS * ROLLOUTS * TOKENS / generating,
        "tokens a second in the loss": PROMPTS * ROLLOUTS * TOKENS / (step - generating),
        "loss": _last(trainer, "loss"),
        "gradient norm": _last(trainer, "grad_norm"),
    }


def sft(part: Part, steps: int, folder: Path) -> dict[str, float]:
    """Steps of the SFT trainer: 8 samples, 2 at a time, with replies of about 64 tokens."""
    model, processor = large(part.size, torch.bfloat16 if part.lora else torch.float32)
    word = " the red bar rises then grows"
    reply = word * max(1, TOKENS // len(processor.tokenizer(word)["input_ids"]))
    samples = [("what happens ?", n) for n in range(8 * steps)]

    def collate(rows: Sequence[dict[str, int]]) -> dict[str, torch.Tensor]:
        batch = [samples[row["example"]] for row in rows]
        prompts = encode_prompts(processor, [(text, (video(n),)) for text, n in batch])
        return training_batch(processor, prompts, [reply] * len(batch))

    trainer = _Supervised(
        model=model,
        args=SFTConfig(
            **_settings(folder, steps, 2, 4), dataset_kwargs={"skip_prepare_dataset": True}, max_length=None
        ),
        train_dataset=datasets.Dataset.from_dict({"example": list(range(len(samples)))}),
        data_collator=collate,
        processing_class=processor,
        peft_config=_lora(model, part),
    )
    step = _median(_train(trainer).steps)
    return {
        "s a step": step,
        "samples a second": 8 / step,
        "loss": _last(trainer, "loss"),
        "gradient norm": _last(trainer, "grad_norm"),
    }


def tower(part: Part, steps: int, _: Path) -> dict[str, float]:
    """The vision tower on one video, with transformers' attention (one call a window) and ours."""
    model, processor = large(part.size, torch.bfloat16)
    visual: Any = model.base_model.visual
    batch = encode_prompts(processor, [("what happens ?", (video(0),))])[0].videos
    pixels, grid = batch.pixels.to(_device(), torch.bfloat16), batch.grids.to(_device())
    found: dict[str, float] = {}
    for name, attention in (("transformers", "sdpa"), ("ours", visual.config._attn_implementation)):
        visual.config._attn_implementation = attention
        forward, both = [], []
        for _step in range(steps + 1):
            _wait()
            began = time.perf_counter()
            out = visual(pixels, grid_thw=grid).pooler_output
            _wait()
            forward.append(time.perf_counter() - began)
            (torch.cat(list(out)) if isinstance(out, tuple | list) else out).float().square().mean().backward()
            _wait()
            both.append(time.perf_counter() - began)
        found |= {f"{name}: ms forward": 1000 * _median(forward), f"{name}: ms and backward": 1000 * _median(both)}
    return found


def answers(part: Part, steps: int, _: Path) -> dict[str, float]:
    """Greedy replies of 64 tokens to 8 prompts at a time, as in evaluation."""
    model, processor = large(part.size, torch.bfloat16)
    items = [("what happens ?", video(number)) for number in range(8)]
    took = []
    for _step in range(steps):
        _wait()
        began = time.perf_counter()
        generate(model, processor, items, max_new_tokens=64, batch_size=8)
        _wait()
        took.append(time.perf_counter() - began)
    return {"s a batch of 8": _median(took), "tokens a second": 8 * 64 / _median(took)}


def _train(trainer: Any) -> Clock:
    clock = Clock()
    trainer.add_callback(clock)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock


def _last(trainer: Any, name: str) -> float:
    return float([row[name] for row in trainer.state.log_history if name in row][-1])


def _median(seconds: Sequence[float]) -> float:
    """Median without the first step, which loads kernels."""
    return statistics.median(seconds[1:] or seconds)


def run_part(part: Part, steps: int) -> dict[str, Any]:
    """Measure a part in this process."""
    work: dict[str, Callable[[Part, int, Path], dict[str, float]]] = {
        "tower": tower,
        "generate": answers,
        "sft": sft,
        "grpo": grpo,
    }
    with tempfile.TemporaryDirectory() as folder:
        found = work[part.verb](part, steps, Path(folder))
    if torch.cuda.is_available():
        found["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return {"part": part.name, **{name: float(f"{value:.4g}") for name, value in found.items()}}


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
