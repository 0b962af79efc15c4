"""Supervised training on think/answer traces: TRL's SFTTrainer on packed rows with videos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from trl import SFTConfig

from stages.lib.models.load import freeze, load_model, use_threads
from stages.lib.models.packing import Continuation, packed_inputs, packs
from stages.lib.models.processor import encode_prompts, reply_ids, training_batch
from stages.lib.models.rendering import check_trainable
from stages.lib.training.loop import (
    Hooks,
    count_parameters,
    settings,
    train,
    trained,
    weights_precision,
)
from stages.lib.training.lora import adapters
from stages.lib.training.mixture import Example, draw
from stages.lib.training.prompt_length import short_enough
from stages.lib.training.watching import Watch
from stages.params import SftRow
from stages.runtime.ranks import distributed
from stages.runtime.ranks.placement import placement
from stages.sft.long_rows import share_of, share_rows, shared_inputs
from stages.sft.trainer import Trainer

#: Losses are averaged over this many steps before they are logged.
LOGGING_STEPS = 10


def train_sft(
    model_folder: Path,
    examples: Sequence[Example],
    row: SftRow,
    *,
    stage: str,
    seed: int,
    out: Path,
    scratch: Path,
    hooks: Hooks,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Train the model in `model_folder` on each example's reply, and write the stage's out.

    The loss covers only the reply and the end of the turn. `scratch` may hold state of an earlier,
    interrupted call with the same arguments: training then resumes from it, with the same data in
    the same order.

    Args:
        watch: measures the policy while it is trained; None: it is not measured.

    Returns:
        Summary of the training: steps, samples, tasks, number of parameters and of trained ones,
        the step it resumed from.

    Raises:
        InputError: a task whose prompts are all longer than `max_prompt_tokens`.
        ValueError: an example without a reply, a task without examples, a batch that cannot be
            divided among the processes, a target of adapters that is not in the model, a chat
            template that ends thinking before a reply.
    """
    use_threads()
    for example in examples:
        if example.reply is None:
            raise ValueError(
                f"sample {example.sample_id!r}: has no reply to learn from; add a trace, or leave it out of sft"
            )
    current = placement()
    per_device, rounds = distributed.share(
        "sft samples_per_step", row.samples_per_step, row.samples_per_device, current.ranks // current.sequence
    )
    # Before the model: with ZeRO-3 alive, loading scatters the weights at once instead of holding a
    # copy in each process.
    args = SFTConfig(
        **settings(row, seed=seed, scratch=scratch, per_device=per_device, rounds=rounds),
        logging_steps=LOGGING_STEPS,
        # The order was drawn above; a second shuffle would only obscure which sample is used when.
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
    )
    model, processor = load_model(model_folder, weights_precision(row))
    check_trainable(processor)
    short = short_enough(processor, examples, row, stage, args.process_index)
    examples = short.examples
    order = draw(examples, row.tasks, row.steps * row.samples_per_step, f"{seed}/{stage}/order")
    freeze(model, row.freeze)
    parameters = count_parameters(model.parameters())

    packed, backbone = packs(), model.base_model
    share = share_of(model, row, packed=packed)
    dealt = order
    if share is not None:
        share_rows(model)
        # Processes are dealt batches in turn: one after the other is given the same.
        batches = [order[first : first + per_device] for first in range(0, len(order), per_device)]
        dealt = [index for batch in batches for _ in range(share.ranks) for index in batch]

    def collate(rows: Sequence[dict[str, int]]) -> dict[str, Any]:
        batch = [examples[drawn["example"]] for drawn in rows]
        prompts = encode_prompts(
            processor,
            [(example.prompt, (example.load(),)) for example in batch],
            [example.sample_id for example in batch],
        )
        replies = [example.reply or "" for example in batch]
        if not packed:
            return training_batch(processor, prompts, replies)
        continuations = [
            Continuation(prompt, [reply_ids(processor, reply)]) for prompt, reply in zip(prompts, replies, strict=True)
        ]
        inputs = packed_inputs(backbone, processor, continuations, "cpu")
        if share is not None:
            inputs = shared_inputs(inputs, share)
        return {**inputs, "labels": inputs["shift_labels"]}  # where transformers counts a step's tokens

    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=datasets.Dataset.from_dict({"example": dealt}),
        data_collator=collate,
        processing_class=processor,
        rates=row.learning_rates,
        peft_config=None if row.lora is None else adapters(model, row.lora),
    )
    tasks = Counter(examples[index].task for index in order)
    summary = {
        "steps": row.steps,
        "samples": len(order),
        "distinct_samples": len(set(order)),
        "tasks": dict(sorted(tasks.items())),
        **short.summary(),
        "parameters": parameters,
        "trained_parameters": count_parameters(trained(trainer.model)),
    }
    result = train(
        trainer,
        stage=stage,
        steps=row.steps,
        scratch=scratch,
        out=out,
        summary=summary,
        hooks=hooks,
        watch=watch,
    )
    if trainer.accelerator.is_main_process:
        short.save(out)
    return result
