"""GRPO trainer of this project: TRL's with video, our rewards and advantages, dynamic sampling and
controls."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from trl import GRPOConfig
from trl.models import unwrap_model_for_generation

from stages.domain.rl.rollouts import Rollout
from stages.domain.rl.shaping import OverlongPenalty, overlong_paid
from stages.grpo.advantages import TaskScales, normalised, scaled, summed, with_advantage
from stages.grpo.controls import CONTRAST, VIEWS, Controls, View, contrast_of
from stages.grpo.mixed import MixesPolicies
from stages.grpo.prompts.ahead import DrawsAhead
from stages.grpo.rollout_log import RolloutLog
from stages.grpo.step import Rewards, Round, StepScores
from stages.lib.inference.generate import rollouts
from stages.lib.inference.policy import ModelPolicy, Policy
from stages.lib.models.rendering import reply_opening
from stages.lib.training.loop import Resumes
from stages.lib.training.rates import RatesOfParts

#: Beside the weights in a checkpoint: the moving scales of the tasks' rewards.
SCALES_FILE = "reward_scales.json"

#: Name of the objective that holds the penalty for replies close to the limit.
OVERLONG = "overlong"

#: Metric of the fraction of groups with equal rewards; the gauges of the rewards see only one
#: process's part of the groups.
ALIKE = "gauge/zero_variance_groups"

#: Decimal places of logged rewards and advantages: single precision holds no more.
DIGITS = 6


def paid_column(objective: str, *, paid: Sequence[Mapping[str, float | None]], **_: Any) -> list[float | None]:
    """Column of one objective: a reward function of TRL that reads the column ``paid`` of the
    scored rows."""
    return [row[objective] for row in paid]


class VideoGRPOTrainer(Resumes, RatesOfParts, DrawsAhead, MixesPolicies):
    """Trainer of a GRPO row.

    Args (beside those of its bases):
        rewards: scores the replies of each round of generation, once.
        controls: replies to changed videos, for gauges and for the frame-order reward; None: there
            are none.
        rollout_log: logs rollouts for people to read; None: nothing is logged.
        overlong: penalty for replies close to the limit, one more objective; None: there is none.
        scales: moving scale of each task, used for advantages instead of `args.scale_rewards`.
    """

    def __init__(
        self,
        *,
        rewards: Rewards,
        args: GRPOConfig,
        scales: TaskScales | None = None,
        controls: Controls | None = None,
        rollout_log: RolloutLog | None = None,
        overlong: OverlongPenalty | None = None,
        **kwargs: Any,
    ) -> None:
        self._rewards, self._scales = rewards, scales
        #: Judging beside training and in the main thread take turns.
        self._judging = threading.Lock()
        self._controls, self._rollout_log, self._overlong = controls, rollout_log, overlong
        weights = dict(rewards.weights)
        if controls is not None and controls.contrast is not None:
            weights[CONTRAST] = controls.contrast.weight
        if overlong is not None:
            weights[OVERLONG] = overlong.weight
        args.reward_weights = list(weights.values())
        #: Rounds of the step whose rollouts are being generated; empty between generations.
        self._rounds: list[Round] = []
        columns = [partial(paid_column, name) for name in weights]
        super().__init__(args=args, reward_funcs=columns, **kwargs)
        self.reward_func_names = list(weights)  # TRL would name them all by their function

    @property
    def _round(self) -> int:
        return len(self._rounds)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        try:
            batch = self._generation(inputs)
        finally:
            self._rounds = []
        batch.pop("tasks")
        batch = self._with_entropy_mask(batch)
        rollouts: list[Rollout] | None = batch.pop("rollouts", None)
        if rollouts is not None and self._logs_rollouts:
            assert self._rollout_log is not None
            all_rollouts = gather_object(rollouts)
            if self.accelerator.is_main_process:
                self._rollout_log.keep(self._upcoming_step, all_rollouts)
        return batch

    @property
    def _upcoming_step(self) -> int:
        """Last of the steps that train on the rollouts being generated now."""
        return int(min(self.state.global_step + self.num_iterations, self.state.max_steps))

    @property
    def _logs_rollouts(self) -> bool:
        """True if the rollouts being generated now are logged."""
        log = self._rollout_log
        return log is not None and bool(self.model.training) and log.due(self._upcoming_step)

    def _scored(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Build TRL's batch of generated and scored rollouts, with their videos and our advantages;
        rollouts without a reward are masked."""
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        latest = self._rounds[-1]
        output["advantages"] = self._advantages(latest)[self._own_rows(len(inputs))].to(output["advantages"])
        if latest.masked_B.any():
            output = self._without_masked(output, latest.masked_B)
        if self.mask_truncated_completions:
            # Their tokens are out of the loss: a group with no other advantage teaches nothing.
            output["advantages"] = output["advantages"] * output["completion_mask"].any(dim=1)
        self._note_groups(output["advantages"], latest.rewards_BK, latest.scores)
        # Lists, so that their rows are replaced along with the others by dynamic sampling.
        output["tasks"] = [score.task for score in latest.scores.scores]
        if self._logs_rollouts or self._keeps_surplus:
            output["rollouts"] = self._logged(latest, output["advantages"].tolist())
        return self._with_old(output)

    def _logged(self, latest: Round, advantages: Sequence[float]) -> list[Rollout]:
        """Rollouts of this process with the reward of each objective."""
        paid = latest.rewards_BK[self._own_rows(len(advantages))].tolist()
        return [
            Rollout(
                score=score,
                paid={
                    name: round(value, DIGITS)
                    for name, value in zip(self.reward_func_names, values, strict=True)
                    if not math.isnan(value)
                },
                advantage=round(advantage, DIGITS),
                written=True if row in self._written_rows else None,
            )
            for row, (score, values, advantage) in enumerate(zip(latest.scores.scores, paid, advantages, strict=True))
        ]

    def _without_masked(self, output: dict[str, Any], masked_B: torch.Tensor) -> dict[str, Any]:
        """Exclude the tokens of rollouts that have no reward from the loss, its KL term and its
        count of tokens.

        Their advantage is already 0, but their tokens would still dilute the gradient of the others
        and enter the KL term.
        """
        mask = output["completion_mask"]
        own_masked = masked_B[self._own_rows(len(mask))].to(mask.device)
        mask = mask * (~own_masked).unsqueeze(1).to(mask.dtype)
        return self._counted({**output, "completion_mask": mask})

    def _advantages(self, latest: Round) -> torch.Tensor:
        """Compute the advantages of the rows of all processes, which replace TRL's.

        Every process computes all of them: a group may be spread over several processes, and the
        scales of tasks stay the same everywhere. The logged fraction of groups without an advantage
        replaces two others: TRL's, which takes rounding errors for a spread, and the gauge's, which
        sees only the replies of one process and the task reward.
        """
        mode = "train" if self.model.training else "eval"
        rollouts = self.num_generations if self.model.training else self.num_generations_eval
        rewards_PGK = latest.rewards_BK.cpu().view(-1, rollouts, latest.rewards_BK.shape[1])
        weights_K = self.reward_weights.cpu()
        if self._scales is not None and self.model.training:
            advantages_PG = self._scaled_by_task(self._scales, summed(rewards_PGK, weights_K), latest.scores)
        elif self.multi_objective_aggregation == "normalize_then_sum":
            advantages_PG = normalised(rewards_PGK, weights_K)
        else:
            advantages_PG = scaled(summed(rewards_PGK, weights_K), self.scale_rewards)
        alike_P, known_P = ~advantages_PG.any(dim=1), (~torch.isnan(rewards_PGK)).flatten(1).any(dim=1)
        self._metrics[mode]["frac_reward_zero_std"][-1] = float(alike_P.double().mean())
        if self._metrics[mode].get(ALIKE) and known_P.any():
            # From whole groups and all objectives; prompts without any reward are left out.
            self._metrics[mode][ALIKE][-1] = float(alike_P[known_P].double().mean())
        return advantages_PG.flatten()

    def _scaled_by_task(self, scales: TaskScales, rewards_PG: torch.Tensor, scores: StepScores) -> torch.Tensor:
        tasks: list[str] = gather_object([score.task for score in scores.scores])[:: self.num_generations]
        advantages_PG = scales.advantages(rewards_PG, tasks)
        for task in sorted(set(tasks)):
            self._metrics["train"][f"reward_spread/{task}"].append(scales.spread(task))
        return advantages_PG

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self._scales is not None and self.accelerator.is_main_process:
            self._scales.save(folder / SCALES_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self._scales is not None:
            self._scales.load(Path(checkpoint) / SCALES_FILE)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if not self._rows_without_advantage_teach:
            inputs = with_advantage(inputs, self._most_of_any_process)
        loss: torch.Tensor = super()._compute_loss(model, inputs)
        return loss

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        replies = self._opened(completions)
        scores = self._early_scores(replies)
        if scores is None:
            scores = self._score(prompts, replies, self._written_rows)
        self._report(scores)
        if self._controls is not None and self.model.training:
            scores = self._with_other_videos(self._controls, scores, prompts)
        if self._overlong is not None:
            scores = scores.with_objective(OVERLONG, self._overlong_paid(self._overlong, scores, completion_ids_list))
        # TRL hands a row's other columns to the reward functions, and makes NaN of None.
        rows = [{**row, "paid": paid} for row, paid in zip(inputs, scores.paid(), strict=True)]
        rewards_BK: torch.Tensor = super()._calculate_rewards(rows, prompts, replies, completion_ids_list)
        self._rounds.append(Round(scores, rewards_BK))
        masked = [int(each.masked_B.sum().item()) for each in self._rounds]
        self._metrics["train" if self.model.training else "eval"]["masked_rollouts"].append(float(masked[-1]))
        # Over all rounds of dynamic sampling together: in a round of one or two prompts, one reply
        # is a large fraction.
        self._rewards.check_masked(sum(masked), sum(len(each.rewards_BK) for each in self._rounds))
        return rewards_BK

    def _opened(self, completions: Sequence[str]) -> list[str]:
        opening = reply_opening(self.processing_class)
        return [opening + completion for completion in completions]

    def _score(self, keys: Sequence[str], replies: Sequence[str], written: Mapping[int, Any]) -> StepScores:
        with self._judging:
            return self._rewards.score(keys, replies, tuple(written))

    def _judged(self, keys: Sequence[str], ids: Sequence[Sequence[int]]) -> StepScores:
        written = self._written_among(keys)
        completions = [list(written.get(row, reply)) for row, reply in enumerate(ids)]
        texts = self.processing_class.batch_decode(completions, skip_special_tokens=True)
        return self._score(keys, self._opened(texts), written)

    def _overlong_paid(
        self, rule: OverlongPenalty, scores: StepScores, ids: Sequence[Sequence[int]]
    ) -> list[float | None]:
        """Overlong penalty of each reply; None where there is no verdict about it, which leaves it
        without a reward, or where its truncation takes it out of the loss."""
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        return [
            None
            if total is None or (self.mask_truncated_completions and reply[-1] not in ends)
            else overlong_paid(len(reply), self.max_completion_length, rule)
            for total, reply in zip(scores.total, ids, strict=True)
        ]

    def _report(self, scores: StepScores) -> None:
        """Log the mean reward of each task, of written replies apart, the fraction of well-formed
        rollouts, and the gauges; TRL averages over all processes."""
        for row, (score, value) in enumerate(zip(scores.scores, scores.total, strict=True)):
            if value is not None:
                self._log_metric(f"reward/{'written/' * (row in self._written_rows)}{score.task}", value)
        for row, fits in enumerate(scores.well_formed):
            if row not in self._written_rows:
                self._log_metric("format", float(fits))
        for name, value in scores.gauges.items():
            self._log_metric(f"gauge/{name}", value)

    def _with_other_videos(self, controls: Controls, scores: StepScores, prompts: list[str]) -> StepScores:
        """Add the frame-order reward to the scores; log the gauges of the controls where they are
        due."""
        # Once a step, and not in each round of dynamic sampling.
        due = controls.due(self.state.global_step) and not self._rounds
        if controls.contrast is None and not due:
            return scores
        # Written replies say nothing of the policy. (They never meet the contrast in a row.)
        sampled = [(key, s) for row, (key, s) in enumerate(zip(prompts, scores.shares, strict=True))
                   if row not in self._written_rows]  # fmt: skip
        earned = gather_object(sampled)
        distinct = list(dict.fromkeys(prompts))
        # The contrast compares several replies to a prompt. A gauge needs one: the first, which
        # does not depend on their number.
        count = 1 if controls.contrast is None else controls.contrast.rollouts
        on_shuffled = self._scores_on("shuffled", distinct, controls, count)
        if controls.contrast is not None:
            other = dict(gather_object([*zip(distinct, on_shuffled, strict=True)]))
            paid = contrast_of(
                [key for key, _ in earned],
                [share for _, share in earned],
                other,
                self.num_generations,
                controls.contrast,
            )
            # A group may be spread over several processes. (Unlike other objectives, this may be
            # unknown where the reward is known.)
            scores = scores.with_objective(CONTRAST, paid[self._own_rows(len(prompts))])
        if due:
            on_blank = self._scores_on("blank", distinct, controls, 1)
            self._log_controls(_mean([share for _, share in earned]), {"blank": on_blank, "shuffled": on_shuffled})
        return scores

    def _log_controls(self, own: float | None, earned: dict[View, list[list[float | None]]]) -> None:
        """Log the mean score of the first reply to each prompt on a black and on a shuffled video,
        beside ``own``, that on its own video."""
        means = {view: _mean(gather_object([shares[0] for shares in earned[view]])) for view in VIEWS}
        if own is None or not self.accelerator.is_main_process:
            return
        gauges = self._rewards.control_gauges(own, means["blank"], means["shuffled"])
        logged = {"control/video": own, **{f"control/{view}_video": mean for view, mean in means.items()}}
        logged |= {f"gauge/{name}": value for name, value in gauges.items()}
        for name, value in logged.items():
            if value is not None:
                self._metrics["train"][name].append(value)

    def _scores_on(self, view: View, keys: list[str], controls: Controls, count: int) -> list[list[float | None]]:
        """Score `count` replies to each of these prompts with its video changed; every process must
        call it."""
        seeds = [f"{controls.seed}/{view}/{self.state.global_step}/{key}" for key in keys]

        def drawn_by(policy: Policy) -> list[list[str]]:
            return rollouts(
                policy,
                [controls.item(key, view) for key in keys],
                seeds,
                count=count,
                max_new_tokens=self.max_completion_length,
                temperature=self.temperature,
                batch_size=max(1, controls.batch_size // count),
            )

        replies = self._by_engine(drawn_by)
        if replies is None:
            with unwrap_model_for_generation(
                self.model_wrapped, self.accelerator, gather_deepspeed3_params=self.args.ds3_gather_for_generation
            ) as model:
                replies = drawn_by(ModelPolicy(model, self.processing_class))
        with self._judging:
            shares = self._rewards.shares(
                [key for key in keys for _ in range(count)], [reply for group in replies for reply in group]
            )
        return [list(shares[start : start + count]) for start in range(0, len(shares), count)]


def _mean(shares: Sequence[float | None]) -> float | None:
    scored = [share for share in shares if share is not None]
    return sum(scored) / len(scored) if scored else None
