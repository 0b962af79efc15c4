"""Supervised rows that several processes share, for videos whose activations one cannot hold
(:mod:`stages.lib.models.sequence`).

Libraries do not carry this: the loaders of DeepSpeed's Ulysses and of torch's context parallelism
cut ``input_ids`` before the model sees them, and a model that is given a part of the placeholders
and all pixels refuses; their attention knows one causal sequence, not a packed row. Here the row
is cut behind the embeddings, and the frames of a video before the vision tower, which attends
within frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import distributed
from transformers import PreTrainedModel

from stages.lib.models.packing import LAYOUT, Layout
from stages.lib.models.sequence import Share
from stages.params import SftRow
from stages.runtime.ranks.placement import PlacementError, placement

#: Label of a token that is not scored.
UNSCORED = -100
_VARIABLE = "VIDBRIDGE_SEQUENCE_RANKS"


def share_of(model: PreTrainedModel, row: SftRow, *, packed: bool) -> Share | None:
    """This process's share of rows; None: each process has rows of its own. All processes must call
    this.

    Raises:
        PlacementError: the model's heads cannot be divided; rows are padded; adapters have dropout.
    """
    ranks = placement().sequence
    if ranks == 1:
        return None
    text = model.config.get_text_config()
    heads, of_keys = text.num_attention_heads, text.num_key_value_heads
    if heads % ranks or (of_keys % ranks and ranks % of_keys):
        raise PlacementError(
            _VARIABLE,
            f"{ranks} processes, and the model has {heads} heads, {of_keys} of keys, which are divided among them",
            f"set a divisor of {heads} that divides {of_keys} or is a multiple of it",
        )
    if not packed:
        raise PlacementError(
            _VARIABLE, "padded rows cannot be shared (VIDBRIDGE_SHARED_PREFIX is 0)", "unset one of them"
        )
    if row.lora is not None and row.lora.dropout:
        raise PlacementError(
            _VARIABLE,
            f"lora.dropout {row.lora.dropout}: what is dropped would depend on who holds a token",
            "set dropout 0.0, or unset the variable",
        )
    whole = range(distributed.get_world_size())
    groups = [distributed.new_group(list(whole[first : first + ranks])) for first in whole[::ranks]]
    me = distributed.get_rank()
    return Share(ranks, me % ranks, groups[me // ranks])


def shared_inputs(inputs: Mapping[str, Any], share: Share) -> dict[str, Any]:
    """Inputs of :func:`stages.lib.models.packing.packed_inputs` for one of the processes that share
    the row: with the labels of its own tokens."""
    layout: Layout = inputs[LAYOUT]
    own_S = share.holds(layout.places(torch.device("cpu")).scored_S, layout.tokens)
    labels = inputs["shift_labels"][:, own_S]
    if not own_S.any():  # it takes part in the passes all the same
        labels = torch.full((1, 1), UNSCORED)
    return {**inputs, LAYOUT: replace(layout, share=share), "shift_labels": labels}


def share_rows(model: PreTrainedModel) -> None:
    """Make a model that takes packed rows take shared ones."""
    backbone: Any = model.base_model
    current: list[Share | None] = [None]

    def note(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        layout: Layout | None = inputs.get(LAYOUT)
        current[0] = None if layout is None else layout.share

    stock = backbone.get_video_features

    def get_video_features(pixel_values_videos: torch.Tensor, video_grid_thw: torch.Tensor, **kwargs: Any) -> Any:
        if current[0] is None:
            return stock(pixel_values_videos, video_grid_thw, **kwargs)
        return _features(stock, backbone.visual.spatial_merge_size, current[0], pixel_values_videos, video_grid_thw)

    backbone.get_video_features = get_video_features
    backbone.register_forward_pre_hook(note, with_kwargs=True)
    backbone.language_model.register_forward_pre_hook(_own_tokens, with_kwargs=True)


def _own_tokens(_: Any, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Leave this process's tokens in the inputs of the language model."""
    layout: Layout | None = inputs.get(LAYOUT)
    if layout is None or layout.share is None:
        return None
    part = layout.share.part(layout.tokens)
    own = {
        **inputs,
        "inputs_embeds": inputs["inputs_embeds"][:, part],
        "position_ids": inputs["position_ids"][..., part],
    }
    if inputs.get("deepstack_visual_embeds") is not None:  # Qwen3-VL
        seen_1L = inputs["visual_pos_masks"]
        before, count = int(seen_1L[:, : part.start].sum()), int(seen_1L[:, part].sum())
        own["visual_pos_masks"] = seen_1L[:, part]
        own["deepstack_visual_embeds"] = [layer[before : before + count] for layer in inputs["deepstack_visual_embeds"]]
    return args, own


def _features(stock: Any, merge: int, share: Share, pixels: torch.Tensor, grids_N3: torch.Tensor) -> Any:
    """Features of all videos, of which each process computed those of its frames. A video with
    fewer frames than processes is computed by all: each takes the gradient of its own tokens."""
    parts: list[torch.Tensor] = []
    grids: list[list[int]] = []
    shape_of = grids_N3.tolist()
    for video, (time, height, width) in zip(pixels.split(grids_N3.prod(-1).tolist()), shape_of, strict=True):
        own = share.part(time) if time >= share.ranks else slice(0, time)
        parts.append(video[own.start * height * width : own.stop * height * width])
        grids.append([own.stop - own.start, height, width])
    features = stock(torch.cat(parts), torch.tensor(grids, device=grids_N3.device))

    def whole(of_videos: Any) -> tuple[torch.Tensor, ...]:
        return tuple(
            share.whole(part, [frames * height * width // merge**2 for frames in share.lengths(time)])
            if time >= share.ranks
            else part
            for part, (time, height, width) in zip(of_videos, shape_of, strict=True)
        )

    features.pooler_output = whole(features.pooler_output)
    if getattr(features, "deepstack_features", None) is not None:
        features.deepstack_features = [whole(layer) for layer in features.deepstack_features]
    return features
