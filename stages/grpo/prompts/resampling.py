"""Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2): replace groups whose rewards are all
equal.

Such groups teach nothing. The batch keeps its size: groups of other prompts take their place, for a
bounded number of rounds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

#: Columns padded on the left, as generation requires; all other columns of a batch are padded on
#: the right.
_LEFT = frozenset(("prompt_ids", "prompt_mask"))
_IDS = frozenset(("prompt_ids", "completion_ids"))


class PromptPool:
    """Prompts for dynamic sampling, taken in order by all processes of a job together; after the
    last it starts again.

    Args:
        keys: the prompts, in the order in which they are taken.
        rounds: maximum number of resampling rounds of one generation.
        draw: draws the next prompts for all processes, in place of ``keys``.
    """

    def __init__(self, keys: Sequence[str], rounds: int, draw: Callable[[int], list[str]] | None = None) -> None:
        self.rounds = rounds
        self._keys, self._draw = keys, draw
        self._taken = 0

    def take(self, count: int, process: int, processes: int) -> list[str]:
        """Take the next ``count`` prompts of this process; every process must take the same
        number."""
        if self._draw is not None:
            return self._draw(count * processes)[process * count : (process + 1) * count]
        start = self._taken + process * count
        self._taken += count * processes
        return [self._keys[n % len(self._keys)] for n in range(start, start + count)]

    def save(self, file: Path) -> None:
        file.write_text(json.dumps({"taken": self._taken}), encoding="utf-8")

    def load(self, file: Path) -> None:
        """Restore the state that :meth:`save` wrote.

        Raises:
            FileNotFoundError: the checkpoint was saved by a training without dynamic sampling.
        """
        self._taken = int(json.loads(file.read_text(encoding="utf-8"))["taken"])


def dead_groups(advantages: torch.Tensor, rollouts: int) -> list[int]:
    """Indices of the groups that carry no gradient, each of `rollouts` consecutive rows.

    `advantages` [rows] are exactly 0 where all rewards of a group are equal
    (:mod:`stages.grpo.advantages`).
    """
    return (~advantages.reshape(-1, rollouts).any(dim=1)).nonzero()[:, 0].tolist()


def replace_groups(
    batch: dict[str, Any], fresh: dict[str, Any], pairs: Sequence[tuple[int, int]], rollouts: int, pad_id: int
) -> dict[str, Any]:
    """Replace group `old` of the batch by group `new` of `fresh`, for each pair; shorter rows are
    padded like the others.

    Args:
        batch, fresh: TRL's batches of generated and scored rollouts: tensors and lists with one
            entry per row, and shared values.
        pairs: indices of groups in `batch` and in `fresh`.
    """
    old = torch.tensor([group * rollouts + n for group, _ in pairs for n in range(rollouts)], dtype=torch.long)
    new = torch.tensor([group * rollouts + n for _, group in pairs for n in range(rollouts)], dtype=torch.long)
    rows = len(batch["prompt_ids"])
    merged = dict(batch)
    for name, value in batch.items():
        if isinstance(value, list) and len(value) == rows:
            merged[name] = list(value)
            for target, source in zip(old.tolist(), new.tolist(), strict=True):
                merged[name][target] = fresh[name][source]
        elif isinstance(value, torch.Tensor) and value.ndim and len(value) == rows:
            kept, replacement = _even(name, value, fresh[name], pad_id)
            kept = kept.clone()
            kept[old.to(kept.device)] = replacement[new.to(replacement.device)].to(kept)
            merged[name] = kept
    return merged


def _even(name: str, first: torch.Tensor, second: torch.Tensor, pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad the narrower of two tensors to the width of the other."""
    if first.ndim < 2:
        return first, second
    width = max(first.shape[1], second.shape[1])
    return _widened(name, first, width, pad_id), _widened(name, second, width, pad_id)


def _widened(name: str, tensor: torch.Tensor, width: int, pad_id: int) -> torch.Tensor:
    more = width - tensor.shape[1]
    sides = (more, 0) if name in _LEFT else (0, more)
    return torch.nn.functional.pad(tensor, sides, value=pad_id if name in _IDS else 0)
