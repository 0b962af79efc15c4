"""Attention of replies to prompts that they share, whose keys and values are held once.

A new token attends to its prompt and to what stands behind it. The two parts are computed apart and
merged by their sums of exponentials, as in FlashAttention (arXiv 2205.14135); all replies to a
prompt attend to it in one matrix product (Hydragen, arXiv 2402.05099). Repeating the cache for
each reply instead would take as many times the memory, and its copy at every token as many times
the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface

#: transformers makes no masks for an attention that it does not know.
_NAME = "vidbridge_shared_prefix"


class Block(NamedTuple):
    """Cached prompts of one prefill.

    Attributes:
        layers: keys and values of each layer, [prompts, heads, tokens, width] each.
        bias_PK: what is added to scores at each token, [prompts, tokens]: nothing, or at padding
            the lowest number; None: there is no padding.
    """

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    bias_PK: torch.Tensor | None

    def chosen(self, prompts: Sequence[int]) -> Block:
        """These prompts only."""
        index = torch.tensor(prompts, dtype=torch.long, device=self.layers[0][0].device)
        layers = [(keys[index], values[index]) for keys, values in self.layers]
        return Block(layers, None if self.bias_PK is None else self.bias_PK[index])


def cached_block(cache: Any, mask_PK: torch.Tensor) -> Block:
    """Take a block from the cache that a prefill filled.

    Raises:
        ValueError: the model has layers that see a window of the last tokens only.
    """
    if any(layer.is_sliding for layer in cache.layers):
        raise ValueError("use_sliding_window: the model attends within a window of tokens; set it to false")
    return Block([(layer.keys, layer.values) for layer in cache.layers], bias_of(mask_PK))


def bias_of(mask: torch.Tensor) -> torch.Tensor | None:
    """What is added to scores where a mask of tokens is 0: the lowest number, so that nothing else
    is left of them; None if the mask is 1 everywhere."""
    if bool(mask.all()):
        return None
    # Finite: a row of padding alone has no other scores, and would become NaN.
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(mask.shape, device=mask.device).masked_fill(mask == 0, lowest)


class _Grid(NamedTuple):
    """Rows of one block, from ``first`` on, ``size`` of them, as a grid [prompts, width].

    ``slots``: place of each row in the grid; None: the rows fill it in order.
    """

    first: int
    size: int
    width: int
    slots: torch.Tensor | None


@dataclass(frozen=True)
class Prefixes:
    """The prompts of the rows of a batch, which stand in ascending order of their prompts: an
    argument of the model while :func:`attending_to_prefixes` holds.

    Args:
        blocks: prompts, block after block.
        prompt_of: of each row the number of its block, and of its prompt in the block.
        own_bias_RK: as `bias_PK` of a block, of the first tokens behind the prompts, [rows,
            tokens]; the others have none.
    """

    blocks: Sequence[Block]
    prompt_of: Sequence[tuple[int, int]]
    own_bias_RK: torch.Tensor | None = None

    @cached_property
    def grids(self) -> list[_Grid]:
        """The rows of each block."""
        grids: list[_Grid] = []
        first = 0
        for number, block in enumerate(self.blocks):
            prompts = [prompt for of_block, prompt in self.prompt_of if of_block == number]
            prompt_R = torch.tensor(prompts, dtype=torch.long)
            count_P = torch.bincount(prompt_R, minlength=len(block.layers[0][0]))
            width = int(count_P.max()) if prompts else 0
            slots: torch.Tensor | None = None
            if len(prompts) < width * len(count_P):
                before_P = count_P.cumsum(0) - count_P
                slots = prompt_R * width + torch.arange(len(prompts)) - before_P[prompt_R]
                slots = slots.to(block.layers[0][0].device)
            grids.append(_Grid(first, len(prompts), width, slots))
            first += len(prompts)
        return grids

    def chosen(self, rows: Sequence[int]) -> Prefixes:
        """Those of these rows, in ascending order; a row may occur several times."""
        blocks, prompt_of = _compacted(self.blocks, [self.prompt_of[row] for row in rows])
        return Prefixes(blocks, prompt_of, None if self.own_bias_RK is None else self.own_bias_RK[list(rows)])


def _compacted(
    blocks: Sequence[Block], prompt_of: Sequence[tuple[int, int]]
) -> tuple[list[Block], list[tuple[int, int]]]:
    """Drop the prompts that no row has any more, where they are half of a block or more; return the
    blocks, some of them empty, and ``prompt_of`` for them."""
    live: list[list[int]] = [[] for _ in blocks]
    for number, prompt in dict.fromkeys(prompt_of):
        live[number].append(prompt)
    fewer = {
        number: {prompt: new for new, prompt in enumerate(prompts)}
        for number, (block, prompts) in enumerate(zip(blocks, live, strict=True))
        if 2 * len(prompts) <= len(block.layers[0][0])
    }
    kept = [block.chosen(list(fewer[number])) if number in fewer else block for number, block in enumerate(blocks)]
    return kept, [(number, fewer[number][prompt] if number in fewer else prompt) for number, prompt in prompt_of]


@contextmanager
def attending_to_prefixes(text_model: Any) -> Iterator[None]:
    """Within this context, the language model attends as :func:`attention_with_prefixes` does, and
    needs the argument ``prefixes``."""
    AttentionInterface.register(_NAME, attention_with_prefixes)
    own, text_model.config._attn_implementation = text_model.config._attn_implementation, _NAME
    try:
        yield
    finally:
        text_model.config._attn_implementation = own


class _Part(NamedTuple):
    """Attention to some of the keys: ``highest`` scores, and ``values`` and ``total`` of the
    exponentials of the others relative to them."""

    values: torch.Tensor
    total: torch.Tensor
    highest: torch.Tensor


def attention_with_prefixes(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,  # noqa: ARG001 - the signature that transformers calls
    *,
    scaling: float,
    prefixes: Prefixes,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute the attention of each row's last tokens to its prompt and to the tokens behind it.

    Args:
        query: [rows, heads, new tokens, width].
        key, value: of all tokens behind the prompt, the new ones last, [rows, heads of keys,
            tokens, width].
        prefixes: the prompts.

    Returns:
        [rows, new tokens, heads, width], and no weights.
    """
    # Autocast would round the scores.
    with torch.autocast(query.device.type, enabled=False):
        return _attention(module.layer_idx, query, key, value, scaling, prefixes), None


def _attention(
    layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, prefixes: Prefixes
) -> torch.Tensor:
    shape = query.shape
    new, heads = shape[2], key.shape[1]
    # The query heads of one key head stand side by side, as more tokens.
    query_RHTD = (query.float() * scaling).reshape(shape[0], heads, -1, shape[3])
    bias = _own_bias(prefixes.own_bias_RK, query_RHTD, new, key.shape[2])
    own = _attended(query_RHTD, key, value, bias)
    before = [
        _to_block(block, block.layers[layer], grid, query_RHTD)
        for block, grid in zip(prefixes.blocks, prefixes.grids, strict=True)
        if grid.size
    ]
    parts = [_Part(*(torch.cat(each) for each in zip(*before, strict=True))) if len(before) > 1 else before[0], own]
    highest = torch.maximum(parts[0].highest, parts[1].highest)
    weights = [(part.highest - highest).exp() for part in parts]
    values = parts[0].values * weights[0] + parts[1].values * weights[1]
    total = parts[0].total * weights[0] + parts[1].total * weights[1]
    return (values / total).to(query.dtype).view(shape).transpose(1, 2)


def _attended(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None) -> _Part:
    """Scores and exponentials are in single precision, as in fused attention."""
    scores = query @ keys.float().transpose(-1, -2)
    if bias is not None:
        scores[..., : bias.shape[-1]] += bias
    highest = scores.amax(-1, keepdim=True)
    exponentials = scores.sub_(highest).exp_()
    return _Part(exponentials @ values.float(), exponentials.sum(-1, keepdim=True), highest)


def _own_bias(bias_RK: torch.Tensor | None, query_RHTD: torch.Tensor, new: int, tokens: int) -> torch.Tensor | None:
    """What is added to scores of tokens behind the prompt, or of the first of them, [rows or 1, 1,
    query heads of a key head x new tokens or 1, tokens]: later tokens and padding are not seen."""
    bias = None if bias_RK is None else bias_RK[:, None, None]
    if new > 1:
        seen = torch.ones(new, tokens, dtype=torch.bool, device=query_RHTD.device).tril(tokens - new)
        later = bias_of(seen.repeat(query_RHTD.shape[2] // new, 1))
        return later if bias is None or later is None else torch.minimum(bias, later)
    return bias


def _to_block(block: Block, layer: tuple[torch.Tensor, torch.Tensor], grid: _Grid, query_RHTD: torch.Tensor) -> _Part:
    """Attention of the rows of a block to their prompts, [rows, heads, tokens, width] and so on."""
    keys, values = layer
    query = query_RHTD[grid.first : grid.first + grid.size]
    prompts, tokens = len(keys), query.shape[2]
    if grid.slots is not None:
        query = query.new_zeros(prompts * grid.width, *query.shape[1:]).index_copy_(0, grid.slots, query)
    # [prompts, heads, replies x tokens, width]
    together = query.unflatten(0, (prompts, grid.width)).transpose(1, 2).flatten(2, 3)
    bias = None if block.bias_PK is None else block.bias_PK[:, None, None]
    part = _attended(together, keys, values, bias)

    def by_row(found: torch.Tensor) -> torch.Tensor:
        each: torch.Tensor = found.unflatten(2, (grid.width, tokens)).transpose(1, 2).flatten(0, 1)
        return each if grid.slots is None else each.index_select(0, grid.slots)

    return _Part(*(by_row(found) for found in part))
