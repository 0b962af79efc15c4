"""A GRPO step by phases, and a step of decoding by what it copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.gpu.passes import Forced, Policy
from benchmarks.gpu.subject import Subject, free
from benchmarks.gpu.timing import Row, Took, Work, busy_s, timed
from stages.lib.inference import decode as decoding
from stages.lib.inference import prefix_attention
from stages.lib.inference.decode import SeededDraws
from stages.lib.inference.prefix_attention import Block
from stages.lib.models.packing import Continuation
from stages.lib.models.processor import prompt_batch


class Step:
    """The phases of a step; each works on the whole step, micro-batches being groups."""

    def __init__(self, subject: Subject) -> None:
        self.sizes = subject.sizes
        self.policy = Policy(subject, self.sizes.prompts)
        weights = [weight for weight in self.policy.model.parameters() if weight.requires_grad]
        self.optimiser = torch.optim.AdamW(weights, lr=1e-6, fused=self.policy.device.type == "cuda")
        self._weights = weights
        self.groups: list[Continuation] = []

    def rollouts(self, tokens: int) -> list[Continuation]:
        """Decode so many tokens of every reply of the step."""
        count = self.sizes.prompts * self.sizes.rollouts
        draw = SeededDraws([f"bench/{row}" for row in range(count)], 1.0, self.policy.device)
        replies = [reply.ids for reply in self.policy.rollouts(self.policy.prompts, draw, tokens)]
        return [
            Continuation(prompt, replies[n * self.sizes.rollouts : (n + 1) * self.sizes.rollouts])
            for n, prompt in enumerate(self.policy.prompts)
        ]

    def log_probabilities(self, groups: Sequence[Continuation]) -> None:
        """The pass for the old or the reference policy."""
        with torch.no_grad(), self.policy.autocast():
            for group in groups:
                self.policy.packed(group)

    def loss(self, way: Callable[[Continuation], torch.Tensor], groups: Sequence[Continuation]) -> None:
        """Forward and backward of the clipped surrogate at a ratio of 1, with advantages of both
        signs."""
        for group in groups:
            with self.policy.autocast():
                logps = way(group)
                advantages = torch.linspace(-1, 1, len(logps), device=logps.device)[:, None]
                ratio = (logps - logps.detach()).exp()
                surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
                loss = -surrogate.mean() / len(groups)
            loss.backward()

    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
        self.optimiser.step()

    def forget(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        free()


def phases(subject: Subject) -> list[Row]:
    """Measure the phases of a step in turn: rollouts (prefill and decoding apart), the
    log-probabilities that several updates on one generation would need, the loss, the optimiser."""
    step, sizes = Step(subject), subject.sizes
    # Decoding has no call that leaves out the prefill.
    step.rollouts(2)
    prefill = timed(partial(step.rollouts, 1), warm=False)
    whole = timed(lambda: step.groups.extend(step.rollouts(sizes.tokens)), warm=False)
    decoded = Took(whole.seconds - prefill.seconds, whole.gib)
    prefill_busy = busy_s(partial(step.rollouts, 1))
    longer = 1 + sizes.window
    decoded_busy = busy_s(partial(step.rollouts, longer)) - prefill_busy
    window_s = timed(partial(step.rollouts, longer), warm=False).seconds - prefill.seconds

    found = {
        f"prefill of {sizes.prompts} prompts": (prefill, prefill_busy / prefill.seconds),
        f"decoding of {sizes.prompts * sizes.rollouts} x {sizes.tokens} tokens": (decoded, decoded_busy / window_s),
    }
    some = step.groups[: sizes.groups]
    step.log_probabilities(some[:1])
    beside = timed(partial(step.log_probabilities, step.groups), warm=False)
    packed = partial(step.loss, step.policy.packed)
    packed(some[:1])
    share = _share(partial(packed, some))
    step.forget()
    found["loss, forward and backward, prompt once"] = (timed(partial(packed, step.groups), warm=False), share)
    step.update()
    found["optimiser"] = (timed(step.update, warm=False), _share(step.update))
    step.forget()

    seconds = sum(took.seconds for took, _ in found.values())
    busy = sum(took.seconds * share for took, share in found.values()) / seconds
    tokens = easyr1_tokens(step.groups)
    rows = [Row(what, took.values(share)) for what, (took, share) in found.items()]
    rows.append(
        Row(
            f"**step** ({step.policy.head})",
            {
                **Took(seconds, max(took.gib for took, _ in found.values())).values(busy),
                "tokens/s (EasyR1)": tokens / seconds,
                "tokens": tokens,
            },
        )
    )
    rows.append(Row("beside it: log-probabilities without gradient", beside.values()))
    return [*rows, *_both_ways(step, some)]


def _both_ways(step: Step, groups: Sequence[Continuation]) -> list[Row]:
    """The loss of some groups with the prompt once and with a row a reply."""
    rows, seconds = [], []
    for name, way in (("prompt once", step.policy.packed), ("a row a reply", step.policy.padded)):
        step.forget()
        took = timed(partial(step.loss, way, groups))
        seconds.append(took.seconds)
        rows.append(Row(f"loss of {len(groups)} prompts, {name}", took.values()))
    step.forget()
    rows[-1] = Row(rows[-1].what, {**rows[-1].values, "times of the first": seconds[1] / seconds[0]})
    return rows


def _share(work: Work) -> float:
    return busy_s(work) / timed(work, warm=False).seconds


def easyr1_tokens(groups: Sequence[Continuation]) -> int:
    """Tokens of a step as EasyR1 counts them (`verl/trainer/metrics.py`,
    `compute_throughout_metrics`): of every rollout, prompt and reply, without padding; a prompt
    counts once for each of its rollouts. Its throughput divides them by the seconds of the whole
    step and by the number of GPUs."""
    return sum(len(prompt.ids) + len(reply) for prompt, replies in groups for reply in replies)


def decode_step(subject: Subject) -> list[Row]:
    """What a token costs in decoding as it is, where scores and sums of values are in float32 and
    so bf16 keys and values are copied to float32 at every token; with the prompts' kept in float32,
    so that only those behind them are copied; and with products in bf16, which copy nothing."""
    policy, sizes = Policy(subject, subject.sizes.prompts), subject.sizes
    groups = policy.replies(sizes.prompts, 1 + 2 * sizes.window)
    found: list[tuple[str, float, torch.Tensor]] = []
    block_bytes = 0

    def noted(cache: Any, mask: torch.Tensor) -> Block:
        nonlocal block_bytes
        block = prefix_attention.cached_block(cache, mask)
        block_bytes = sum(each.nbytes for pair in block.layers for each in pair)
        return block

    def widened(cache: Any, mask: torch.Tensor) -> Block:
        block = prefix_attention.cached_block(cache, mask)
        return Block([(keys.float(), values.float()) for keys, values in block.layers], block.bias_PK)

    def run(tokens: int) -> torch.Tensor:
        replies = policy.rollouts(policy.prompts, Forced(groups, policy.device), tokens, logps=True)
        return torch.tensor([reply.logps for reply in replies])

    for name, changed in (
        ("as it is", patch.object(decoding, "cached_block", noted)),
        ("prompts' keys and values kept in float32", patch.object(decoding, "cached_block", widened)),
        ("products in bf16", patch.object(prefix_attention, "_attended", _in_half)),
    ):
        with changed:
            run(2)
            first = timed(partial(run, 1), repeats=2, warm=False).seconds
            whole = timed(partial(run, len(groups[0].replies[0])), repeats=2, warm=False).seconds
            found.append((name, (whole - first) / (2 * sizes.window), run(len(groups[0].replies[0]))))
    _, usual_s, usual = found[0]
    rows = [
        Row(
            name,
            {
                "ms a token": 1000 * seconds,
                "% of as it is": 100 * seconds / usual_s,
                "largest difference of a log-probability": (logps - usual).abs().max().item(),
            },
        )
        for name, seconds, logps in found
    ]
    rows[0] = Row(rows[0].what, {**rows[0].values, "MiB of prompts copied a token": block_bytes / 2**20})
    return rows


def _in_half(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None) -> Any:
    """:func:`stages.lib.inference.prefix_attention._attended` with products in the keys' precision,
    and exponentials in float32 as there."""
    scores = (query.to(keys.dtype) @ keys.transpose(-1, -2)).float()
    if bias is not None:
        scores[..., : bias.shape[-1]] += bias
    highest = scores.amax(-1, keepdim=True)
    exponentials = scores.sub_(highest).exp_()
    summed = (exponentials.to(values.dtype) @ values).float()
    return prefix_attention._Part(summed, exponentials.sum(-1, keepdim=True), highest)


@torch.no_grad()
def rollouts(subject: Subject) -> list[Row]:
    """Rollouts of a few prompts by each way of making them that there is.

    An engine beside the trainer is one more entry of ``ways``: a function that draws as many tokens
    of every reply, where an engine answers.
    """
    policy, sizes = Policy(subject, subject.sizes.few), subject.sizes
    tokens, count = sizes.short, sizes.few * sizes.rollouts

    def ours() -> None:
        policy.rollouts(policy.prompts, SeededDraws([str(row) for row in range(count)], 1.0, policy.device), tokens)

    def transformers() -> None:
        rows = [prompt for prompt in policy.prompts for _ in range(sizes.rollouts)]
        with policy.autocast():
            policy.model.generate(
                **prompt_batch(policy.processor, rows, policy.device),
                do_sample=True,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
            )

    ways: dict[str, Work] = {"ours": ours, "transformers' generate": transformers}
    rows = []
    for name, way in ways.items():
        took = timed(way)
        rows.append(
            Row(f"{name}, {count} replies of {tokens}", took.values() | {"tokens/s": count * tokens / took.seconds})
        )
    return rows
