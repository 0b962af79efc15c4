"""Surplus of dynamic sampling: live groups that a round brought beyond those that were missing.

A round draws ``ceil(missing / live share)`` prompts, so it may bring more live groups than it
needs. DAPO (arXiv 2503.14476, section 3.2) samples until the batch is full and says nothing of the
rest, which its code drops. Here it may be kept for the next generations: it costs as much as any
group. It is then from an earlier policy, so two things hold:

- its loss has the ratio to that policy, whose log-probabilities are kept with it, and the ratio is
  clipped as always. That is what DAPO itself does with the later of its 16 updates on a generation,
  and what ``iterations`` above 1 do here;
- it is used at most ``max_lag`` optimiser steps after it was sampled.

Its advantages are those of the generation that it was sampled in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stages.domain.rl.rollouts import Rollout
from stages.grpo.losses import OLD
from stages.grpo.prompts.sampler import LiveEstimate
from stages.params import Oversampling

#: Columns of a group that are made again from its prompt.
_REMADE = "videos"


@dataclass(frozen=True)
class SpareGroup:
    """A live group that has not been trained on.

    Attributes:
        sampled_at: optimiser steps that had been made when it was sampled.
        key: its prompt.
        batch: its rows, as a batch of TRL.
    """

    sampled_at: int
    key: str
    batch: dict[str, Any]


class Surplus:
    """Spare groups of one process, and the estimated live share (the same in all processes)."""

    def __init__(self, rule: Oversampling) -> None:
        self.rule = rule
        self.estimate = LiveEstimate(rule.live_decay)
        self.spare: list[SpareGroup] = []

    @property
    def keeps(self) -> bool:
        return self.rule.max_lag > 0

    def prompts_for(self, missing: int) -> int:
        """Number of prompts to draw for so many missing live groups."""
        return math.ceil(missing / max(self.estimate.share, self.rule.least_live))

    def usable(self, step: int) -> list[SpareGroup]:
        """Drop the groups that are too old after ``step`` optimiser steps, and return the others,
        oldest first."""
        self.spare = [group for group in self.spare if step - group.sampled_at <= self.rule.max_lag]
        return list(self.spare)

    def save(self, file: Path, gathered: Sequence[Sequence[SpareGroup]]) -> None:
        """Write the spare groups of all processes, in order of processes, and the estimate. Videos
        are left out: they are made again from the prompts."""
        tensors: dict[str, torch.Tensor] = {}
        groups: list[dict[str, Any]] = []
        for process, spare in enumerate(gathered):
            for group in spare:
                number = len(groups)
                row: dict[str, Any] = {
                    "process": process,
                    "sampled_at": group.sampled_at,
                    "key": group.key,
                    "lists": {},
                }
                for name, value in group.batch.items():
                    if isinstance(value, torch.Tensor):
                        tensors[f"{number}/{name}"] = value.detach().cpu().contiguous()
                    elif name == "rollouts":
                        row["rollouts"] = [rollout.model_dump_json() for rollout in value]
                    elif name != _REMADE:
                        row["lists"][name] = value
                groups.append(row)
        state = {"live": self.estimate.live, "counted": self.estimate.counted, "groups": groups}
        # An empty file would not be one of safetensors.
        save_file({**tensors, "_": torch.zeros(1)}, file, metadata={"state": json.dumps(state)})

    def load(self, file: Path, process: int, processes: int, videos_of: Callable[[str], Any], device: Any) -> None:
        """Restore the state that :meth:`save` wrote; with another number of processes the groups
        are dealt to them in turn.

        Raises:
            FileNotFoundError: the checkpoint was saved by a training that did not draw by live
                share.
        """
        if not file.is_file():
            raise FileNotFoundError(file)
        self.spare = []
        with safe_open(file, framework="pt") as saved:
            state = json.loads(saved.metadata()["state"])
            names = [name for name in saved.keys() if name != "_"]  # noqa: SIM118 - not a mapping
            for number, row in enumerate(state["groups"]):
                if row["process"] % processes != process:
                    continue
                batch: dict[str, Any] = {
                    name.partition("/")[2]: saved.get_tensor(name).to(device)
                    for name in names
                    if name.startswith(f"{number}/")
                }
                batch |= row["lists"]
                if "rollouts" in row:
                    batch["rollouts"] = [Rollout.model_validate_json(text) for text in row["rollouts"]]
                batch[_REMADE] = [videos_of(row["key"])] * len(batch["prompt_ids"])
                self.spare.append(SpareGroup(row["sampled_at"], row["key"], batch))
        self.estimate.live, self.estimate.counted = state["live"], state["counted"]


def group_of(batch: dict[str, Any], group: int, rollouts: int) -> dict[str, Any]:
    """Rows of one group of a batch, without the padding that only other rows need."""
    rows = slice(group * rollouts, (group + 1) * rollouts)
    count = len(batch["prompt_ids"])
    own: dict[str, Any] = {
        name: value[rows]
        for name, value in batch.items()
        if (isinstance(value, torch.Tensor) and value.ndim and len(value) == count)
        or (isinstance(value, list) and len(value) == count)
    }
    left = int(own["prompt_mask"].any(dim=0).int().argmax())
    width = batch["completion_ids"].shape[1]
    # Rollouts that are out of the loss have no tokens in the mask, and lose some here.
    right = max(1, int(own["completion_mask"].any(dim=0).nonzero().max()) + 1)
    for name, value in own.items():
        if isinstance(value, torch.Tensor) and value.ndim > 1:
            if name.startswith("prompt_"):
                own[name] = value[:, left:].clone()
            elif value.shape[1] == width:
                own[name] = value[:, :right].clone()
    return own


def with_present_policy(inputs: dict[str, Any], logps: torch.Tensor) -> None:
    """Put the policy's own log-probabilities, without a gradient and in place, where those of the
    policy that sampled are unknown because it is the same: their ratio is 1."""
    old = inputs.get(OLD)
    if old is not None:
        old.copy_(torch.where(torch.isnan(old), logps.detach().to(old), old))
