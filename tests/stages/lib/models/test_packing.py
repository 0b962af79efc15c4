"""A packed row is its sequences one by one: log-probabilities and gradients in three families, and
the attention against a dense mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from stages.lib.models.load import load_model, save_model
from stages.lib.models.packing import (
    ATTENTION,
    SWITCH,
    Continuation,
    Group,
    Layout,
    SwitchError,
    packed_attention,
    packed_inputs,
    packs,
)
from stages.lib.models.processor import (
    EncodedPrompt,
    encode_prompts,
    join_videos,
    modality_of,
    reply_ids,
    training_batch,
)
from tests.support.training.tiny import frames, tiny

TOLERANCE = 1e-5


def continuations(processor: Any, *lengths: Sequence[int]) -> list[Continuation]:
    """Prompts of other lengths, the second about two videos; to each, random replies of these
    lengths."""
    shown = [(frames(1),), (frames(3, 2, (48, 32)), frames(4, 6)), (frames(5, 4, (32, 64)),)]
    questions = ["What colour is number 0?", "4 5 seconds", "What colour is number 0 1 2 3 4?"]
    prompts = encode_prompts(processor, list(zip(questions, shown, strict=True)))
    generator = torch.Generator().manual_seed(0)
    return [
        Continuation(prompt, [torch.randint(5, 200, (n,), generator=generator).tolist() for n in of_prompt])
        for prompt, of_prompt in zip(prompts, lengths, strict=False)
    ]


def alone(model: PreTrainedModel, processor: Any, prompt: EncodedPrompt, reply: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of a reply by a plain forward pass of its own."""
    ids = torch.tensor([[*prompt.ids, *reply]])
    given = {"mm_token_type_ids": modality_of(ids, processor), **join_videos([prompt.videos], "cpu")}
    logits = model(input_ids=ids, **given).logits[0, len(prompt.ids) - 1 : -1]
    return torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(reply)[:, None])[:, 0]


def gradients_of(model: PreTrainedModel, logps: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (logps * torch.linspace(0.5, 1.5, len(logps))).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def worst(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest relative difference of a gradient."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - expected[name]).norm() / expected[name].norm().clamp(min=1e-6)) for name in found)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_a_packed_row_equals_its_sequences(family: str, *, checkpointing: bool) -> None:
    model, processor = tiny(family)
    add_fused_lm_head(model)
    shared = continuations(processor, (3, 7, 1, 4), (5, 2), (1,))
    expected = torch.cat([alone(model, processor, prompt, reply) for prompt, replies in shared for reply in replies])
    gradients = gradients_of(model, expected)
    if checkpointing:
        model.train().gradient_checkpointing_enable({"use_reentrant": False})
    found = model(**packed_inputs(model.base_model, processor, shared, "cpu"), fused_lm_head=True).log_probs[0]
    assert len(found) == 23, "each token of each reply, and no other"
    assert float((found - expected).detach().abs().max()) < TOLERANCE
    assert worst(gradients_of(model, found), gradients) < TOLERANCE


def test_a_row_of_whole_samples_equals_a_padded_batch(family: str) -> None:
    """Samples of a supervised step: a reply to each prompt."""
    model, processor = tiny(family)
    add_fused_lm_head(model)
    prompts = [prompt for prompt, _ in continuations(processor, (1,), (1,), (1,))]
    texts = ["a red bar", "a bar", "it is a green bar"]
    padded = model(**training_batch(processor, prompts, texts), fused_lm_head=True).log_probs
    expected = torch.cat([row[row != 0] for row in padded])
    samples = [Continuation(prompt, [reply_ids(processor, text)]) for prompt, text in zip(prompts, texts, strict=True)]
    inputs = packed_inputs(model.base_model, processor, samples, "cpu")
    assert [group.suffixes for group in inputs["packed"].groups] == [(), (), ()], "one causal call for all of them"
    found = model(**inputs, fused_lm_head=True).log_probs[0]
    assert len(found) == len(expected) == 13
    assert float((found - expected).detach().abs().max()) < TOLERANCE


def dense(layout: Layout) -> torch.Tensor:
    """The mask over the whole row, [tokens, tokens]."""
    mask = torch.zeros(layout.tokens, layout.tokens, dtype=torch.bool)
    at = 0
    for group in layout.groups:
        prefix = slice(at, at + group.prefix)
        mask[prefix, prefix] = torch.ones(group.prefix, group.prefix, dtype=torch.bool).tril()
        at += group.prefix
        for length in group.suffixes:
            own = slice(at, at + length)
            mask[own, prefix], mask[own, own] = True, torch.ones(length, length, dtype=torch.bool).tril()
            at += length
    return mask


class _Module(torch.nn.Module):
    is_causal = True


@pytest.mark.parametrize(
    "groups",
    [
        (Group(5, (3, 1, 4)),),
        (Group(5, (3, 1, 4)), Group(2, (6,)), Group(7, (2, 2))),
        (Group(4, (2, 2)), Group(4, (2, 2))),
        (Group(6), Group(1), Group(3, (), 2)),
        (Group(6), Group(3, (2, 5))),
        (Group(1, (1,)),),
    ],
)
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)], ids=["heads", "shared keys"])
def test_the_attention_is_that_of_a_dense_mask(groups: tuple[Group, ...], heads: tuple[int, int]) -> None:
    layout = Layout(groups)
    generator = torch.Generator().manual_seed(1)
    parts = [
        torch.randn(1, count, layout.tokens, 8, generator=generator, requires_grad=True)
        for count in (heads[0], heads[1], heads[1])
    ]
    weight = torch.randn(1, layout.tokens, heads[0], 8, generator=generator)

    def outcome(attend: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
        out = attend()
        return [out, *torch.autograd.grad((out * weight).sum(), parts)]

    def masked() -> torch.Tensor:
        query, key, value = parts
        key, value = (part.repeat_interleave(heads[0] // heads[1], 1) for part in (key, value))
        scores = (query @ key.transpose(2, 3)) * 0.3
        return (scores.masked_fill(~dense(layout), -torch.inf).softmax(-1) @ value).transpose(1, 2)

    found = outcome(lambda: packed_attention(_Module(), *parts, None, packed=layout, scaling=0.3)[0])
    for ours, expected in zip(found, outcome(masked), strict=True):
        assert torch.allclose(ours, expected, atol=2e-6)


def test_inputs_without_a_layout_pass_as_before(family: str) -> None:
    model, processor = tiny(family)
    prompts = [prompt for prompt, _ in continuations(processor, (1,), (1,), (1,))]
    batch = training_batch(processor, prompts, ["a red bar", "a bar", "it is a green bar"])
    text = model.config.get_text_config()
    assert text._attn_implementation == ATTENTION
    ours = model(**batch)
    text._attn_implementation = "sdpa"
    stock = model(**batch)
    assert torch.equal(ours.logits, stock.logits)
    assert torch.equal(ours.loss, stock.loss)


def test_a_saved_model_does_not_know_of_it(tmp_path: Path) -> None:
    model, processor = tiny("qwen2_5_vl")
    save_model(model, processor, tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text()
    assert load_model(tmp_path, "fp32")[0].config.get_text_config()._attn_implementation == ATTENTION


def test_half_precision_differs_by_its_rounding() -> None:
    model, processor = tiny("qwen2_5_vl")
    add_fused_lm_head(model)
    shared = continuations(processor, (3, 7), (5, 2))
    with torch.no_grad():
        exact = torch.cat([alone(model, processor, prompt, reply) for prompt, replies in shared for reply in replies])
        with torch.autocast("cpu", torch.bfloat16):
            plain = torch.cat([alone(model, processor, *one) for one in [(p, r) for p, rs in shared for r in rs]])
            inputs = packed_inputs(model.base_model, processor, shared, "cpu")
            found = model(**inputs, fused_lm_head=True).log_probs[0]
    allowed = 2 * float((plain - exact).abs().max()) + 1e-3
    assert 0 < float((found.float() - exact).abs().max()) < allowed


@pytest.mark.parametrize(("value", "expected"), [("", True), ("1", True), (" 0 ", False)])
def test_the_switch(value: str, *, expected: bool) -> None:
    assert packs({SWITCH: value}) is expected


def test_another_value_of_the_switch_is_refused() -> None:
    with pytest.raises(SwitchError, match="VIDBRIDGE_SHARED_PREFIX: 'no' is neither 0 nor 1"):
        packs({SWITCH: "no"})
