"""Both trainers with what a test does not care about: stage, seed, folders, reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.grpo.train import Objective, train_grpo
from stages.lib.training.mixture import Example
from stages.sft.train import train_sft
from tests.support.tiny_parts import Seen, grpo_row, length_reward, sft_row, showing


def sft(folder: Path, examples: Sequence[Example], home: Path, seen: Seen, **changes: Any) -> dict[str, Any]:
    return train_sft(
        folder,
        examples,
        sft_row(**changes),
        stage="sft@cold-start",
        seed=1,
        out=home / "out",
        scratch=home / "scratch",
        on_metrics=seen.on_metrics,
        on_checkpoint=seen.on_checkpoint,
    )


def grpo(folder: Path, examples: Sequence[Example], home: Path, seen: Seen, **changes: Any) -> dict[str, Any]:
    row = grpo_row(**changes)
    return train_grpo(
        folder,
        examples,
        row,
        stage="grpo@bridge",
        reward=length_reward,
        objectives={"task": Objective(1.0, length_reward)},
        well_formed=lambda _, replies: [reply.startswith("<think>") for reply in replies],
        showing=showing(examples, row.rollouts),
        seed=1,
        out=home / "out",
        scratch=home / "scratch",
        on_metrics=seen.on_metrics,
        on_checkpoint=seen.on_checkpoint,
    )
