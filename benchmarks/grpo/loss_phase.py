"""The loss of one step, forward and backward, with a prompt once for its group and with one row a
reply; and the arithmetic that predicts both."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from trl.trainer.utils import add_fused_lm_head

from benchmarks.grpo.subject import Shape, build, video
from stages.lib.inference.vision_cache import encode_equal_videos_once
from stages.lib.models.packing import Continuation, packed_inputs
from stages.lib.models.processor import IGNORE, encode_prompts, join_videos, modality_of
from stages.params import TinyModelParams

#: Repetitions of each way, alternating; the fastest counts.
REPETITIONS = 3


class Cost(NamedTuple):
    """CPU seconds of a loss, and by how much it raised the memory of its process, in MiB."""

    seconds: float
    mib: float


@dataclass(frozen=True)
class Measured:
    """Both ways for one shape.

    Attributes:
        prompt: tokens of a prompt.
        padded: one row a reply.
        shared: the prompt once.
        arithmetic: multiplications of the shared way, as a fraction of those of the padded one.
        multiplications: of the shared way, forward.
    """

    prompt: int
    padded: Cost
    shared: Cost
    arithmetic: float
    multiplications: float


def multiplications(model: TinyModelParams, shape: Shape, prompt: int, *, shared: bool) -> float:
    """Count the multiplications of a forward pass of the text model over a step's rows.

    A token costs the matrices of a layer, and a pair of tokens of which one attends to the other
    two products of the width. Logits are computed of the replies' tokens only in a shared row; on a
    CPU, of all tokens in padded ones.
    """
    text = model.text
    keys = text.width // text.heads * text.kv_heads
    of_token = text.layers * (2 * text.width**2 + 2 * text.width * keys + 3 * text.width * text.mlp_width)
    of_pair = text.layers * 2 * text.width
    of_logits = text.width * model.vocabulary
    reply, replies = shape.tokens, shape.rollouts
    of_replies = replies * (prompt * reply + reply**2 / 2)
    if shared:
        tokens, pairs, logits = prompt + replies * reply, prompt**2 / 2 + of_replies, replies * reply
    else:
        tokens = logits = replies * (prompt + reply)
        pairs = replies * prompt**2 / 2 + of_replies
    return shape.prompts * (tokens * of_token + pairs * of_pair + logits * of_logits)


def measured(params: TinyModelParams, shape: Shape) -> Measured:
    """Measure both ways, each in processes of its own for its memory."""
    model, processor = build(params)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    encode_equal_videos_once(model)
    prompts = encode_prompts(processor, [("what happens ?", (video(shape, n),)) for n in range(shape.prompts)])
    generator = torch.Generator().manual_seed(0)
    groups = [
        Continuation(
            prompt,
            [torch.randint(5, 100, (shape.tokens,), generator=generator).tolist() for _ in range(shape.rollouts)],
        )
        for prompt in prompts
    ]
    rows = [(prompt, reply) for prompt, replies in groups for reply in replies]
    ids = torch.tensor([[*prompt.ids, *reply] for prompt, reply in rows])
    length = len(prompts[0].ids)

    def shared() -> Any:
        return model(**packed_inputs(model.base_model, processor, groups, "cpu"), fused_lm_head=True)

    def padded() -> Any:
        labels = ids.clone()
        labels[:, :length] = IGNORE
        return model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=modality_of(ids, processor),
            labels=labels,
            fused_lm_head=True,
            **join_videos([prompt.videos for prompt, _ in rows], "cpu"),
        )

    def learn(forward: Callable[[], Any]) -> None:
        model.zero_grad()
        forward().log_probs.mean().backward()

    best = {way: min(_alone(partial(learn, way)) for _ in range(REPETITIONS)) for way in (padded, shared)}
    counts = [multiplications(params, shape, length, shared=way) for way in (True, False)]
    return Measured(length, best[padded], best[shared], counts[0] / counts[1], counts[0])


def _alone(call: Callable[[], None]) -> Cost:
    """Cost of a call in a copy of this process, after one that is not counted."""
    here, there = get_context("fork").Pipe(duplex=False)
    child = get_context("fork").Process(target=_measure, args=(call, there))
    child.start()
    there.close()
    cost: Cost = here.recv()
    child.join()
    return cost


def _measure(call: Callable[[], None], out: Connection) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    began = time.process_time()
    call()
    out.send(Cost(time.process_time() - began, mib))
    out.close()
    os._exit(0)
