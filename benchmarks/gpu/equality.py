"""Whether numbers are the same: on the GPU as on the CPU, and in bf16 whichever way they are
computed."""

from __future__ import annotations

from typing import Any, cast

import torch

from benchmarks.gpu.passes import Forced, Policy
from benchmarks.gpu.subject import Subject, noise
from benchmarks.gpu.timing import Row

#: Largest difference of a log-probability in float32 between CPU and GPU.
_MOST = 1e-3
_TOKENS = 24


class DifferentError(Exception):
    """CPU and GPU disagree, so that nothing else is worth measuring."""


def families() -> list[Row]:
    """Compare log-probabilities and greedy replies of the three families between CPU and GPU, in
    float32; without a GPU, of the CPU with itself.

    Raises:
        DifferentError: a log-probability differs by more than rounding.
    """
    from benchmarks.grpo.subject import build, tiny_params
    from stages.lib.inference.generate import generate
    from stages.lib.inference.policy import ModelPolicy
    from stages.lib.models.load import device
    from stages.lib.models.processor import encode_prompts, training_batch
    from stages.params import TinyModelParams

    rows = []
    for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        model, processor = build(TinyModelParams.model_validate(tiny_params().model_dump() | {"family": family}))
        items = [(f"what happens {number} ?", noise(number, 4, 64)) for number in range(4)]
        prompts = encode_prompts(processor, [(text, (frames,)) for text, frames in items])
        batch = training_batch(processor, prompts, ["the red bar rises then grows"] * len(items))
        seen = batch["attention_mask"].bool()
        found: list[torch.Tensor] = []
        replies: list[list[str]] = []
        for place in (torch.device("cpu"), device()):
            cast(torch.nn.Module, model).to(place)
            with torch.no_grad():
                inputs = {name: tensor.to(place) for name, tensor in batch.items() if name != "labels"}
                found.append(model(**inputs).logits.log_softmax(-1).cpu()[seen])
            replies.append(
                generate(ModelPolicy(model, processor), items, max_new_tokens=_TOKENS, batch_size=len(items))
            )
        largest = (found[0] - found[1]).abs().max().item()
        equal = sum(one == other for one, other in zip(*replies, strict=True))
        rows.append(Row(family, {"largest difference": largest, "equal replies %": 100 * equal / len(items)}))
        if not largest <= _MOST:
            raise DifferentError(f"{family}: log-probabilities of CPU and GPU differ by {largest:.2g}")
    return rows


@torch.no_grad()
def log_probabilities(subject: Subject) -> list[Row]:
    """Compare log-probabilities of one group in bf16: the prompt once, a row a reply, and those
    that decoding draws with; and each with a row a reply in float32 on the same weights, since two
    ways that are right differ by rounding as well."""
    policy = Policy(subject, 1)
    group = policy.replies(1, subject.sizes.tokens)[0]

    def decoded() -> torch.Tensor:
        replies = policy.rollouts([group.prompt], Forced([group], policy.device), len(group.replies[0]), logps=True)
        return torch.tensor([reply.logps for reply in replies], device=policy.device)

    padded, packed, drawn = policy.padded(group), policy.packed(group), decoded()
    # Only the weights: frequencies of rotary positions are in float32 as they are.
    for weight in policy.model.parameters():
        weight.data = weight.data.float()
    exact = policy.padded(group)
    pairs = {
        "prompt once - a row a reply, bf16": (packed, padded),
        "decoding - prompt once, bf16": (drawn, packed),
        "a row a reply, bf16 - float32": (padded, exact),
        "prompt once, bf16 - float32": (packed, exact),
        "decoding, bf16 - float32": (drawn, exact),
        "prompt once - a row a reply, float32": (policy.packed(group), exact),
    }
    return [Row(what, _differences(one, other)) for what, (one, other) in pairs.items()]


def _differences(one: Any, other: Any) -> dict[str, float]:
    difference = (one.float() - other.float()).abs()
    return {"mean difference": difference.mean().item(), "largest difference": difference.max().item()}
