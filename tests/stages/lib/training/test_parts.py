"""Learning rates of the vision tower and its merger, and the bound on the length of prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from stages.domain.core.frames import Frames
from stages.domain.core.records import Reject
from stages.errors import InputError
from stages.lib.models.load import load_model
from stages.lib.models.processor import encode_prompts
from stages.lib.rows.jsonl import read_rows
from stages.lib.training.mixture import Example
from stages.lib.training.rates import RatesOfParts
from stages.params import LearningRates
from tests.support.training.tiny import LORA, Seen, frames, tiny
from tests.support.training.trainers import grpo, sft


class _Trainer(RatesOfParts, Trainer):
    pass


def part(name: str) -> str:
    return "text" if "visual" not in name else "merger" if "merger" in name else "vision"


def test_each_part_has_its_rate_and_its_weight_decay(family: str, tmp_path: Path) -> None:
    model, _ = tiny(family)
    args = TrainingArguments(str(tmp_path), learning_rate=1e-3, weight_decay=0.1, use_cpu=True, report_to="none")
    trainer = _Trainer(model=model, args=args, rates=LearningRates(vision=1e-5, merger=1e-4))
    optimizer = trainer.create_optimizer()
    names = {id(weight): name for name, weight in model.named_parameters()}
    grouped = [(names[id(weight)], group) for group in optimizer.param_groups for weight in group["params"]]
    assert sorted(name for name, _ in grouped) == sorted(names.values()), "each weight once"
    decayed = trainer.get_decay_parameter_names(model)
    for name, group in grouped:
        assert group["lr"] == {"text": 1e-3, "vision": 1e-5, "merger": 1e-4}[part(name)], name
        assert group["weight_decay"] == (0.1 if name in decayed else 0.0), name
    assert optimizer.param_groups[0]["lr"] == 1e-3, "whose rate is logged"
    assert {part(name) for name, _ in grouped} == {"text", "vision", "merger"}


def steps(before: Path, after: Path) -> dict[str, float]:
    """Largest change of a weight of each part."""
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    moved: dict[str, float] = {}
    for name in old:
        moved[part(name)] = max(moved.get(part(name), 0.0), float((new[name] - old[name]).abs().max()))
    return moved


@pytest.mark.parametrize("train", [pytest.param(sft, marks=pytest.mark.slow), grpo])
def test_a_step_moves_each_part_by_its_rate(
    train: Any, folder: Path, examples: list[Example], tmp_path: Path, seen: Seen
) -> None:
    """Adam's first step moves a weight with a gradient by its learning rate."""
    rates = {"vision": 2e-5, "merger": 3e-4}
    train(
        folder, examples, tmp_path, seen, steps=1, warmup_steps=0, learning_rate=1e-3, learning_rates=rates,
        schedule="constant_with_warmup", save_steps=1,
    )  # fmt: skip
    moved = steps(folder, tmp_path / "out/final")
    assert moved == pytest.approx({"text": 1e-3, "vision": 2e-5, "merger": 3e-4}, rel=0.02)
    if train is grpo:  # SFT logs every tenth step
        logged = seen.metrics[0][1]
        assert (logged["learning_rate/vision"], logged["learning_rate/merger"]) == (2e-5, 3e-4)


@pytest.mark.slow
def test_a_rate_of_a_part_that_is_not_trained_is_refused(
    folder: Path, examples: list[Example], tmp_path: Path, seen: Seen
) -> None:
    with pytest.raises(ValueError, match=r"learning_rates.merger: nothing of it is trained; write null, or name"):
        sft(
            folder,
            examples,
            tmp_path,
            seen,
            lora=LORA | {"targets": ["visual.qkv"]},
            learning_rates={"vision": 1e-5, "merger": 1e-4},
        )


def longer(example: Example, count: int) -> Example:
    shown = frames(7, count=count)
    return replace(example, load=lambda: shown)


@pytest.mark.parametrize("train", [sft, pytest.param(grpo, marks=pytest.mark.slow)])
def test_long_prompts_are_set_aside_counted_and_listed(
    train: Any, folder: Path, examples: list[Example], tmp_path: Path, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    _, processor = load_model(folder, "fp32")
    long = [longer(examples[1], 8), *examples[2:], longer(examples[0], 12)]
    tokens = [len(encode_prompts(processor, [(e.prompt, (e.load(),))])[0].ids) for e in long]
    usual = max(tokens[1:-1])
    assert tokens[0] > usual
    train(folder, long, tmp_path, seen, steps=2, max_prompt_tokens=usual)
    assert json.loads((tmp_path / "out/summary.json").read_text())["prompts_too_long"] == 2
    rejects = read_rows(tmp_path / "out/rejects.jsonl", Reject)
    assert [(r.item, r.reason) for r in rejects] == [("s0", "prompt-too-long"), ("s1", "prompt-too-long")]
    assert f"has {tokens[-1]} tokens, and max_prompt_tokens is {usual}; lower synthesize" in rejects[0].detail
    told = capsys.readouterr().err
    assert f"2 of 24 prompts are set aside, such as s0: its prompt has {tokens[-1]} tokens" in told
    with pytest.raises(
        InputError, match=r"max_prompt_tokens: 5, and each of the 12 prompts of caption has at least \d+; lower .*raise"
    ):
        train(folder, examples, tmp_path / "b", seen, steps=2, max_prompt_tokens=5)


def test_an_outline_gives_the_prompt_of_the_frames(family: str) -> None:
    """Black frames that take no memory, in place of decoded ones."""
    _, processor = tiny(family)
    shown = frames(3, count=6, size=(48, 64))
    outline = Frames(np.broadcast_to(np.uint8(0), shown.pixels.shape), shown.indices, shown.total, shown.rate)
    mine, theirs = (encode_prompts(processor, [("What?", (f,))])[0].ids for f in (outline, shown))
    assert mine == theirs
