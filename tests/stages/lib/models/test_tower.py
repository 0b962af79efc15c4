"""The vision tower's attention in one call per length of chunk, against transformers' own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.domain.core.frames import Frames
from stages.lib.models.load import load_model, save_model
from stages.lib.models.processor import encode_prompts, training_batch
from tests.support.training.tiny import FAMILIES, frames, tiny


def features_and_gradients(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    tower = model.base_model.visual
    tower.zero_grad()
    out = tower(batch["pixel_values_videos"], grid_thw=batch["video_grid_thw"]).pooler_output
    out = torch.cat(list(out)) if isinstance(out, tuple | list) else out
    (out * torch.linspace(0, 1, out.numel()).view_as(out)).sum().backward()
    return [out.detach(), *(weight.grad.clone() for weight in tower.parameters() if weight.grad is not None)]


@pytest.mark.parametrize("sizes", [[(64, 64)] * 3, [(32, 32), (48, 80), (96, 64)]], ids=["one length", "several"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_bit_is_as_before(family: str, sizes: list[tuple[int, int]]) -> None:
    model, processor = tiny(family)
    tower = model.base_model.visual
    if family == "qwen2_5_vl":
        tower.fullatt_block_indexes = [1]  # the first layer attends within windows
    shown: list[Frames] = [frames(number, 4, size) for number, size in enumerate(sizes)]
    prompts = encode_prompts(processor, [("what?", (video,)) for video in shown])
    batch = training_batch(processor, prompts, ["a bar"] * len(shown))
    ours = features_and_gradients(model, batch)
    assert tower.config._attn_implementation != "sdpa"
    tower.config._attn_implementation = "sdpa"
    stock = features_and_gradients(model, batch)
    assert len(ours) == len(stock) > 10
    assert all(torch.equal(one, other) for one, other in zip(ours, stock, strict=True))
    assert float(np.abs(ours[0].numpy()).max()) > 0


def test_a_saved_model_does_not_know_of_it(tmp_path: Path) -> None:
    """Servers and other programs load it as any model."""
    model, processor = tiny("qwen2_5_vl")
    save_model(model, processor, tmp_path)
    assert "vidbridge_flash" not in (tmp_path / "config.json").read_text()
    assert "flash" in load_model(tmp_path, "fp32")[0].base_model.visual.config._attn_implementation
