"""GRPO training on prompts about videos, with rewards that the caller passes."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import datasets
from transformers import ProcessorMixin
from trl import GRPOConfig

from stages.domain.core.frames import Frames
from stages.errors import InputError
from stages.grpo.advantages import TaskScales
from stages.grpo.controls import Controls, changed_item
from stages.grpo.mixed import Written
from stages.grpo.policy.engine import rollouts_by_engine
from stages.grpo.policy.video import Encode
from stages.grpo.prompts.ahead import Ahead
from stages.grpo.prompts.resampling import PromptPool
from stages.grpo.prompts.sampler import TaskSampler
from stages.grpo.prompts.surplus import Surplus
from stages.grpo.rollout_log import RolloutLog
from stages.grpo.step import Rewards
from stages.grpo.trainer import VideoGRPOTrainer
from stages.lib.engine.connection import DrawnFor
from stages.lib.models.load import dtype_of, freeze, load_model, use_threads
from stages.lib.models.processor import EncodedPrompt, encode_prompts, reply_ids
from stages.lib.models.rendering import check_trainable
from stages.lib.models.settings import longest
from stages.lib.training.loop import Hooks, count_parameters, settings, train, trained, weights_precision
from stages.lib.training.lora import adapters
from stages.lib.training.mixture import Example, draw
from stages.lib.training.prompt_length import short_enough
from stages.lib.training.watching import Watch
from stages.params import CispoLoss, GrpoRow, LiveRatio, SapoLoss, TaskScaleParams
from stages.runtime.ranks import distributed
from stages.runtime.ranks.placement import PlacementError, placement

#: Maximum size of the processed videos that are cached for prompts that repeat.
ENCODED_BYTES = 256 * 2**20


def train_grpo(
    model_folder: Path,
    examples: Sequence[Example],
    row: GrpoRow,
    *,
    stage: str,
    seed: int,
    rewards: Rewards,
    out: Path,
    scratch: Path,
    hooks: Hooks,
    rollout_log: RolloutLog | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Train the model in `model_folder` by GRPO on the examples' prompts (and, under a mixed
    policy, their replies), and write the stage's out.

    An optimiser step sees `prompts_per_step` prompts x `rollouts` completions over all processes,
    all of them generated at once. `scratch` may hold state of an earlier, interrupted call with the
    same arguments: training then goes on from there.

    Args:
        rewards: scores replies; its objectives determine the advantages. The row's frame-order
            reward is one more objective.
        rollout_log: logs rollouts of the last step before each checkpoint, for people to read;
            None: nothing is logged.
        watch: measures the policy while it is trained; None: it is not measured.

    Returns:
        Summary of the training: steps, prompts, tasks, number of parameters and of trained ones,
        the step it resumed from.

    Raises:
        InputError: a task whose prompts are all longer than `max_prompt_tokens`.
        ValueError: sample ids that repeat, a task without examples, a batch that cannot be divided
            among the processes, a save in the middle of the updates on one generation; a chat
            template that ends thinking before a reply; a target of adapters that is not in the
            model.
    """
    use_threads()
    ranks = placement().ranks
    _check(examples, row, ranks)
    completions = row.prompts_per_step * row.rollouts
    per_device, rounds = distributed.share(
        "grpo prompts_per_step x rollouts", completions, row.completions_per_device, ranks
    )
    generations = math.ceil(row.steps / row.iterations)
    # Before the model: with ZeRO-3 alive, loading scatters the weights at once instead of holding a
    # copy in each process.
    args = _config(row, seed=seed, scratch=scratch, per_device=per_device, rounds=rounds)
    model, processor = load_model(model_folder, weights_precision(row))
    check_trainable(processor)
    short = short_enough(processor, examples, row, stage, args.process_index)
    examples = _loaded_in_turn(short.examples)
    by_id = {example.sample_id: example for example in examples}
    written = _written(processor, examples, row, stage)
    order = draw(examples, row.tasks, generations * row.prompts_per_step, f"{seed}/{stage}/order")
    freeze(model, row.freeze)
    parameters = count_parameters(model.parameters())
    sampler = _sampler(examples, row, f"{seed}/{stage}/order")
    prompts = [examples[index].sample_id for index in order]
    tasks = Counter(examples[index].task for index in order)
    most = min(longest(model), (row.max_prompt_tokens or math.inf) + row.max_completion_tokens)
    drawn_for = DrawnFor(
        stage,
        model_folder,
        row.precision,
        int(most),
        scratch,
        size_bytes=parameters * dtype_of(row.precision).itemsize,
        kept=max(2, row.staleness + 1),
    )
    with rollouts_by_engine(
        drawn_for,
        processor,
        lambda key: (by_id[key].prompt, (by_id[key].load(),)),
        first=args.process_index == 0,
        processes=ranks,
    ) as engine:
        ahead = None
        if engine is not None or row.staleness:
            each = row.prompts_per_step
            ahead = Ahead(row.staleness, generations, lambda n: prompts[n * each : (n + 1) * each], engine)
        trainer = VideoGRPOTrainer(
            encode=cached_encoder(processor, by_id, ENCODED_BYTES),
            rewards=rewards,
            scales=TaskScales(row.scale_rewards.task_decay) if isinstance(row.scale_rewards, TaskScaleParams) else None,
            pool=_prompt_pool(examples, row, generations, f"{seed}/{stage}/reserve", sampler),
            sampler=sampler,
            surplus=Surplus(row.oversample) if row.oversample is not None else None,
            ahead=ahead,
            sampling_ratio_cap=row.sampling_ratio_cap,
            gauges_every=row.gauges_every,
            gradients_every=row.gradients_every,
            controls=_controls(by_id, row, f"{seed}/{stage}", per_device),
            rollout_log=rollout_log,
            overlong=row.overlong,
            written=written,
            rollout_seed=f"{seed}/{stage}/rollouts",
            rates=row.learning_rates,
            model=model,
            args=args,
            train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
            processing_class=processor,
            # TRL adds the adapters: of a model that already has them it would keep a copy as the
            # reference.
            peft_config=None if row.lora is None else adapters(model, row.lora),
        )
        summary = {
            "steps": row.steps,
            "prompts": len(order),
            "completions": len(order) * row.rollouts,
            # A sampler chooses as training goes: the history has the share of each task.
            **({"distinct_prompts": len(set(order)), "tasks": dict(sorted(tasks.items()))} if sampler is None else {}),
            **short.summary(),
            **({} if written is None else {"prompts_with_a_written_reply": len(written.replies)}),
            "parameters": parameters,
            "trained_parameters": count_parameters(trained(trainer.model)),
        }
        result = train(
            trainer, stage=stage, steps=row.steps, scratch=scratch, out=out, summary=summary, hooks=hooks, watch=watch
        )
        if trainer.accelerator.is_main_process:
            short.save(out)
            if rollout_log is not None:
                rollout_log.collect(out)
        return result


def _loaded_in_turn(examples: Sequence[Example]) -> list[Example]:
    """Examples whose frames are loaded one after the other, by whichever thread."""
    lock = Lock()

    def loaded(load: Callable[[], Frames]) -> Frames:
        with lock:
            return load()

    return [replace(example, load=partial(loaded, example.load)) for example in examples]


def _check(examples: Sequence[Example], row: GrpoRow, ranks: int) -> None:
    """Check examples and row before anything is loaded.

    Raises:
        ValueError: see :func:`train_grpo`.
    """
    counts = Counter(example.sample_id for example in examples)
    if len(counts) != len(examples):
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"sample {twice!r}: occurs twice among the examples; sample ids are unique")
    if row.save_steps % row.iterations:
        raise ValueError(
            f"grpo save_steps: {row.save_steps} is not a multiple of iterations {row.iterations}; a resumed run"
            " would lose the"
            " generation it was in the middle of, so set a multiple"
        )
    current = placement()
    if current.sequence > 1:
        raise PlacementError(
            "VIDBRIDGE_SEQUENCE_RANKS",
            f"{current.sequence} processes that share a row, and in GRPO each process has prompts of its own",
            "unset it for grpo rows; it is for sft",
        )
    variable, engine = ("VIDBRIDGE_FSDP", "FSDP") if current.fsdp else ("VIDBRIDGE_DEEPSPEED", "DeepSpeed")
    if row.gradients_every and current.engine is not None:
        raise PlacementError(
            variable,
            f"grpo gradients_every: {row.gradients_every}, but {engine} takes gradients apart while they are computed,"
            " and those of one task could not be told from another's",
            "unset it, or set gradients_every 0",
        )
    if row.oversample is not None and row.oversample.max_lag and (current.zero_stage == 3 or current.fsdp):
        raise PlacementError(
            variable,
            f"grpo oversample.max_lag: {row.oversample.max_lag}, but under {'FSDP' if current.fsdp else 'ZeRO-3'} all"
            " processes pass through the model together, and each keeps another number of groups",
            "set VIDBRIDGE_DEEPSPEED to a file of ZeRO stage 2, or max_lag 0",
        )
    if row.resample_rounds and row.prompts_per_step % ranks:
        raise ValueError(
            f"grpo resample_rounds: {row.prompts_per_step} prompts_per_step cannot be divided evenly among {ranks}"
            " processes, and"
            " only whole groups can be replaced; set a multiple, or resample_rounds 0"
        )


def _config(row: GrpoRow, *, seed: int, scratch: Path, per_device: int, rounds: int) -> GRPOConfig:
    """Build TRL's configuration of a row; the trainer adds the weights of the rewards."""
    return GRPOConfig(
        **settings(row, seed=seed, scratch=scratch, per_device=per_device, rounds=rounds),
        logging_steps=1,
        num_generations=row.rollouts,
        max_completion_length=row.max_completion_tokens,
        temperature=row.temperature,
        **_loss(row),
        # Where tasks have scales of their own, TRL's advantages are replaced.
        scale_rewards="none" if isinstance(row.scale_rewards, TaskScaleParams) else row.scale_rewards,
        multi_objective_aggregation="normalize_then_sum" if row.aggregation == "normalise" else "sum_then_normalize",
        importance_sampling_level=row.importance,
        beta=row.beta,
        mask_truncated_completions=row.mask_truncated,
        num_iterations=row.iterations,
        # The order of prompts was drawn above.
        shuffle_dataset=False,
    )


def _written(processor: ProcessorMixin, examples: Sequence[Example], row: GrpoRow, stage: str) -> Written | None:
    """Tokenise the written replies of a row with a mixed policy; None for other rows. A reply is
    never cut: one that is too long for a rollout is not used.

    Raises:
        InputError: no example has a reply that is short enough.
    """
    if row.mixed is None:
        return None
    ids = {e.sample_id: reply_ids(processor, e.reply) for e in examples if e.reply is not None}
    replies = {key: tokens for key, tokens in ids.items() if len(tokens) <= row.max_completion_tokens}
    if not replies:
        raise InputError(
            f"{stage} mixed",
            f"{len(ids)} of {len(examples)} samples have a trace, none of at most {row.max_completion_tokens} tokens",
            "have traces written, raise max_completion_tokens, or write mixed null",
        )
    return Written(row.mixed.gamma, replies)


def _loss(row: GrpoRow) -> dict[str, Any]:
    """Keyword arguments of TRL's configuration for the loss of a row."""
    entropy = {} if row.entropy is None else {
        "entropy_coef": row.entropy.bonus,
        "top_entropy_quantile": row.entropy.top_share,
    }  # fmt: skip
    if isinstance(row.loss, CispoLoss):
        return {**entropy, "loss_type": "cispo", "epsilon_high": row.loss.cispo_ceiling}
    if isinstance(row.loss, SapoLoss):
        temperatures = {
            "sapo_temperature_pos": row.loss.sapo_positive,
            "sapo_temperature_neg": row.loss.sapo_negative,
        }
        return {**entropy, "loss_type": "sapo", **temperatures}
    clipping = {"epsilon": row.epsilon, "epsilon_high": row.epsilon_high, "delta": row.delta}
    return {**entropy, "loss_type": row.loss, **clipping}


def _controls(by_id: Mapping[str, Example], row: GrpoRow, seed: str, batch_size: int) -> Controls | None:
    """Build the controls of a row that has a frame-order reward or gauges on changed videos; None
    for other rows."""
    if row.temporal_contrast is None and not row.controls_every:
        return None
    return Controls(
        item=changed_item(by_id, f"{seed}/shuffled"),
        contrast=row.temporal_contrast,
        every=row.controls_every,
        seed=seed,
        batch_size=batch_size,
    )


def _sampler(examples: Sequence[Example], row: GrpoRow, seed: str) -> TaskSampler | None:
    """Build the sampler of a row that keeps the ratio of live groups; None for other rows."""
    return TaskSampler(examples, row.tasks, seed, row.sampler) if isinstance(row.sampler, LiveRatio) else None


def _prompt_pool(
    examples: Sequence[Example], row: GrpoRow, generations: int, seed: str, sampler: TaskSampler | None
) -> PromptPool | None:
    """Draw as many prompts as resampling can need, in the row's mixture; where a sampler chooses
    the prompts of a step, it chooses these, too. None for rows without dynamic sampling."""
    if not row.resample_rounds:
        return None
    if sampler is not None:
        return PromptPool((), row.resample_rounds, sampler.take)
    a_round = (
        row.prompts_per_step if row.oversample is None else math.ceil(row.prompts_per_step / row.oversample.least_live)
    )
    most = generations * a_round * row.resample_rounds
    return PromptPool(
        [examples[index].sample_id for index in draw(examples, row.tasks, most, seed)], row.resample_rounds
    )


def cached_encoder(processor: ProcessorMixin, examples: Mapping[str, Example], most_bytes: int) -> Encode:
    """Return an encoder of prompts by sample id that caches up to `most_bytes` of videos, least
    recently used out first."""
    cache: OrderedDict[str, EncodedPrompt] = OrderedDict()
    cached_bytes = 0

    def encode(keys: Sequence[str]) -> list[EncodedPrompt]:
        nonlocal cached_bytes
        missing = [key for key in dict.fromkeys(keys) if key not in cache]
        if missing:
            fresh = encode_prompts(
                processor, [(examples[key].prompt, (examples[key].load(),)) for key in missing], missing
            )
            for key, prompt in zip(missing, fresh, strict=True):
                cache[key] = prompt
                cached_bytes += prompt.videos.pixels.nbytes
        for key in keys:
            cache.move_to_end(key)
        rows = [cache[key] for key in keys]
        while cached_bytes > most_bytes and cache:
            cached_bytes -= cache.popitem(last=False)[1].videos.pixels.nbytes
        return rows

    return encode
