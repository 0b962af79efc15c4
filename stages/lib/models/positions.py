"""Positions of the text behind a video: one after the video's last position on any axis, time
included.

Qwen2-VL and Qwen2.5-VL were trained with this rule, vLLM serves them with it, and transformers used
it up to 5.2. Since 5.3 its ``get_rope_index`` continues by the larger side of a frame, so the
question behind 30 s of video gets positions inside the video. Rollouts, losses and greedy replies
of such a process agree with each other, but not with any other implementation. Qwen3-VL has one
grid per frame, where both rules are the same.

This module restores the rule in the one method from which transformers takes the positions of
forward passes and of generation. Saved configurations record it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel

from stages.errors import Fault
from stages.runtime.paths import AFTER_LAST, POSITIONS

log = logging.getLogger(__name__)

#: Families whose time positions may exceed a frame's sides.
_OWN_TIME = ("qwen2_vl", "qwen2_5_vl")
#: The first release of transformers with the other rule.
_OTHER_RULE_SINCE = (5, 3)
_TEXT, _IMAGE, _VIDEO = 0, 1, 2


def place_text_behind_videos(model: PreTrainedModel) -> None:
    """Make a model use these positions under any release of transformers, and record that in its
    configuration."""
    setattr(model.config, POSITIONS, AFTER_LAST)
    if model.config.model_type in _OWN_TIME:
        model.base_model.get_rope_index = MethodType(_rope_index, model.base_model)  # type: ignore[assignment]


def fault_of_rule(config: Any, name: str, *, ours: bool = False) -> Fault | None:
    """Reason why weights must not be used with these positions; None if they may.
    Uncertain cases are logged.

    Args:
        config: configuration of the weights as it was read, before any change.
        name: name of the model, for messages.
        ours: this project published it; if its configuration does not record the rule, version 0.1
            made it.
    """
    if config.model_type not in _OWN_TIME:
        return None
    rule, written_by = getattr(config, POSITIONS, None), str(config.transformers_version or "0.0")
    if rule == AFTER_LAST or (rule is None and _release(written_by) < _OTHER_RULE_SINCE):
        return None  # published weights do not record the rule, and were all trained with it
    if rule is not None or ours:
        evidence = (
            f"{POSITIONS} is {rule!r}"
            if rule is not None
            else f"VidBridge 0.1 made it, and {POSITIONS} is not in its config.json"
        )
        return Fault(
            f"was trained with other positions behind a video ({evidence}; this version trains and runs with"
            f" {AFTER_LAST!r}), so it would misread longer videos",
            "train it again from its base model",
        )
    log.warning(
        "%s: its config.json was written by transformers %s, which positions the text behind a video differently from"
        " the training of the published weights and from this version. Weights that were only saved by it are right:"
        " set %s to %r in config.json. Weights that were trained by it (VidBridge 0.1 did) misread longer videos:"
        " train them again from their base model",
        name,
        written_by,
        POSITIONS,
        AFTER_LAST,
    )
    return None


def _release(version: str) -> tuple[int, ...]:
    """Parse 5.23.0, 5.23.0.dev0 and the like to (5, 23)."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _rope_index(
    self: Any,
    input_ids: torch.Tensor,
    mm_token_type_ids: torch.Tensor,
    image_grid_thw: torch.Tensor | None = None,
    video_grid_thw: torch.Tensor | None = None,
    second_per_grid_ts: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace ``get_rope_index`` of transformers 5, with the same signature.

    Returns:
        Positions in time, height and width, int64 [3, rows, tokens], 0 at padding; and for each row
            the position of its next token minus
        its number of tokens, int64 [rows, 1].
    """
    vision = self.config.vision_config
    merge = int(vision.spatial_merge_size)
    # Qwen2-VL counts temporal patches, Qwen2.5-VL time.
    per_second = float(vision.tokens_per_second) if self.config.model_type == "qwen2_5_vl" else None
    seconds = iter([] if second_per_grid_ts is None else [float(value) for value in second_per_grid_ts])

    def grids(kind: int, sizes: torch.Tensor | None) -> Iterator[torch.Tensor]:
        for time, height, width in [] if sizes is None else sizes.tolist():
            times = torch.arange(time)
            if kind == _VIDEO and per_second is not None:
                # In float32 and in this order, as in the training of the weights: another order may
                # round to another whole number.
                times = (times.float() * next(seconds, 1.0) * per_second).long()
            yield _grid(times, height // merge, width // merge)

    grids_of = {_IMAGE: grids(_IMAGE, image_grid_thw), _VIDEO: grids(_VIDEO, video_grid_thw)}
    attended = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    positions = torch.zeros(3, *input_ids.shape, dtype=torch.long)
    deltas = torch.zeros(len(input_ids), 1, dtype=torch.long)
    for row, (kinds, mask) in enumerate(zip(mm_token_type_ids.cpu(), attended.cpu().bool(), strict=True)):
        row_positions, following = _row_positions(kinds[mask].tolist(), grids_of)
        positions[:, row, mask] = row_positions
        deltas[row] = following - row_positions.shape[1]
    return positions.to(input_ids.device), deltas.to(input_ids.device)


def _row_positions(kinds: Sequence[int], grids_of: dict[int, Iterator[torch.Tensor]]) -> tuple[torch.Tensor, int]:
    """Positions [3, tokens] of one row's tokens, and the next position."""
    parts = [torch.zeros(3, 0, dtype=torch.long)]
    at = following = 0
    while at < len(kinds):
        kind, end = kinds[at], at
        while end < len(kinds) and kinds[end] == kind:
            end += 1
        if kind == _TEXT:
            part = torch.arange(end - at).expand(3, -1)
        else:
            grid = next(grids_of[kind], None)
            if grid is None or grid.shape[1] > end - at:
                raise ValueError(
                    f"tokens: {end - at} placeholders of pixels at {at}, and no video or image that has so many patches"
                )
            part = grid
        parts.append(part + following)
        following += int(part.max()) + 1
        at += part.shape[1]
    return torch.cat(parts, dim=1), following


def _grid(times: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Positions [3, times * height * width] of the merged patches of a video or an image, starting
    at 0."""
    return torch.stack(torch.meshgrid(times, torch.arange(height), torch.arange(width), indexing="ij")).flatten(1)
