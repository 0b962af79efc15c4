"""Steps of training and generation that are timed."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, SFTConfig, SFTTrainer

from benchmarks.gpu.models import large, video
from benchmarks.grpo.trainers import Rewarded
from stages.grpo.train import cached_encoder
from stages.grpo.trainer import VideoGRPOTrainer
from stages.lib.inference.generate import generate
from stages.lib.models.load import device
from stages.lib.models.processor import encode_prompts, training_batch
from stages.lib.training.loop import Resumes
from stages.lib.training.lora import adapters
from stages.lib.training.mixture import Example
from stages.params import LoraParams

PROMPTS, ROLLOUTS, TOKENS = 2, 8, 64


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
    pixels, grid = batch.pixels.to(device(), torch.bfloat16), batch.grids.to(device())
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
