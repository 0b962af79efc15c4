"""Mixed policy (LUFFY, arXiv 2504.14945): in the group of a prompt with a written reply, that reply
takes the place of the first rollout.

It is scored and gets its advantage like any other of the group. The policy did not sample it, so
its ratio has no clipping: with the probability of the writer set to 1, as in the paper, the term of
a token of probability p is -f(p) A with f(p) = p / (p + gamma), the paper's policy shaping. Its
slope, gamma / (p + gamma)^2, is largest for tokens that the policy finds unlikely.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stages.grpo.losses import HIGH, LossesOfAGeneration

#: Column of a generation: which of its rows are written.
WRITTEN = "written"


@dataclass(frozen=True)
class Written:
    """Written replies of a GRPO row.

    Attributes:
        gamma: of the paper's f; 0.1 there.
        replies: token ids of the reply to a prompt, with the end of the turn, by the prompt's key.
    """

    gamma: float
    replies: Mapping[str, Sequence[int]]


class MixesPolicies(LossesOfAGeneration):
    """:class:`LossesOfAGeneration` with written replies among the rollouts.

    Args (beside those of :class:`~stages.grpo.policy.video.TakesVideos`):
        written: the written replies; None: all replies are rollouts.
    """

    def __init__(self, *, written: Written | None = None, **kwargs: Any) -> None:
        self._written = written
        #: Rows of this process, in the latest round of generation, with a written reply; by row.
        self._written_rows: dict[int, Sequence[int]] = {}
        super().__init__(**kwargs)

    def _written_among(self, keys: Sequence[str]) -> dict[int, Sequence[int]]:
        """Written replies among the rows of this process in a round of training, by row."""
        if self._written is None:
            return {}
        before = self.accelerator.process_index * len(keys)
        return {
            row: self._written.replies[key]
            for row, key in enumerate(keys)
            # A group may be dealt to several processes; its first row is of one of them.
            if (before + row) % self.num_generations == 0 and key in self._written.replies
        }

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        self._written_rows = self._written_among(prompts) if self.model.training else {}
        return super()._tokenize_prompts(prompts)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        completions, logps = super()._generate_single_turn(*args, **kwargs)
        for row, ids in self._written_rows.items():
            completions[row] = list(ids)
            if logps is not None:
                logps[row] = [math.nan] * len(ids)
        return completions, logps

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self._written is None:
            return output
        rows = torch.zeros(len(output["advantages"]), dtype=torch.bool, device=output["advantages"].device)
        rows[list(self._written_rows)] = True
        return {**output, WRITTEN: rows}

    def _policy_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if self._written is None:
            return super()._policy_loss(model, inputs)
        rows_B, advantages_B = inputs[WRITTEN], inputs["advantages"]
        loss = super()._policy_loss(model, {**inputs, "advantages": advantages_B.masked_fill(rows_B, 0.0)})
        p_BT = torch.exp(self.latest.logps)
        terms_BT = -p_BT / (p_BT + self._written.gamma) * (advantages_B * rows_B)[:, None]
        if HIGH in inputs:
            terms_BT = terms_BT * inputs[HIGH]
        return loss + self._divided(terms_BT * inputs["completion_mask"], inputs)

    def _divided(self, terms_BT: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """Sum of the terms of tokens, divided as TRL divides those of the row's loss."""
        if self.loss_type in ("dapo", "cispo"):
            return terms_BT.sum() / self._share_of(inputs["num_items_in_batch"])
        rounds: int = self.current_gradient_accumulation_steps if self.model.training else 1
        if self.loss_type == "dr_grpo":
            replies: int = len(terms_BT) * self.max_completion_length
            return terms_BT.sum() / (replies * rounds)
        assert self.loss_type in ("grpo", "sapo")
        tokens_B: torch.Tensor = inputs["completion_mask"].sum(1).clamp(min=1)
        return (terms_BT.sum(1) / tokens_B).mean() / rounds
