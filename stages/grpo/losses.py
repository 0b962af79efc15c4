"""Losses of GRPO that are TRL's, except where TRL's depend on the machine.

TRL 1.16 divides `bnpo` and the entropy bonus by the tokens that one process holds at once, and
takes the highest entropies among those that all processes hold at once. The same row would then
train otherwise on another number of devices or of completions per device. Here all three are about
the tokens of a whole generation: `bnpo` is `dapo`, the bonus is added to TRL's loss, and TRL's
entropy mask is computed once for all rollouts of a generation, from the policy that sampled them.

Where rollouts were sampled by an earlier policy or by another program, each token's advantage is
weighted by its probability under the policy before its update over the one that it was sampled
with, at most a bound: truncated importance sampling (Ionides, 2008; token by token as in Yao et
al., *Your Efficient RL Framework Secretly Brings You Off-Policy RL Training*, 2025).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from trl import GRPOConfig
from trl.models.utils import disable_gradient_checkpointing

from stages.grpo.policy.video import TakesVideos

#: Columns of a generation: which of its tokens have a high entropy, and how many there are.
HIGH, HIGH_TOKENS = "high_entropy", "num_high_entropy"

#: Entropies that differ by less, in nats, are equal.
TIED = 1e-4
#: Columns of a generation: log-probabilities of the policy before its update, and those that the
#: tokens were sampled with; NaN: not known.
OLD, SAMPLED = "old_per_token_logps", "sampling_per_token_logps"


class Passed(NamedTuple):
    """What a pass over replies gives for each token, [replies, tokens]."""

    logps: torch.Tensor
    entropies: torch.Tensor | None


class LossesOfAGeneration(TakesVideos):
    """:class:`TakesVideos` whose losses do not depend on how rollouts are dealt to devices.

    Reads what TRL reads: ``args.loss_type``, ``args.entropy_coef``, ``args.top_entropy_quantile``
    and the others.

    Args (beside those of :class:`~stages.grpo.policy.video.TakesVideos`):
        sampling_ratio_cap: largest weight of a token whose sampling is corrected.
    """

    def __init__(self, *, args: GRPOConfig, sampling_ratio_cap: float = math.inf, **kwargs: Any) -> None:
        self._sampling_ratio_cap = sampling_ratio_cap
        #: Batch whose advantages wait for their weights.
        self._unweighted: dict[str, Any] | None = None
        super().__init__(args=args, **kwargs)
        self.loss_type = "dapo" if args.loss_type == "bnpo" else args.loss_type
        self._entropy_bonus_enabled = False  # TRL's; ours is added in `_compute_loss`
        self._latest: Passed | None = None
        self._high_BT: torch.Tensor | None = None

    @property
    def latest(self) -> Passed:
        """The latest pass over replies."""
        assert self._latest is not None
        return self._latest

    @property
    def _rows_without_advantage_teach(self) -> bool:
        """Whether a row whose advantage is 0 changes the gradient: as one more row, by its KL term
        or by its entropy."""
        return self.loss_type not in ("dapo", "cispo") or self.beta != 0 or self.entropy_coef != 0

    def _with_entropy_mask(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add the mask of the tokens with the highest entropies of the whole generation, where only
        those are trained."""
        if self.top_entropy_quantile == 1:
            return batch
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            _, entropies_BT = self._passed(batch, self.model, entropy=True)
        high_BT = self._with_ties(
            super().get_high_entropy_mask(entropies_BT, batch["completion_mask"], 1 - self.top_entropy_quantile),
            entropies_BT,
            batch["completion_mask"].bool(),
        )
        return {**batch, HIGH: high_BT, HIGH_TOKENS: self.accelerator.gather(high_BT.sum()).sum()}

    def _with_ties(self, high_BT: torch.Tensor, entropies_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Add the tokens whose entropy is the lowest of the mask's but for rounding. The first
        tokens of a prompt's rollouts have one distribution; rounding must not decide between
        them."""
        own_lowest = torch.where(high_BT, entropies_BT, torch.inf).min()
        lowest: torch.Tensor = self.accelerator.gather(own_lowest[None]).min()
        return mask_BT & (entropies_BT >= lowest - TIED)

    def get_high_entropy_mask(self, entropies: torch.Tensor, mask: torch.Tensor, threshold: float) -> torch.Tensor:  # noqa: ARG002
        """Return the rows of the generation's mask whose loss is computed now."""
        assert self._high_BT is not None
        return self._high_BT

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._high_BT = inputs.get(HIGH)
        loss = self._policy_loss(model, inputs)
        if self.entropy_coef:
            mask_BT, tokens = inputs["completion_mask"], inputs["num_items_in_batch"]
            if self._high_BT is not None:
                mask_BT, tokens = mask_BT * self._high_BT, inputs[HIGH_TOKENS]
            entropies_BT = self.latest.entropies
            assert entropies_BT is not None
            loss = loss - self.entropy_coef * (entropies_BT * mask_BT).sum() / self._share_of(tokens)
        self._latest = None  # and with it the pass that gradients are taken of
        return loss

    def _policy_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """TRL's loss, without an entropy bonus."""
        if SAMPLED in inputs:
            # TRL takes advantages by token, too. These are filled in place, once the pass that the
            # loss itself makes has given the weights.
            advantages_BT = inputs["advantages"][:, None].expand(inputs[SAMPLED].shape).clone()
            inputs = self._unweighted = {**inputs, "advantages": advantages_BT}
        try:
            loss: torch.Tensor = super()._compute_loss(model, inputs)
        finally:
            self._unweighted = None
        return loss

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        passed = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._latest = Passed(*passed[:2])
        if self._unweighted is not None:
            self._weigh(self._unweighted, passed[0].detach())
        return passed

    def _weigh(self, inputs: dict[str, Any], logps_BT: torch.Tensor) -> None:
        """Multiply the advantages by the truncated ratios of sampling, in place, and log how far
        the two policies are apart."""
        old_BT = inputs.get(OLD)
        old_BT = logps_BT if old_BT is None else torch.where(old_BT.isnan(), logps_BT, old_BT)
        gap_BT = old_BT - inputs[SAMPLED]
        known_BT = inputs["completion_mask"].bool() & ~gap_BT.isnan()
        ratio_BT = torch.where(known_BT, gap_BT, 0.0).exp()
        inputs["advantages"].mul_(ratio_BT.clamp(max=self._sampling_ratio_cap))
        if self.model.training:
            self._log_sampling(gap_BT.abs(), ratio_BT, known_BT)

    def _log_sampling(self, gap_BT: torch.Tensor, ratio_BT: torch.Tensor, known_BT: torch.Tensor) -> None:
        """Log means and largest values over the known tokens of all processes."""
        measured = torch.where(known_BT, torch.stack([gap_BT, ratio_BT]), 0.0).flatten(1).double()
        sums = self.accelerator.gather(torch.cat([measured.sum(1), known_BT.sum()[None]])[None]).sum(0)
        largest = self.accelerator.gather(measured.amax(1)[None]).amax(0)
        for row, name in enumerate(("logp_difference", "ratio")):
            self._metrics["train"][f"sampling/{name}/mean"].append((sums[row] / sums[2].clamp(min=1)).item())
            self._metrics["train"][f"sampling/{name}/max"].append(largest[row].item())

    def _share_of(self, tokens: torch.Tensor) -> torch.Tensor:
        """Divisor of a sum over this process's tokens, so that what all processes and rounds of
        accumulation add up is divided by ``tokens``; as TRL's `dapo` does."""
        share: torch.Tensor = tokens.clamp(min=1.0) / self.accelerator.num_processes
        if self.model.training:
            share = share * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return share
