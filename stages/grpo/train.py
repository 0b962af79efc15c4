"""Reinforcement training: groups of rollouts on prompts about videos, rewarded by a function that the caller gives."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from transformers import ProcessorMixin
from trl import GRPOConfig

from stages.grpo.advantages import TaskScales
from stages.grpo.controls import CONTRAST, Controls, OnControls, Shares, changed_item
from stages.grpo.engine import engine_settings, rollout_engine, vllm_request
from stages.grpo.resampling import Reserve
from stages.grpo.rollout_log import Keeper, Showing
from stages.grpo.trainer import Encode, OnMasked, VideoGRPOTrainer
from stages.lib.models.load import freeze, load_model, use_threads
from stages.lib.models.processor import EncodedPrompt, check_trainable, encode_prompts
from stages.lib.training.loop import (
    Check,
    OnCheckpoint,
    OnMetrics,
    count_parameters,
    settings,
    train,
    trained,
    unshared,
    weights_precision,
)
from stages.lib.training.lora import adapters
from stages.lib.training.mixture import Example, draw
from stages.params import GrpoRow, TaskScaleParams
from stages.runtime import distributed

#: Rewards of replies, by sample: a number, or None where the judge gave no verdict (such a rollout is left out of its group).
Reward = Callable[[Sequence[str], Sequence[str]], Sequence[float | None]]
#: Whether each reply, by sample, has the required form. For the share that is reported; the reward has its own gate.
WellFormed = Callable[[Sequence[str], Sequence[str]], Sequence[bool]]

#: What to watch beside the rewards: by sample, reply and reward of a step's rollouts, those of a prompt together.
Gauges = Callable[[Sequence[str], Sequence[str], Sequence[float | None]], Mapping[str, float]]

#: Bytes of processed videos that are kept for prompts that come up again.
ENCODED_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Objective:
    """One part of what a reply's advantage is made of; the parts are added with their weights, or each is normalised first."""

    weight: float
    reward: Reward


def train_grpo(
    model_folder: Path,
    examples: Sequence[Example],
    row: GrpoRow,
    *,
    stage: str,
    reward: Reward,
    objectives: Mapping[str, Objective],
    well_formed: WellFormed,
    seed: int,
    out: Path,
    scratch: Path,
    on_metrics: OnMetrics,
    on_checkpoint: OnCheckpoint,
    still_ours: Check = unshared,
    on_masked: OnMasked | None = None,
    gauges: Gauges | None = None,
    shares: Shares | None = None,
    on_controls: OnControls = lambda *_: {},
    showing: Showing | None = None,
) -> dict[str, Any]:
    """Train the model in `model_folder` by GRPO on the examples' prompts (their replies are not used), and write the stage's out.

    An optimiser step sees `prompts_per_step` prompts x `rollouts` completions over all processes, all of them generated at once.
    `reward` is what is reported of a reply, `objectives` what its advantage is made of; the row's contrast of shuffled frames is added to
    them and needs `shares`, and so do its controls, of which `on_controls` is told.
    `on_masked` is told on every process, before a step is taken, how many of its rollouts have no reward; what it raises ends training.
    `showing` says which rollouts are kept in the out for people to read, of the last step before each checkpoint.
    `scratch` may hold state of an earlier, interrupted call with the same arguments: training then goes on from there. `still_ours` raises
    where it has become another's.

    Returns:
        What was trained, for a summary line: steps, prompts, tasks, parameters and trained ones, where it was resumed.

    Raises:
        ValueError: sample ids that repeat, a task without examples, a batch that cannot be dealt to the processes, a save in the
            middle of the updates on one generation; a chat template that ends thinking before a reply; a contrast or controls
            without `shares`; a target of adapters that is not in the model.
    """
    use_threads()
    by_id = {example.sample_id: example for example in examples}
    if len(by_id) != len(examples):
        twice = next(name for name, count in Counter(example.sample_id for example in examples).items() if count > 1)
        raise ValueError(f"sample {twice!r}: stands twice among the examples; sample ids are unique")
    if row.save_steps % row.iterations:
        raise ValueError(
            f"grpo save_steps: {row.save_steps} is no multiple of iterations {row.iterations}; a resumed run would lose the"
            " generation it was in the middle of, so choose a multiple"
        )
    place = distributed.placement()
    if row.resample_rounds and row.prompts_per_step % place.ranks:
        raise ValueError(
            f"grpo resample_rounds: {row.prompts_per_step} prompts_per_step cannot be dealt whole to {place.ranks} processes, and only"
            " whole groups can be replaced; choose a multiple, or resample_rounds 0"
        )
    weights = {name: objective.weight for name, objective in objectives.items()}
    keeper = Keeper(showing, scratch, row.save_steps, row.steps) if showing is not None else None
    functions = reward_functions(by_id, objectives, reward, well_formed, gauges)
    if row.temporal_contrast is not None:
        weights[CONTRAST] = row.temporal_contrast.weight
        functions.append(_filled_in_by_the_trainer)
    completions = row.prompts_per_step * row.rollouts
    per_device, rounds = distributed.share("grpo prompts_per_step x rollouts", completions, row.completions_per_device, place.ranks)
    controls = None
    if row.temporal_contrast is not None or row.controls_every:
        if shares is None:
            raise ValueError("shares: the row asks for replies to other videos, so what they earn has to be given")
        controls = Controls(
            item=changed_item(by_id, f"{seed}/{stage}/shuffled"),
            shares=shares,
            contrast=row.temporal_contrast,
            every=row.controls_every,
            on_controls=on_controls,
            seed=f"{seed}/{stage}",
            batch_size=per_device,
        )
    generations = math.ceil(row.steps / row.iterations)
    order = draw(examples, row.tasks, generations * row.prompts_per_step, f"{seed}/{stage}/order")

    # Before the model: with ZeRO-3 alive, loading scatters the weights at once instead of holding a copy in each process.
    args = GRPOConfig(
        **settings(row, seed=seed, scratch=scratch, per_device=per_device, rounds=rounds),
        logging_steps=1,
        num_generations=row.rollouts,
        max_completion_length=row.max_completion_tokens,
        temperature=row.temperature,
        loss_type=row.loss,
        # TRL's advantages are replaced where tasks have scales of their own.
        scale_rewards="none" if isinstance(row.scale_rewards, TaskScaleParams) else row.scale_rewards,
        multi_objective_aggregation="normalize_then_sum" if row.aggregation == "normalise" else "sum_then_normalize",
        reward_weights=list(weights.values()),
        importance_sampling_level=row.importance,
        beta=row.beta,
        epsilon=row.epsilon,
        epsilon_high=row.epsilon_high,
        num_iterations=row.iterations,
        # The order was drawn above.
        shuffle_dataset=False,
        **engine_settings(rollout_engine()),
    )
    model, processor = load_model(model_folder, weights_precision(row))
    check_trainable(processor)
    freeze(model, row.freeze)
    parameters = count_parameters(model.parameters())
    trainer = VideoGRPOTrainer(
        encode=cached_encoder(processor, by_id, ENCODED_BYTES),
        request=lambda key: vllm_request(processor, by_id[key].prompt, (by_id[key].load(),)),
        scales=TaskScales(row.scale_rewards.task_decay) if isinstance(row.scale_rewards, TaskScaleParams) else None,
        task_of=lambda sample_id: by_id[sample_id].task,
        on_masked=on_masked,
        reserve=_reserve(examples, row, generations, f"{seed}/{stage}/reserve") if row.resample_rounds else None,
        controls=controls,
        keeper=keeper,
        model=model,
        reward_funcs=functions,
        args=args,
        train_dataset=datasets.Dataset.from_dict({"prompt": [examples[index].sample_id for index in order]}),
        processing_class=processor,
        # Given to TRL, not put in here: of a model that has adapters already it would keep a copy of them as the reference.
        peft_config=None if row.lora is None else adapters(model, row.lora),
    )
    tasks = Counter(examples[index].task for index in order)
    summary = {
        "steps": row.steps,
        "prompts": len(order),
        "distinct_prompts": len(set(order)),
        "completions": len(order) * row.rollouts,
        "tasks": dict(sorted(tasks.items())),
        "parameters": parameters,
        "trained_parameters": count_parameters(trained(trainer.model)),
    }
    done = train(
        trainer,
        stage=stage,
        steps=row.steps,
        scratch=scratch,
        out=out,
        summary=summary,
        on_metrics=on_metrics,
        on_checkpoint=on_checkpoint,
        still_ours=still_ours,
    )
    if keeper is not None and trainer.accelerator.is_main_process:
        keeper.publish(out)
    return done


def _reserve(examples: Sequence[Example], row: GrpoRow, generations: int, seed: str) -> Reserve:
    """As many prompts as resampling can ever need, in the row's mixture."""
    most = generations * row.prompts_per_step * row.resample_rounds
    return Reserve([examples[index].sample_id for index in draw(examples, row.tasks, most, seed)], row.resample_rounds)


def cached_encoder(processor: ProcessorMixin, examples: Mapping[str, Example], most_bytes: int) -> Encode:
    """Encodes prompts by sample id; what was encoded is kept, the least recently used go when it takes more than `most_bytes`."""
    kept: OrderedDict[str, EncodedPrompt] = OrderedDict()
    held = 0

    def encode(keys: Sequence[str]) -> list[EncodedPrompt]:
        nonlocal held
        missing = [key for key in dict.fromkeys(keys) if key not in kept]
        if missing:
            fresh = encode_prompts(processor, [(examples[key].prompt, (examples[key].load(),)) for key in missing], missing)
            for key, prompt in zip(missing, fresh, strict=True):
                kept[key] = prompt
                held += prompt.videos.pixels.nbytes
        for key in keys:
            kept.move_to_end(key)
        rows = [kept[key] for key in keys]
        while held > most_bytes and kept:
            held -= kept.popitem(last=False)[1].videos.pixels.nbytes
        return rows

    return encode


def _filled_in_by_the_trainer(prompts: Sequence[str], **_: Any) -> list[float | None]:
    """Holds the place of what the order of the frames is paid: that needs the replies to other videos."""
    return [None] * len(prompts)


_filled_in_by_the_trainer.__name__ = CONTRAST  # TRL reports a reward by its function's name


def reward_functions(
    examples: Mapping[str, Example],
    objectives: Mapping[str, Objective],
    reward: Reward,
    well_formed: WellFormed,
    gauges: Gauges | None = None,
) -> list[Callable[..., list[float | None]]]:
    """TRL's view of the objectives, in order; the first also reports the mean reward of each task, the share of well-formed replies, and
    the gauges."""

    def report(prompts: Sequence[str], completions: Sequence[str], log_metric: Callable[[str, float], None]) -> None:
        values = list(reward(prompts, completions))
        for key, value in zip(prompts, values, strict=True):
            if value is not None:
                log_metric(f"reward/{examples[key].task}", value)
        for fits in well_formed(prompts, completions):
            log_metric("format", float(fits))
        for name, value in (gauges(prompts, completions, values) if gauges is not None else {}).items():
            log_metric(f"gauge/{name}", value)

    def function(name: str, objective: Objective, reports: bool) -> Callable[..., list[float | None]]:
        def rewarded(
            prompts: Sequence[str], completions: Sequence[str], log_metric: Callable[[str, float], None], **_: Any
        ) -> list[float | None]:
            values = list(objective.reward(prompts, completions))
            if len(values) != len(completions):
                raise ValueError(
                    f"{name}: gave {len(values)} values for {len(completions)} replies; give one each, None where there is none"
                )
            for key, value in zip(prompts, values, strict=True):
                if value is not None and math.isinf(value):
                    raise ValueError(
                        f"{name}: gave {value} for a reply to {key}, and its group would have no advantage; give a finite number,"
                        " or None where there is none"
                    )
            if reports:
                report(prompts, completions, log_metric)
            return values

        rewarded.__name__ = name
        return rewarded

    return [function(name, objective, n == 0) for n, (name, objective) in enumerate(objectives.items())]
