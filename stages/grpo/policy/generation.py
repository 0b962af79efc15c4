"""Rollouts by this project's decoding in place of TRL's call of ``generate``.

Each distinct prompt of a process passes through the model once for all its rollouts, and each
rollout has a random generator of its own, seeded by the training, the step, the round of generation
and its place among the rollouts of all processes. So it depends neither on the number of processes
nor, but for rounding errors of the logits, on the other rollouts; training that is resumed repeats
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig
from trl import GRPOConfig, GRPOTrainer
from trl.extras.profiling import profiling_context
from trl.models import unwrap_model_for_generation

from stages.lib.inference.decode import Decoded, Limits, SeededDraws, decode
from stages.lib.models.processor import EncodedPrompt, VideoFields


class DecodesRollouts(GRPOTrainer):
    """`GRPOTrainer` that decodes its rollouts as :mod:`stages.lib.inference.decode` does.

    Args:
        rollout_seed: seed of the rollouts; None: that of `args`.

    Raises:
        ValueError: `args` ask for another distribution than the model's own at a temperature.
    """

    #: Prompts of the rows of the present generation, by key, and their videos.
    _row_keys: list[str]
    _row_videos: list[VideoFields]

    def __init__(self, *, args: GRPOConfig, rollout_seed: str | None = None, **kwargs: Any) -> None:
        self._rollout_seed = str(args.seed) if rollout_seed is None else rollout_seed
        #: Whether the log-probabilities that rollouts are sampled with are collected.
        self._collects_sampled = False
        #: Those of the latest rollouts; None: not asked for.
        self._sampled: list[list[float]] | None = None
        super().__init__(args=args, **kwargs)
        _check_settings(self.generation_config)

    @property
    def _round(self) -> int:
        """Number of rounds of this generation before the present one."""
        return 0

    @property
    def _corrects_sampling(self) -> bool:
        """Whether the loss weighs tokens by the probability that they were sampled with."""
        return False

    def _generate_single_turn(
        self,
        prompt_ids: Sequence[Sequence[int]],
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        rows = [EncodedPrompt(tuple(ids), videos) for ids, videos in zip(prompt_ids, self._row_videos, strict=True)]
        replies = self._rollouts(rows)
        logps = [reply.logps for reply in replies]
        if self._collects_sampled:
            self._sampled = logps
        return [reply.ids for reply in replies], logps if self._corrects_sampling and self.model.training else None

    def _rollouts(self, rows: Sequence[EncodedPrompt]) -> list[Decoded]:
        """Draw a reply to each row of the present round."""
        return self._decode(rows, self._seeds(len(rows), self.state.global_step))

    def _seeds(self, rows: int, step: int) -> list[str]:
        """Seeds of the rollouts of this process that are trained on behind ``step`` steps."""
        before = self.accelerator.process_index * rows
        return [f"{self._rollout_seed}/{step}/{self._round}/{before + row}" for row in range(rows)]

    def _limits(self) -> Limits:
        settings = self.generation_config
        return Limits(
            settings.max_new_tokens,
            tuple(self.eos_token_ids),
            tuple(settings.suppress_tokens or ()),
            settings.min_new_tokens or 0,
            settings.max_time,
        )

    def _decode(self, rows: Sequence[EncodedPrompt], seeds: Sequence[str]) -> list[Decoded]:
        temperature = float(self.generation_config.temperature)
        with (
            profiling_context(self, "decode"),
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            torch.no_grad(),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            return decode(
                model,
                self.processing_class,
                rows,
                SeededDraws(seeds, temperature, self.accelerator.device),
                self._limits(),
                logps_at=temperature if self._collects_sampled or self._corrects_sampling else None,
            )


#: Settings of generation that :func:`~stages.lib.inference.decode.decode` knows.
_KNOWN = {
    "max_new_tokens",
    "min_new_tokens",
    "max_time",
    "temperature",
    "suppress_tokens",
    "do_sample",
    "eos_token_id",
    "pad_token_id",
    "bos_token_id",
    "disable_compile",
}
#: Values of other settings that change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {"top_k": (0, None), "top_p": (1.0, None), "repetition_penalty": (1.0, None)}


def _check_settings(settings: GenerationConfig) -> None:
    """Check that no setting of generation is silently ignored.

    Raises:
        ValueError: one that the decoding does not know.
    """
    for name, value in settings.to_diff_dict().items():
        if name in _KNOWN or name.startswith("_") or name == "transformers_version":
            continue
        if value not in _NEUTRAL.get(name, (None,)):
            raise ValueError(
                f"generation_kwargs: {name} {value!r} is not supported, as rollouts are drawn from the whole"
                f" distribution; leave it out"
            )
    if not settings.do_sample:
        raise ValueError("generation_kwargs: do_sample False gives equal rollouts, which teach nothing; leave it out")
