"""Trainer of the cold start: TRL's, with sums and random numbers that do not depend on the number
of processes.

The samples of an optimiser step are divided into shards, each passed through the model at once. One
process takes them in turn, several take them side by side; the order of the samples is the same.
"""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from trl import SFTTrainer

from stages.lib.models.packing import LAYOUT
from stages.lib.training.loop import Resumes
from stages.lib.training.rates import RatesOfParts

#: What is summed over the tokens of a shard: losses (divided by the tokens of the step), entropies,
#: tokens that were the most likely ones, scored tokens, and tokens of prompts and replies.
_SUMS = ("loss", "entropy", "correct", "scored", "tokens")


class Trainer(Resumes, RatesOfParts, SFTTrainer):
    """TRL's trainer for packed rows (:func:`stages.lib.models.packing.packed_inputs`) or padded
    rows (:func:`stages.lib.models.processor.training_batch`).

    TRL gathers its metrics from all processes for each shard, which then wait for each other four
    more times a step, and averages shares over shards. Here sums are kept, gathered when they are
    logged, and added up in the order of the shards.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # The classes of the models say otherwise, and transformers would average the means of
        # shards: a sample's weight would depend on those that it shares a shard with.
        self.model_accepts_loss_kwargs = True
        #: Sums of each shard since they were last logged, float64 [5] each.
        self._sums: list[torch.Tensor] = []
        self._step, self._round = -1, 0
        self._trained_tokens = 0

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Draw a shard's random numbers (of dropout) from its own seed."""
        self._round = self._round + 1 if self._step == self.state.global_step else 0
        self._step = self.state.global_step
        shard = self._round * self.accelerator.num_processes + self.accelerator.process_index
        seed = Random(f"{self.args.seed}/{self._step}/{shard}").getrandbits(63)
        # Without a GPU `torch.manual_seed` notes the call, and its stack, for when there is one.
        (torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed)(seed)
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Sum the losses of a shard's tokens, divided by the scored tokens of the whole step.

        Raises:
            ValueError: it is called for an evaluation, which has no step.
        """
        if return_outputs or num_items_in_batch is None:
            raise ValueError("compute_loss: called outside of a training step; measure with a watch")
        packed = inputs.get(LAYOUT)
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        loss: torch.Tensor = -outputs.log_probs.sum() / num_items_in_batch
        tokens = inputs["attention_mask"].sum() if packed is None else torch.tensor(packed.own_tokens)
        sums = (loss, outputs.entropy.sum(), outputs.is_top1.sum(), outputs.label_mask.sum(), tokens)
        self._sums.append(torch.stack([value.detach().double().to(loss.device) for value in sums]))
        # Processes average their gradients.
        of_process: torch.Tensor = loss * self.accelerator.num_processes
        return of_process

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:  # noqa: ARG002
        """Count nothing: transformers names every weight of the model to estimate a number for
        text models, which no one reads here."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log means over the steps since the last log: the loss, and of the scored tokens of a step
        the entropy and the share that was the most likely one."""
        if "loss" in logs:
            sums_NX = torch.stack(self._sums)
            self._sums = []
            rounds = self.args.gradient_accumulation_steps
            gathered = self.accelerator.gather(sums_NX).cpu()
            # [processes, steps, rounds, sums] -> [steps, shards, sums]
            of_shards = gathered.unflatten(0, (self.accelerator.num_processes, -1, rounds)).permute(1, 2, 0, 3)
            of_steps = dict(zip(_SUMS, of_shards.flatten(1, 2).sum(1).unbind(1), strict=True))
            logs["loss"] = of_steps["loss"].mean().item()
            self._trained_tokens += int(of_steps["tokens"].sum())
            self._metrics["train"] |= {
                "entropy": [(of_steps["entropy"] / of_steps["scored"]).mean().item()],
                "mean_token_accuracy": [(of_steps["correct"] / of_steps["scored"]).mean().item()],
                "num_tokens": [self._trained_tokens],
            }
        super().log(logs, start_time)
