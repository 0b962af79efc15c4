"""Where the text behind a video stands: one after the video's last position on any axis, time included.

Qwen2-VL and Qwen2.5-VL were trained so, vLLM serves them so, and transformers counted so up to 5.2. From 5.3 on its `get_rope_index`
goes on by the larger side of a frame, so that the question behind 30 s of video stands inside the video. Rollouts, losses and greedy
replies of such a process agree with each other, and with nobody else. Qwen3-VL has a grid a frame, where both rules are one.

The models of this project are given the rule here, in the one method from which transformers takes the positions of a forward pass and
of generation alike; what they save says so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel

from stages.runtime.paths import AFTER_LAST, POSITIONS

log = logging.getLogger(__name__)

#: Families whose time positions may exceed a frame's sides.
_OWN_TIME = ("qwen2_vl", "qwen2_5_vl")
#: The first transformers that counts in the other way.
_COUNTS_OTHERWISE = (5, 3)
_TEXT, _IMAGE, _VIDEO = 0, 1, 2


def place_text_behind_videos(model: PreTrainedModel) -> None:
    """Give a model these positions, whatever transformers it was built by; its configuration says so from now on."""
    setattr(model.config, POSITIONS, AFTER_LAST)
    if model.config.model_type in _OWN_TIME:
        model.base_model.get_rope_index = MethodType(_rope_index, model.base_model)  # type: ignore[assignment]


def fault_of_rule(config: Any, name: str, *, ours: bool = False) -> str | None:
    """Why weights must not be used with these positions, and what to do; None: they may be. Where it is not certain, that is logged.

    Args:
        config: that of the weights as it was read, before anything was set in it.
        name: of the model, for people.
        ours: this project published it; where its configuration does not say the rule, it was version 0.1.
    """
    if config.model_type not in _OWN_TIME:
        return None
    rule, written_by = getattr(config, POSITIONS, None), str(config.transformers_version or "0.0")
    if rule == AFTER_LAST or (rule is None and _release(written_by) < _COUNTS_OTHERWISE):
        return None  # published weights say nothing, and were all trained so
    if rule is not None or ours:
        said = (
            f"{POSITIONS} is {rule!r}" if rule is not None else f"VidBridge 0.1 made it, and {POSITIONS} is not in its config.json"
        )
        return (
            f"{name}: was trained with other positions behind a video ({said}; {AFTER_LAST!r} is what this version trains and shows"
            " videos with), so it would misread the longer ones; train it again from its base model"
        )
    log.warning(
        "%s: its config.json was written by transformers %s, which places the text behind a video otherwise than the published weights"
        " were trained with and than is done here. Weights that were only saved by it are right: set %s to %r in config.json."
        " Weights that were trained by it (VidBridge 0.1 did) misread longer videos: train them again from their base model",
        name,
        written_by,
        POSITIONS,
        AFTER_LAST,
    )
    return None


def _release(version: str) -> tuple[int, ...]:
    """(5, 23) of 5.23.0, 5.23.0.dev0 and the like."""
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
    """What `get_rope_index` of transformers 5 is asked and answers.

    Returns:
        Positions in time, height and width, int64 [3, rows, tokens], 0 where a row is padded; and for each row by how much its next
        token stands further than the tokens before it are many, int64 [rows, 1].
    """
    vision = self.config.vision_config
    merge = int(vision.spatial_merge_size)
    # Qwen2-VL counts temporal patches, Qwen2.5-VL time.
    a_second = float(vision.tokens_per_second) if self.config.model_type == "qwen2_5_vl" else None
    seconds = iter([] if second_per_grid_ts is None else [float(one) for one in second_per_grid_ts])

    def grids(kind: int, given: torch.Tensor | None) -> Iterator[torch.Tensor]:
        for time, height, width in [] if given is None else given.tolist():
            times = torch.arange(time)
            if kind == _VIDEO and a_second is not None:
                # In float32 and in this order, as those who trained it did: a product may round to the other side of a whole number.
                times = (times.float() * next(seconds, 1.0) * a_second).long()
            yield _grid(times, height // merge, width // merge)

    shown = {_IMAGE: grids(_IMAGE, image_grid_thw), _VIDEO: grids(_VIDEO, video_grid_thw)}
    read = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    positions = torch.zeros(3, *input_ids.shape, dtype=torch.long)
    deltas = torch.zeros(len(input_ids), 1, dtype=torch.long)
    for row, (kinds, mask) in enumerate(zip(mm_token_type_ids.cpu(), read.cpu().bool(), strict=True)):
        placed, following = _place(kinds[mask].tolist(), shown)
        positions[:, row, mask] = placed
        deltas[row] = following - placed.shape[1]
    return positions.to(input_ids.device), deltas.to(input_ids.device)


def _place(kinds: Sequence[int], shown: dict[int, Iterator[torch.Tensor]]) -> tuple[torch.Tensor, int]:
    """Positions [3, tokens] of one row's tokens, and the one that follows them."""
    parts = [torch.zeros(3, 0, dtype=torch.long)]
    at = following = 0
    while at < len(kinds):
        kind, end = kinds[at], at
        while end < len(kinds) and kinds[end] == kind:
            end += 1
        if kind == _TEXT:
            part = torch.arange(end - at).expand(3, -1)
        else:
            grid = next(shown[kind], None)
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
    """Positions [3, times * height * width] of the merged patches of a video or an image, from 0 on."""
    return torch.stack(torch.meshgrid(times, torch.arange(height), torch.arange(width), indexing="ij")).flatten(1)
