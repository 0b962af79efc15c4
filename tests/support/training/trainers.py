"""Both trainers with what a test does not care about: stage, seed, folders, reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.grpo.train import train_grpo
from stages.lib.training.mixture import Example
from stages.lib.training.watching import Watch
from stages.sft.train import train_sft
from tests.support.training.tiny import Paying, Seen, grpo_row, length_reward, rollout_log, sft_row, tasks_of


def sft(
    folder: Path, examples: Sequence[Example], home: Path, seen: Seen, watch: Watch | None = None, **changes: Any
) -> dict[str, Any]:
    return train_sft(
        folder,
        examples,
        sft_row(**changes),
        stage="sft@cold-start",
        seed=1,
        out=home / "out",
        scratch=home / "scratch",
        hooks=seen.hooks,
        watch=watch,
    )


def grpo(
    folder: Path, examples: Sequence[Example], home: Path, seen: Seen, watch: Watch | None = None, **changes: Any
) -> dict[str, Any]:
    row = grpo_row(**changes)
    return train_grpo(
        folder,
        examples,
        row,
        stage="grpo@bridge",
        rewards=Paying(length_reward, well_formed=lambda reply: reply.startswith("<think>"), tasks=tasks_of(examples)),
        rollout_log=rollout_log(examples, row, home / "scratch"),
        seed=1,
        out=home / "out",
        scratch=home / "scratch",
        hooks=seen.hooks,
        watch=watch,
    )
