"""Both trainers with what a test does not care about: stage, seed, folders, reports; and trainings
that are cut short."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.grpo.train import train_grpo
from stages.lib.training.mixture import Example
from stages.lib.training.watching import Watch
from stages.sft.train import train_sft
from tests.support.training.tiny import Paying, Reward, Seen, grpo_row, length_reward, rollout_log, sft_row, tasks_of


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
    folder: Path,
    examples: Sequence[Example],
    home: Path,
    seen: Seen,
    watch: Watch | None = None,
    *,
    reward: Reward = length_reward,
    **changes: Any,
) -> dict[str, Any]:
    row = grpo_row(**changes)
    return train_grpo(
        folder,
        examples,
        row,
        stage="grpo@bridge",
        rewards=Paying(reward, well_formed=lambda reply: reply.startswith("<think>"), tasks=tasks_of(examples)),
        rollout_log=rollout_log(examples, row, home / "scratch"),
        seed=1,
        out=home / "out",
        scratch=home / "scratch",
        hooks=seen.hooks,
        watch=watch,
    )


def history(home: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (home / "out/history.jsonl").read_text().splitlines()]


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class Cut(Seen):
    """Killed after step 5."""

    def on_metrics(self, step: int, values: dict[str, float]) -> None:
        super().on_metrics(step, values)
        if step == 5:
            raise Killed


def interrupted(whole: Path, resumed: Path, step: int) -> None:
    """Lay the scratch folder ``whole`` into ``resumed`` as it was after its save of ``step``, the
    first."""
    for part in ("state", "saved"):
        shutil.copytree(whole / part / f"checkpoint-{step}", resumed / part / f"checkpoint-{step}")
    shutil.copy(whole / f"saved/checkpoint-{step}.json", resumed / "saved")
