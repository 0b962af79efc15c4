"""Sequence parallelism: processes that share the tokens of one packed row.

Each holds a part of the row's tokens, in order. Everything in a layer but its attention treats
tokens one by one. For the attention the processes exchange tokens for heads: each then has all
tokens of a part of the heads, attends as ever, and exchanges back (DeepSpeed-Ulysses, arXiv
2309.14509). Each scores its own tokens, so the gradients of a row are the sum of those of its
processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed


@dataclass(frozen=True)
class Share:
    """One of the processes that share rows.

    Attributes:
        ranks: number of these processes.
        rank: number of this one among them.
        group: process group of these.
    """

    ranks: int
    rank: int
    group: Any

    def lengths(self, total: int) -> list[int]:
        """Numbers of a total that the processes have, as equal as can be."""
        return [total * (rank + 1) // self.ranks - total * rank // self.ranks for rank in range(self.ranks)]

    def part(self, total: int) -> slice:
        """This process's part of a total."""
        return slice(total * self.rank // self.ranks, total * (self.rank + 1) // self.ranks)

    def holds(self, places_S: torch.Tensor, total: int) -> torch.Tensor:
        """Whether this process has these places of a total, bool [places]."""
        part = self.part(total)
        own_S: torch.Tensor = (places_S >= part.start) & (places_S < part.stop)
        return own_S

    def all_tokens(self, part_1HLD: torch.Tensor, total: int) -> torch.Tensor:
        """Exchange this process's tokens of all heads, [1, heads, own tokens, width], for all
        tokens of its heads, [1, heads / processes, total, width]. Fewer heads of keys than
        processes are sent to several."""
        heads, own = part_1HLD.shape[1:3]
        part_1HLD = part_1HLD.repeat_interleave(max(1, self.ranks // heads), 1)
        sent = part_1HLD[0].unflatten(0, (self.ranks, -1)).transpose(1, 2).flatten(0, 1)
        received: torch.Tensor = _Exchange.apply(sent, self.lengths(total), [own] * self.ranks, self.group)
        return received.transpose(0, 1)[None]

    def all_heads(self, out_1LHD: torch.Tensor) -> torch.Tensor:
        """Exchange back: all tokens of this process's heads, [1, total, heads / processes, width],
        for its tokens of all heads, [1, own tokens, heads, width]."""
        total = out_1LHD.shape[1]
        lengths = self.lengths(total)
        own = lengths[self.rank]
        received = _Exchange.apply(out_1LHD[0], [own] * self.ranks, lengths, self.group)
        tokens: torch.Tensor = received.unflatten(0, (self.ranks, own)).transpose(0, 1).flatten(1, 2)
        return tokens[None]

    def whole(self, part: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Join the parts of all processes, of these lengths, along the first axis. The gradient of
        a part is the sum of those of all processes."""
        sent = part.repeat(self.ranks, *[1] * (part.dim() - 1))
        joined: torch.Tensor = _Exchange.apply(sent, list(lengths), [len(part)] * self.ranks, self.group)
        return joined


class _Exchange(torch.autograd.Function):
    """Send the n-th run of rows to the n-th process, and join what all send here."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, received: list[int], sent: list[int], group: Any) -> torch.Tensor:
        ctx.received, ctx.sent, ctx.group = received, sent, group
        out = rows.new_empty(sum(received), *rows.shape[1:])
        distributed.all_to_all_single(out, rows.contiguous(), received, sent, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return _Exchange.apply(gradient, ctx.sent, ctx.received, ctx.group), None, None, None
