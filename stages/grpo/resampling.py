"""Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2): a group whose rewards are all equal teaches nothing.

The batch keeps its size here: such groups are replaced by live ones of other prompts, for a bounded number of rounds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

#: Padded on the left, as generation needs it; everything else of a batch is padded on the right.
_LEFT = frozenset(("prompt_ids", "prompt_mask"))
_IDS = frozenset(("prompt_ids", "completion_ids"))


class PromptPool:
    """Prompts that are taken one after the other, by all processes of a job together; at the end it starts again.

    Args:
        keys: the prompts, in the order they are taken.
        rounds: how often at most a generation may draw on it.
    """

    def __init__(self, keys: Sequence[str], rounds: int) -> None:
        self.rounds = rounds
        self._keys = keys
        self._taken = 0

    def take(self, count: int, process: int, processes: int) -> list[str]:
        """The next ``count`` prompts of this process; every process has to ask for as many."""
        start = self._taken + process * count
        self._taken += count * processes
        return [self._keys[n % len(self._keys)] for n in range(start, start + count)]

    def save(self, file: Path) -> None:
        file.write_text(json.dumps({"taken": self._taken}), encoding="utf-8")

    def load(self, file: Path) -> None:
        """
        Raises:
            FileNotFoundError: the checkpoint was saved by a training without a reserve.
        """
        self._taken = int(json.loads(file.read_text(encoding="utf-8"))["taken"])


def dead_groups(advantages: torch.Tensor, rollouts: int) -> list[int]:
    """Numbers of the groups of `rollouts` consecutive rows that carry no gradient; `advantages` [rows], 0 exactly where a group was
    paid alike (:mod:`stages.grpo.advantages`)."""
    return (~advantages.reshape(-1, rollouts).any(dim=1)).nonzero()[:, 0].tolist()


def replace_groups(
    batch: dict[str, Any], fresh: dict[str, Any], pairs: Sequence[tuple[int, int]], rollouts: int, pad_id: int
) -> dict[str, Any]:
    """The batch with group `old` replaced by group `new` of `fresh`, for each pair; shorter rows are padded as they are elsewhere.

    Args:
        batch, fresh: what TRL makes of generated and scored rollouts: tensors and lists of one entry a row, and what belongs to all.
        pairs: numbers of groups in `batch` and in `fresh`.
    """
    old = torch.tensor([group * rollouts + n for group, _ in pairs for n in range(rollouts)], dtype=torch.long)
    new = torch.tensor([group * rollouts + n for _, group in pairs for n in range(rollouts)], dtype=torch.long)
    rows = len(batch["prompt_ids"])
    merged = dict(batch)
    for name, value in batch.items():
        if isinstance(value, list) and len(value) == rows:
            merged[name] = list(value)
            for at, source in zip(old.tolist(), new.tolist(), strict=True):
                merged[name][at] = fresh[name][source]
        elif isinstance(value, torch.Tensor) and value.ndim and len(value) == rows:
            ours, theirs = _even(name, value, fresh[name], pad_id)
            ours = ours.clone()
            ours[old.to(ours.device)] = theirs[new.to(theirs.device)].to(ours)
            merged[name] = ours
    return merged


def _even(name: str, first: torch.Tensor, second: torch.Tensor, pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as wide as the wider one."""
    if first.ndim < 2:
        return first, second
    width = max(first.shape[1], second.shape[1])
    return _widened(name, first, width, pad_id), _widened(name, second, width, pad_id)


def _widened(name: str, tensor: torch.Tensor, width: int, pad_id: int) -> torch.Tensor:
    more = width - tensor.shape[1]
    sides = (more, 0) if name in _LEFT else (0, more)
    return torch.nn.functional.pad(tensor, sides, value=pad_id if name in _IDS else 0)
