"""Models of published sizes with random weights, and videos of noise."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from benchmarks.grpo.subject import build, tiny_params
from stages.domain.core.frames import Frames
from stages.lib.models.load import device, prepare_model
from stages.params import TinyModelParams

FRAMES, SIDE_PX, RATE = 16, 392, Fraction(2)

#: Configurations of Qwen2.5-VL as published (config.json of Qwen/Qwen2.5-VL-3B-Instruct and -7B-).
_TEXT: dict[str, dict[str, Any]] = {
    "3b": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
}
_VISION: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_VOCABULARY = 152_064


def video(number: int, side_px: int = SIDE_PX) -> Frames:
    pixels = np.random.default_rng(number).integers(0, 256, (FRAMES, side_px, side_px, 3), np.uint8)
    return Frames(pixels, tuple(range(FRAMES)), FRAMES, RATE)


def tiny(family: str, patch_px: int = 16) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Model of the recipe `tiny` in one of the families, and its processor."""
    changed = tiny_params().model_dump() | {"family": family}
    changed["vision"] |= {"patch_px": patch_px}
    return build(TinyModelParams.model_validate(changed))


def large(size: str, dtype: torch.dtype) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Qwen2.5-VL of a published size with random weights, on the GPU, and a processor whose small
    tokenizer was trained here."""
    _, processor = tiny("qwen2_5_vl", patch_px=14)
    tokenizer, text = processor.tokenizer, _TEXT[size]
    head = text["hidden_size"] // text["num_attention_heads"]
    config = Qwen2_5_VLConfig(
        text_config={
            **text,
            "vocab_size": _VOCABULARY,
            "max_position_embeddings": 128_000,
            "rms_norm_eps": 1e-6,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [head // 8, 3 * head // 16, 3 * head // 16],
            },
        },
        vision_config={**_VISION, "out_hidden_size": text["hidden_size"]},
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.vision_start_token_id,
        vision_end_token_id=tokenizer.vision_end_token_id,
        tie_word_embeddings=size == "3b",
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device():
            model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    return prepare_model(model, processor), processor
