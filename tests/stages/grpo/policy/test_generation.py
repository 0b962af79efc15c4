"""Rollouts of the trainer: seeded one by one, whatever process they are on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from stages.grpo.trainer import VideoGRPOTrainer
from stages.lib.models.processor import encode_prompts
from tests.support.training.tiny import Paying, tiny
from tests.support.training.video_trainer import VIDEOS, config

#: Two prompts, whose groups of four follow each other.
ROWS = ["a"] * 4 + ["c"] * 4


def trainer_of(tmp_path: Path, **changes: Any) -> VideoGRPOTrainer:
    model, processor = tiny("qwen2_5_vl")
    return VideoGRPOTrainer(
        encode=lambda keys: encode_prompts(processor, [("What?", VIDEOS[key]) for key in keys]),
        rewards=Paying(lambda _, completions: [float(len(text)) for text in completions]),
        model=model,
        args=config(tmp_path, beta=0.0, num_generations=4, **changes),
        train_dataset=datasets.Dataset.from_dict({"prompt": list(VIDEOS)}),
        processing_class=processor,
    )


def rollouts(trainer: VideoGRPOTrainer, keys: list[str]) -> list[list[int]]:
    return trainer._generate_single_turn(*trainer._tokenize_prompts(keys), 4)[0]


def test_rollouts_do_not_depend_on_the_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(tmp_path)
    alone = rollouts(trainer, ROWS)
    assert len({tuple(ids) for ids in alone}) == len(ROWS)
    torch.manual_seed(1)
    assert rollouts(trainer, ROWS) == alone, "the generator of the process has no part in it"
    assert trainer.model.training, "it is in training as before"
    # A process that starts with some row, also within a group.
    for before in (4, 6):
        rows = ROWS[before:]
        monkeypatch.setattr(type(trainer.accelerator), "process_index", before // len(rows))
        assert rollouts(trainer, rows) == alone[before:]


def test_each_step_and_round_has_draws_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(tmp_path)
    first = rollouts(trainer, ROWS)
    trainer.state.global_step = 1
    second = rollouts(trainer, ROWS)
    monkeypatch.setattr(type(trainer), "_round", 1)
    third = rollouts(trainer, ROWS)
    assert first != second != third != first


@pytest.mark.parametrize(
    ("setting", "value"), [("top_k", 5), ("repetition_penalty", 1.2), ("do_sample", False), ("num_beams", 3)]
)
def test_settings_that_would_be_ignored_are_refused(tmp_path: Path, setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^generation_kwargs: {setting} {value}"):
        trainer_of(tmp_path, generation_kwargs={setting: value})
