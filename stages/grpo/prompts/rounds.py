"""Rounds of a generation: its prompts, and dynamic sampling until its groups are live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from stages.grpo.by_task.measuring import MeasuresTasks
from stages.grpo.losses import OLD
from stages.grpo.prompts.resampling import PromptPool, dead_groups, replace_groups
from stages.grpo.prompts.sampler import TaskSampler
from stages.grpo.prompts.surplus import SpareGroup, Surplus, group_of, with_present_policy

#: Beside the weights in a checkpoint: the number of prompts taken from the pool.
POOL_FILE = "reserve.json"
#: The sampler's draw, and the live share of each task.
SAMPLER_FILE = "task_sampler.json"
#: The groups that no step has trained on, and the live share.
SURPLUS_FILE = "surplus.safetensors"


class DrawsPrompts(MeasuresTasks):
    """Trainer that draws the prompts of a generation, and replaces groups without a gradient.

    Args (beside those of :class:`~stages.grpo.by_task.measuring.MeasuresTasks`):
        pool: prompts that replace those whose rollouts all have equal rewards; None: such groups
            stay.
        sampler: draws the prompts of each generation in place of the dataset; None: the dataset
            does.
        surplus: draws by the live share, and keeps what a round does not need; None: a round draws
            one prompt for each missing group.
    """

    def __init__(
        self,
        *,
        pool: PromptPool | None = None,
        sampler: TaskSampler | None = None,
        surplus: Surplus | None = None,
        **kwargs: Any,
    ) -> None:
        self._pool, self._sampler, self._surplus = pool, sampler, surplus
        #: Batch whose loss is being computed.
        self._loss_inputs: dict[str, Any] | None = None
        super().__init__(**kwargs)

    def _scored(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Build the batch of generated and scored rollouts of some prompts."""
        raise NotImplementedError

    @property
    def _notes_groups(self) -> bool:
        return super()._notes_groups or self._sampler is not None or self._surplus is not None

    @property
    def _keeps_surplus(self) -> bool:
        """True if live groups that the present generation does not need are kept."""
        return self._surplus is not None and self._surplus.keeps and bool(self.model.training)

    def _of_each_process(self, number: int) -> torch.Tensor:
        """Gather a number from every process, shape [processes]; on the accelerator, since NCCL
        gathers only from there."""
        gathered: torch.Tensor = self.accelerator.gather(torch.tensor([number], device=self.accelerator.device))
        return gathered

    def _most_of_any_process(self, rows: int) -> int:
        return int(self._of_each_process(rows).max().item())

    def _own_rows(self, rows: int) -> slice:
        """Slice of this process in the rows of all processes, each of which has ``rows``."""
        return slice(self.accelerator.process_index * rows, (self.accelerator.process_index + 1) * rows)

    def _counted(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Recount the tokens that the loss of the batch is divided by, over all processes."""
        return {**batch, "num_items_in_batch": self.accelerator.gather(batch["completion_mask"].sum()).sum()}

    def _generation(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Generate and score the rollouts of a step, in all its rounds, and measure them."""
        self._drawn_groups, self._sampled = [], None
        if not self.model.training:
            return self._scored(inputs)
        self._collects_sampled = measured = self._due(self._gauges_every)
        try:
            batch = self._scored(self._chosen(inputs))
        finally:
            self._collects_sampled = False
        if measured:
            self._measure_tasks(batch)
        if self._pool is not None:
            batch = self._resampled(batch)
        if self._due(self._gradients_every):
            self._compare_gradients(batch)
        if self._gauges_every:
            self._log_dead_groups()
        if self._sampler is not None:
            self._sampler.observe([(group.task, group.live) for group in self._drawn_groups if group.known])
        return batch

    def _chosen(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows of this process, of the prompts that the sampler draws."""
        if self._sampler is None:
            return inputs
        prompts = len(inputs) * self.accelerator.num_processes // self.num_generations
        keys = [key for key in self._sampler.take(prompts) for _ in range(self.num_generations)]
        live = self._sampler.live_shares()
        for task, share in self._sampler.shares().items():
            self._metrics["train"][f"prompt_share/{task}"].append(share)
            self._metrics["train"][f"live_share/{task}"].append(live[task])
        return [{"prompt": key} for key in keys[self._own_rows(len(inputs))]]

    def _resampled(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Replace groups without a gradient, by spare groups first and then by groups of prompts of
        the pool, for at most its number of rounds.

        The metrics of a generation are means over its rounds, the replaced rollouts included; each
        round counts once.
        """
        assert self._pool is not None
        rollouts, replaced, noted = self.num_generations, 0, 0
        if self._surplus is not None:
            batch = self._with_spare(self._surplus, batch)
        for _ in range(self._pool.rounds):
            if self._surplus is not None:
                noted = self._count_live(self._surplus, noted)
            dead = dead_groups(batch["advantages"], rollouts)
            # Processes generate together, so each takes as many prompts as the one with the most
            # dead groups asks for.
            count = missing = self._most_of_any_process(len(dead))
            if not missing:
                break
            if self._surplus is not None:
                count = self._surplus.prompts_for(missing)
            keys = self._pool.take(count, self.accelerator.process_index, self.accelerator.num_processes)
            fresh = self._scored([{"prompt": key} for key in keys for _ in range(rollouts)])
            useless = set(dead_groups(fresh["advantages"], rollouts))
            live = [group for group in range(count) if group not in useless]
            pairs = list(zip(dead, live, strict=False))
            batch = self._replaced(batch, fresh, pairs)
            if self._surplus is not None:
                self._keep(self._surplus, fresh, live[len(pairs) :], keys)
            replaced += len(pairs)
        if self._surplus is not None:
            self._count_live(self._surplus, noted)
            self._log_surplus(self._surplus)
        self._metrics["train"]["resampled_groups"].append(float(self._of_each_process(replaced).sum().item()))
        return self._counted(batch)

    def _replaced(self, batch: dict[str, Any], fresh: dict[str, Any], pairs: list[tuple[int, int]]) -> dict[str, Any]:
        pad = int(self.processing_class.tokenizer.pad_token_id)
        return replace_groups(batch, fresh, pairs, self.num_generations, pad)

    def _with_spare(self, surplus: Surplus, batch: dict[str, Any]) -> dict[str, Any]:
        """Replace dead groups of this process by its spare groups, oldest first."""
        spare = surplus.usable(self.state.global_step)
        pairs = list(zip(dead_groups(batch["advantages"], self.num_generations), spare, strict=False))
        for dead, group in pairs:
            batch = self._replaced(batch, group.batch, [(dead, 0)])
        surplus.spare = spare[len(pairs) :]
        lags = [self.state.global_step - group.sampled_at for _, group in pairs]
        used: list[int] = gather_object(lags)
        self._metrics["train"]["surplus/used"].append(float(len(used)))
        if used:
            self._metrics["train"]["surplus/lag"].append(sum(used) / len(used))
        return batch

    def _keep(self, surplus: Surplus, fresh: dict[str, Any], groups: list[int], keys: list[str]) -> None:
        """Keep live groups for later generations, with the log-probabilities of the policy that
        sampled them."""
        if not surplus.keeps:
            return
        for group in groups:
            own = group_of(fresh, group, self.num_generations)
            if own[OLD].isnan().any():
                with torch.no_grad():
                    own[OLD] = self._passed(own, self.model)[0].to(own[OLD])
            surplus.spare.append(SpareGroup(self.state.global_step, keys[group], own))

    def _count_live(self, surplus: Surplus, noted: int) -> int:
        """Count the groups drawn since the first ``noted``; return how many are counted now."""
        fresh = [group.live for group in self._drawn_groups[noted:] if group.known]
        surplus.estimate.add(sum(fresh), len(fresh), decay=noted == 0)
        return len(self._drawn_groups)

    def _log_surplus(self, surplus: Surplus) -> None:
        kept = self._of_each_process(len(surplus.spare)).sum().item()
        self._metrics["train"]["surplus/kept"].append(float(kept))
        self._metrics["train"]["live_share"].append(surplus.estimate.share)

    def _with_old(self, output: dict[str, Any]) -> dict[str, Any]:
        """Add the column that spare groups need; NaN: the policy that sampled is the present
        one."""
        if self._keeps_surplus and OLD not in output:
            output[OLD] = torch.full(output["completion_ids"].shape, torch.nan, device=output["completion_ids"].device)
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._loss_inputs = inputs = dict(inputs)
        if OLD in inputs:
            inputs[OLD] = inputs[OLD].clone()  # filled in place, and read from a copy of the inputs, too
        try:
            loss: torch.Tensor = super()._compute_loss(model, inputs)
        finally:
            self._loss_inputs = None
        return loss

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._loss_inputs is not None:
            with_present_policy(self._loss_inputs, found[0])
        return found

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        first = self.accelerator.is_main_process
        if self._pool is not None and first:
            self._pool.save(folder / POOL_FILE)
        if self._sampler is not None and first:
            self._sampler.save(folder / SAMPLER_FILE)
        if self._surplus is not None:
            gathered = gather_object([[_without_videos(group) for group in self._surplus.spare]])
            if first:
                self._surplus.save(folder / SURPLUS_FILE, gathered)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        # Here and not where weights are loaded: DeepSpeed loads those itself, without calling a
        # method of the trainer.
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if self._pool is not None:
            self._pool.load(Path(checkpoint) / POOL_FILE)
        if self._sampler is not None:
            self._sampler.load(Path(checkpoint) / SAMPLER_FILE)
        if self._surplus is not None:
            self._surplus.load(
                Path(checkpoint) / SURPLUS_FILE,
                self.accelerator.process_index,
                self.accelerator.num_processes,
                lambda key: self._encode([key])[0].videos,
                self.accelerator.device,
            )


def _without_videos(group: SpareGroup) -> SpareGroup:
    batch = {
        name: value.cpu() if isinstance(value, torch.Tensor) else value
        for name, value in group.batch.items()
        if name != "videos"
    }
    return SpareGroup(group.sampled_at, group.key, batch)
