"""Decoding against transformers' own ``generate`` and against plain forward passes; how often the
model reads a prompt; draws that nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import PreTrainedModel, ProcessorMixin

from stages.lib.inference.decode import Decoded, Draw, Limits, SeededDraws, decode, greedy
from stages.lib.inference.generate import generate
from stages.lib.inference.policy import ModelPolicy
from stages.lib.inference.stems import by_length, equal_prompts, stems_of
from stages.lib.models.processor import EncodedPrompt, encode_prompts, placeholder_ids, prompt_batch
from stages.lib.models.settings import end_ids
from stages.lib.training.lora import adapters
from stages.params import LoraParams
from tests.support.training.tiny import LORA, frames, tiny

TOKENS = 16
SHOWN = frames(9)
#: Unequal lengths and sizes, two videos in one prompt, and three questions about one video.
ASKED = [
    ("What?", (frames(0),)),
    ("What colour is number 1?", (frames(1, 6), frames(2))),
    ("What is 2?", (SHOWN,)),
    ("What colour is 1 2 3?", (SHOWN,)),
    ("it is red? 1 2", (frames(9),)),
    ("What colour is number 0 1 2 3 4 5 6 7 8 9?", (frames(3, size=(48, 32)),)),
]
#: Replies to each.
COUNTS = [1, 8, 1, 2, 1, 3]


def limits(model: PreTrainedModel, processor: ProcessorMixin, **changes: Any) -> Limits:
    return Limits(
        **{
            "max_new_tokens": TOKENS,
            "ends": tuple(end_ids(model, processor)),
            "suppressed": tuple(placeholder_ids(processor)),
            **changes,
        }
    )


def ending(model: PreTrainedModel, processor: ProcessorMixin) -> int:
    """A token that the greedy reply to the first prompt has midway: if it ends replies, some are
    shorter than others."""
    (reply,) = decode(model, processor, encode_prompts(processor, ASKED[:1]), greedy, limits(model, processor))
    return reply.ids[TOKENS // 2]


def theirs(
    model: PreTrainedModel, processor: ProcessorMixin, prompts: Sequence[EncodedPrompt], end: int
) -> list[list[int]]:
    """Greedy replies of transformers, one row a prompt, cut behind the token that ends them."""
    ends = [*end_ids(model, processor), end]
    inputs = prompt_batch(processor, prompts, "cpu")
    out = model.generate(**inputs, max_new_tokens=TOKENS, suppress_tokens=placeholder_ids(processor), eos_token_id=ends)
    rows = out[:, inputs["input_ids"].shape[1] :].tolist()
    return [row[: next((at + 1 for at, token in enumerate(row) if token in ends), len(row))] for row in rows]


def repeated(prompts: Sequence[EncodedPrompt], counts: Sequence[int] = COUNTS) -> list[EncodedPrompt]:
    return [prompt for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_greedy_replies_are_those_of_transformers(family: str, lora: bool) -> None:
    model, processor = tiny(family)
    if lora:
        torch.manual_seed(0)
        adapted: Any = get_peft_model(model, adapters(model, LoraParams.model_validate(LORA)))
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.3)
        model = adapted
    model.eval()
    prompts, end = encode_prompts(processor, ASKED), ending(model, processor)
    bounds = limits(model, processor, ends=(*end_ids(model, processor), end))
    for some in (slice(0, 2), slice(2, 5), slice(0, 6)):
        expected = theirs(model, processor, prompts[some], end)
        found = decode(model, processor, repeated(prompts[some], COUNTS[some]), greedy, bounds)
        assert [reply.ids for reply in found] == [
            ids for ids, count in zip(expected, COUNTS[some], strict=True) for _ in range(count)
        ]
    assert len({len(reply.ids) for reply in found}) > 1, "some leave the batch before others"


def test_log_probabilities_are_those_of_a_plain_forward_pass(family: str) -> None:
    """At each step, of prompts in any order, in groups, and with a shared video."""
    model, processor = tiny(family)
    end = ending(model, processor)
    temperature = 0.7
    rows = repeated(encode_prompts(processor, ASKED))
    rows = rows[::2] + rows[1::2]
    bounds = limits(model, processor, ends=(end,))
    draws = SeededDraws([str(row) for row in range(len(rows))], temperature, torch.device("cpu"))
    found = decode(model, processor, rows, draws, bounds, logps_at=temperature)
    never = torch.tensor(bounds.suppressed)
    for prompt, reply in zip(rows, found, strict=True):
        alone = prompt_batch(processor, [EncodedPrompt((*prompt.ids, *reply.ids), prompt.videos)], "cpu")
        with torch.no_grad():
            logits = model(**alone).logits[0, len(prompt.ids) - 1 : -1].index_fill(1, never, -torch.inf)
        logps = torch.log_softmax(logits / temperature, dim=-1).gather(1, torch.tensor(reply.ids)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(reply.logps), logps, atol=1e-5, rtol=0)
        assert end not in reply.ids[:-1]
        assert len(reply.ids) == TOKENS or reply.ids[-1] == end


@contextmanager
def passes(model: PreTrainedModel) -> Iterator[list[tuple[int, int]]]:
    """Collects the rows and tokens of each pass of the language model."""
    seen: list[tuple[int, int]] = []
    hook = model.base_model.language_model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    try:
        yield seen
    finally:
        hook.remove()


def drawn(
    model: PreTrainedModel, processor: ProcessorMixin, rows: Sequence[EncodedPrompt], draw: Draw
) -> list[Decoded]:
    return decode(model, processor, rows, draw, limits(model, processor, max_new_tokens=3, min_new_tokens=3))


def test_the_model_reads_each_prompt_once() -> None:
    model, processor = tiny("qwen2_5_vl")
    prompts = encode_prompts(processor, ASKED)
    lengths = [len(prompt.ids) for prompt in prompts]
    with passes(model) as seen:
        drawn(model, processor, [prompts[0]] * 8, greedy)
    assert seen == [(1, lengths[0]), (8, 1), (8, 1)], "a group reads its prompt once"
    with passes(model) as seen:
        drawn(model, processor, [prompts[1], prompts[0], prompts[1], prompts[0]], greedy)
    assert seen == [(2, max(lengths[:2])), (4, 1), (4, 1)], "wherever its rows stand"
    with passes(model) as seen:
        drawn(model, processor, prompts[2:5], greedy)
    behind = [lengths[2 + row] - seen[0][1] for row in range(3)]
    assert seen == [(1, seen[0][1]), (3, max(behind)), (3, 1), (3, 1)], "three questions read their video once"
    assert prompts[2].ids[: seen[0][1]] == prompts[4].ids[: seen[0][1]]
    assert processor.video_token_id not in prompts[2].ids[seen[0][1] :]


def test_rows_that_have_ended_leave_the_batch() -> None:
    model, processor = tiny("qwen2_5_vl")
    rows = repeated(encode_prompts(processor, ASKED[:2]), [3, 5])
    end = 40

    def draw(logits: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        """Reply n has n + 1 tokens."""
        step = draw.step  # type: ignore[attr-defined]
        draw.step += 1  # type: ignore[attr-defined]
        return torch.tensor([end if number == step else 50 for number in numbers])

    draw.step = 0  # type: ignore[attr-defined]
    with passes(model) as seen:
        found = decode(model, processor, rows, draw, limits(model, processor, ends=(end,)))
    assert [len(reply.ids) for reply in found] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [count for count, tokens in seen if tokens == 1] == [7, 6, 5, 4, 3, 2, 1]


def test_seeded_draws_depend_on_their_seed_and_prompt_alone(family: str) -> None:
    model, processor = tiny(family)
    prompts = encode_prompts(processor, ASKED)
    asked = [(row, number) for row, count in enumerate(COUNTS) for number in range(count)]

    def drawn_of(chosen: Sequence[tuple[int, int]]) -> dict[tuple[int, int], list[int]]:
        draws = SeededDraws([f"{row}/{number}" for row, number in chosen], 1.0, torch.device("cpu"))
        found = decode(model, processor, [prompts[row] for row, _ in chosen], draws, limits(model, processor))
        return dict(zip(chosen, [reply.ids for reply in found], strict=True))

    whole = drawn_of(asked)
    assert len({tuple(ids) for ids in whole.values()}) == len(asked)
    for chosen in (asked[::-1], asked[4:5], asked[-4:-1] + asked[:2]):
        assert drawn_of(chosen) == {key: whole[key] for key in chosen}


def test_a_reply_is_bounded_from_below_and_in_time() -> None:
    model, processor = tiny("qwen2_5_vl")
    end = ending(model, processor)
    prompts = encode_prompts(processor, ASKED[:1])
    (least,) = decode(model, processor, prompts, greedy, limits(model, processor, ends=(end,), min_new_tokens=TOKENS))
    assert (len(least.ids), end in least.ids) == (TOKENS, False)
    (late,) = decode(model, processor, prompts, greedy, limits(model, processor, max_time_s=0.0))
    assert len(late.ids) == 1


def test_equal_videos_come_into_one_batch_and_results_stay_in_order() -> None:
    model, processor = tiny("qwen2_5_vl")
    asked = [(text, shown[0]) for text, shown in ASKED[:4]]
    items = [asked[2], asked[0], asked[3]]
    alone = [generate(ModelPolicy(model, processor), [item], max_new_tokens=6, batch_size=1)[0] for item in items]
    with passes(model) as seen:
        together = generate(
            ModelPolicy(model, processor), items, max_new_tokens=6, batch_size=2, videos=["v", "u", "v"]
        )
    assert together == alone
    assert [count for count, tokens in seen if tokens > 20] == [1, 1], "the two questions first, then the other one"


def test_prompts_are_equal_only_with_equal_videos() -> None:
    _, processor = tiny("qwen2_5_vl")
    texts = [("What?", (frames(1),)), ("What?", (frames(2),)), ("What?", (frames(1),)), ("Why?", (frames(1),))]
    prompts = encode_prompts(processor, texts)
    assert equal_prompts(prompts) == [[0, 2], [1], [3]]
    distinct = [prompts[0], prompts[1], prompts[3]]
    assert [stem.places for stem in stems_of(processor, distinct)] == [(0, 2), (1,)]
    assert [stem.rests for stem in stems_of(processor, distinct[:2])] == [((),), ((),)], "nothing is shared"
    assert [stem.places for stem in stems_of(processor, distinct, shared=False)] == [(0,), (1,), (2,)]


def test_prompts_are_batched_by_length() -> None:
    assert by_length([10, 2000, 12, 1900, 11]) == [[1, 3], [2, 4, 0]]
    assert by_length([60, 30, 45]) == [[0, 2, 1]], "a pass of its own costs more than a little padding"
