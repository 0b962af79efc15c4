"""Attention of the vision tower: chunks of equal length in one call.

A tower attends within frames and, in Qwen2.5-VL, within windows of frames. Without FlashAttention's
package transformers calls the attention once per chunk: 128 windows a layer for a video of 16
frames of 392 px. On a GPU the calls cost more than the arithmetic in them.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

#: transformers hands lengths of chunks, instead of one chunk after the other, to an attention whose
#: name has "flash" in it.
_NAME = "vidbridge_flash_chunks"


def attend_by_length(model: PreTrainedModel) -> None:
    """Make the vision tower of a model attend to all chunks of one length in one call."""
    AttentionInterface.register(_NAME, chunked_attention)
    tower: Any = model.base_model.visual
    tower.config._attn_implementation = _NAME


def chunked_attention(
    module: torch.nn.Module,  # noqa: ARG001 - the signature that transformers calls
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,  # noqa: ARG001
    *,
    scaling: float,
    dropout: float,
    cu_seq_lens_q: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention within consecutive chunks of a sequence.

    Args:
        query, key, value: [1, heads, tokens, width].
        cu_seq_lens_q: first token of each chunk, and the number of tokens, [chunks + 1].

    Returns:
        [1, tokens, heads, width], and no weights.
    """

    def attended(parts: tuple[torch.Tensor, ...], length: int) -> torch.Tensor:
        """[1, heads, chunks * length, width] each -> [1, chunks * length, heads, width]."""
        q, k, v = (part[0].unflatten(1, (-1, length)).transpose(0, 1) for part in parts)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
        return out.transpose(1, 2).flatten(0, 1).unsqueeze(0)

    of_chunk = cu_seq_lens_q.diff()
    distinct = sorted({length for length in of_chunk.tolist() if length})
    if len(distinct) == 1:
        return attended((query, key, value), distinct[0]), None
    starts = cu_seq_lens_q[:-1]
    places = [
        (starts[of_chunk == length].unsqueeze(1) + torch.arange(length, device=starts.device)).flatten()
        for length in distinct
    ]
    outs = [
        attended(tuple(part.index_select(2, place) for part in (query, key, value)), length)
        for place, length in zip(places, distinct, strict=True)
    ]
    return torch.cat(outs, 1).index_select(1, torch.cat(places).argsort()), None
