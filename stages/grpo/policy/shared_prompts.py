"""Rows of a batch that share prompts, as one packed row."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stages.lib.inference.stems import equal_prompts
from stages.lib.models.packing import Continuation
from stages.lib.models.processor import EncodedPrompt, VideoFields


class SharedPrompts:
    """Rows whose equal prompts stand together: what a packed row is made of, and where its outputs
    belong.

    Args:
        ids_BL: rows of prompts padded on the left and replies padded on the right.
        attended_BL: the tokens that are no padding, nor out of the loss.
        replies: number of columns of the replies.
        videos: of each row.
    """

    def __init__(
        self, ids_BL: torch.Tensor, attended_BL: torch.Tensor, replies: int, videos: Sequence[VideoFields]
    ) -> None:
        self._mask_BC = attended_BL[:, -replies:].bool()
        self._lengths: list[int] = self._mask_BC.sum(dim=1).tolist()
        prompts: list[EncodedPrompt] = []
        replies_of: list[list[int]] = []
        for row, (ids, attended) in enumerate(zip(ids_BL, attended_BL.bool(), strict=True)):
            tokens = ids[attended].tolist()
            length = len(tokens) - self._lengths[row]
            prompts.append(EncodedPrompt(tuple(tokens[:length]), videos[row]))
            replies_of.append(tokens[length:])
        #: First place of each row's reply among the scored tokens.
        self._starts: dict[int, int] = {}
        self.continuations: list[Continuation] = []
        behind = 0
        for rows in equal_prompts(prompts):
            filled = [row for row in rows if replies_of[row]]
            if filled:
                self.continuations.append(Continuation(prompts[rows[0]], [replies_of[row] for row in filled]))
            for row in filled:
                self._starts[row] = behind
                behind += self._lengths[row]
        if not self.continuations:
            # One token, which is dropped again, keeps the pass, which other processes may wait for,
            # and its graph.
            self.continuations.append(Continuation(prompts[0], [prompts[0].ids[-1:]]))

    def place(self, row: int, token: int) -> int:
        """Place, among the scored tokens, of the one that a token of a row's reply is predicted
        from."""
        return self._starts[row] + token

    def by_row(self, values_1S: torch.Tensor) -> torch.Tensor:
        """Put a value of each scored token into its row and column, [rows, columns of the replies];
        0 where no token is."""
        parts = [
            values_1S[0, start : start + length]
            for start, length in ((self._starts.get(row, 0), length) for row, length in enumerate(self._lengths))
        ]
        found = torch.cat(parts)
        return found.new_zeros(self._mask_BC.shape).masked_scatter(self._mask_BC, found)
