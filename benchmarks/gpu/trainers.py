"""Steps of trainers: this project's GRPO beside TRL's own, and SFT. Needs TRL."""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from benchmarks.gpu.passes import LORA_RANK
from benchmarks.gpu.subject import QUESTION, Subject
from benchmarks.gpu.timing import Row, device_s, peak_gib, recording, wait
from benchmarks.grpo.trainers import Rewarded, rewards
from stages.grpo.train import cached_encoder
from stages.grpo.trainer import VideoGRPOTrainer
from stages.lib.models.processor import encode_prompts, placeholder_ids, training_batch
from stages.lib.training.loop import Resumes
from stages.lib.training.lora import adapters
from stages.lib.training.mixture import Example
from stages.params import LoraParams
from stages.runtime.ranks import distributed
from stages.runtime.ranks.placement import placement

#: Steps of a training: the first loads kernels, the last is profiled, the others are timed.
_STEPS = 4
_OFFLOAD = Path("infra/deepspeed/zero3-offload.json")
#: Samples of a supervised step, and how many of them are one micro-batch.
_SAMPLES, _TOGETHER = 8, 2


class Clock(TrainerCallback):
    """Wall seconds of each step, and of its generation; during the last one, the device's busy
    seconds."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.generations: list[float] = []
        self.busy_s = 0.0
        self._began = 0.0
        self._record: Any = None

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if len(self.steps) == _STEPS - 1:
            self._record = recording()
            self._record.__enter__()
        wait()
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        wait()
        self.steps.append(time.perf_counter() - self._began)
        if self._record is not None:
            self._record.__exit__(None, None, None)
            self.busy_s, self._record = device_s(self._record), None

    def generated(self, trainer: Any) -> None:
        """Time a trainer's generation with its scoring."""
        stock = trainer._generate_and_score_completions

        def timing(inputs: Any) -> Any:
            wait()
            began = time.perf_counter()
            output = stock(inputs)
            wait()
            self.generations.append(time.perf_counter() - began)
            return output

        trainer._generate_and_score_completions = timing

    @staticmethod
    def counted(seconds: Sequence[float]) -> float:
        return statistics.median(seconds[1 : _STEPS - 1])

    def values(self) -> dict[str, float]:
        step = self.counted(self.steps)
        found = {"s a step": step}
        if self.generations:
            generation = self.counted(self.generations)
            found |= {"rollouts s": generation, "loss and optimiser s": step - generation}
        if gib := peak_gib():
            found["peak GiB"] = gib
        return {**found, "busy %": 100 * self.busy_s / step}


def against_trl(subject: Subject) -> list[Row]:
    """Steps of this project's trainer, and of TRL's own on the same prompts, rollouts and tokens.
    TRL 1.16 generates with the video and computes its loss *without* it."""
    rows = [_ours(subject), _plain(subject)]
    mine, plain = (row.values for row in rows)
    return [
        *rows,
        Row("times of ours", {name: plain[name] / mine[name] for name in mine if name.endswith((" s", " step"))}),
    ]


def ours(subject: Subject) -> list[Row]:
    """Steps of this project's trainer alone."""
    return [_ours(subject)]


def offloaded(subject: Subject) -> list[Row]:
    """Steps of this project's trainer with weights and optimiser in the host's memory, by
    DeepSpeed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    asked = {"VIDBRIDGE_RANKS": "1", "VIDBRIDGE_DEEPSPEED": str(_OFFLOAD)}
    with patch.dict(os.environ, alone | asked):
        os.environ.update(distributed.rank_environment(placement()))
        return [_ours(subject)]


def _ours(subject: Subject) -> Row:
    sizes = subject.sizes
    by_id = {
        f"s{n}": Example(f"s{n}", "caption", QUESTION, None, partial(subject.video, n))
        for n in range(sizes.few * _STEPS)
    }
    with ExitStack() as stack:
        args = _grpo(subject, stack, placeholders=())
        model, processor = subject.build()
        trainer = VideoGRPOTrainer(
            encode=cached_encoder(processor, by_id, 2**30),
            rewards=Rewarded(),
            model=model,
            args=args,
            train_dataset=datasets.Dataset.from_dict({"prompt": list(by_id)}),
            processing_class=processor,
            peft_config=_lora(model, subject),
        )
        prompt = len(subject.prompts(processor, 1)[0].ids)
        return _trained("ours", trainer, prompt, subject)


def _plain(subject: Subject) -> Row:
    """TRL's trainer; videos reach the processor as arrays, so that no decoder is needed."""
    sizes = subject.sizes
    keys = [str(number) for number in range(sizes.few * _STEPS)]

    def asked(rows: Mapping[str, Sequence[str]]) -> dict[str, list[Any]]:
        contents = [
            [{"type": "video", "video": subject.video(int(key)).pixels}, {"type": "text", "text": QUESTION}]
            for key in rows["prompt"]
        ]
        return {"prompt": [[{"role": "user", "content": content}] for content in contents]}

    with ExitStack() as stack:
        model, processor = subject.build(stock=True)
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=rewards,
            args=_grpo(subject, stack, placeholders=placeholder_ids(processor)),
            train_dataset=datasets.Dataset.from_dict({"prompt": keys}).with_transform(asked),
            processing_class=processor,
            peft_config=_lora(model, subject),
        )
        prompt = len(subject.prompts(processor, 1)[0].ids)
        return _trained("plain TRL (its loss does not see the video)", trainer, prompt, subject)


def _trained(name: str, trainer: Any, prompt: int, subject: Subject) -> Row:
    clock, sizes = Clock(), subject.sizes
    clock.generated(trainer)
    trainer.add_callback(clock)
    trainer.remove_callback(PrinterCallback)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    values = clock.values()
    tokens = sizes.few * sizes.rollouts * (prompt + sizes.short)
    return Row(name, {**values, "tokens/s (EasyR1)": tokens / values["s a step"]})


def _grpo(subject: Subject, stack: ExitStack, placeholders: Sequence[int]) -> GRPOConfig:
    sizes = subject.sizes
    generation = {"min_new_tokens": sizes.short}
    return GRPOConfig(
        **_settings(stack, sizes.rollouts, sizes.few),
        num_generations=sizes.rollouts,
        max_completion_length=sizes.short,
        generation_kwargs=generation | ({"suppress_tokens": list(placeholders)} if placeholders else {}),
        temperature=1.0,
        beta=0.0,
        loss_type="dapo",
    )


def _settings(stack: ExitStack, per_device: int, rounds: int) -> dict[str, Any]:
    placement = distributed.trainer_placement()
    return {
        "output_dir": stack.enter_context(tempfile.TemporaryDirectory()),
        "max_steps": _STEPS,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": rounds,
        "learning_rate": 1e-6,
        # On a CPU, transformers takes no bf16 together with DeepSpeed.
        "bf16": torch.cuda.is_available() or placement["use_cpu"],
        "activation_checkpointing": True,
        "gradient_checkpointing": None,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "logging_steps": 1,
        "seed": 3,
        **placement,
    }


def _lora(model: Any, subject: Subject) -> Any:
    if subject.trained != "lora":
        return None
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return adapters(model, LoraParams(rank=LORA_RANK, alpha=2 * LORA_RANK, dropout=0.0, targets=names))


class _Supervised(Resumes, SFTTrainer):
    pass


def sft(subject: Subject) -> list[Row]:
    """Steps of the SFT trainer: 8 samples, 2 at a time, with replies of about as many tokens as
    those of GRPO."""
    with ExitStack() as stack:
        model, processor = subject.build()
        word = " the red bar rises then grows"
        reply = word * max(1, subject.sizes.short // len(processor.tokenizer(word)["input_ids"]))

        def collate(rows: Sequence[Mapping[str, int]]) -> dict[str, torch.Tensor]:
            asked = [(QUESTION, (subject.video(row["example"]),)) for row in rows]
            return training_batch(processor, encode_prompts(processor, asked), [reply] * len(rows))

        trainer = _Supervised(
            model=model,
            args=SFTConfig(
                **_settings(stack, _TOGETHER, _SAMPLES // _TOGETHER),
                dataset_kwargs={"skip_prepare_dataset": True},
                max_length=None,
            ),
            train_dataset=datasets.Dataset.from_dict({"example": list(range(_SAMPLES * _STEPS))}),
            data_collator=collate,
            processing_class=processor,
            peft_config=_lora(model, subject),
        )
        clock = Clock()
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        values = clock.values()
        return [Row("SFT", {**values, "samples/s": _SAMPLES / values["s a step"]})]
