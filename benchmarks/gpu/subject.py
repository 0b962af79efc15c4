"""Models of published sizes with random weights, sizes of a step, and videos of noise. Needs torch
and transformers only."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from benchmarks.gpu.sizes import DRY, FULL, Sizes
from stages.base.tokenizer import train_tokenizer
from stages.domain.core.frames import Frames
from stages.lib.models.chat import chat_template
from stages.lib.models.load import device, prepare_model
from stages.lib.models.processor import EncodedPrompt, decode_with_decord, encode_prompts

Size = Literal["3b", "7b"]
#: Trained weights: adapters on bf16 weights; all weights, which are float32 masters under bf16
#: autocast; or all weights in bf16, whose masters DeepSpeed keeps in the host's memory.
Trained = Literal["lora", "full", "offload"]

QUESTION = "what happens ?"
RATE = Fraction(2)


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
    "dry": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
}
_PATCHES: dict[str, Any] = {"patch_size": 14, "temporal_patch_size": 2}
_VISION: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_DRY_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "fullatt_block_indexes": [1],
}
_VOCABULARY, _DRY_VOCABULARY = 152_064, 512


@dataclass(frozen=True)
class Subject:
    """Model that a part measures.

    Attributes:
        size: of the published model.
        trained: weights that are trained; None: nothing is.
        dry: the same code at tiny size, wherever it runs.
    """

    size: Size
    trained: Trained | None = None
    dry: bool = False

    @property
    def sizes(self) -> Sizes:
        return DRY if self.dry else FULL

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        # On a CPU, transformers takes no bf16 together with DeepSpeed.
        whole = self.trained == "full" or (self.trained == "offload" and not torch.cuda.is_available())
        return torch.float32 if whole else torch.bfloat16

    def build(self, *, stock: bool = False) -> tuple[PreTrainedModel, ProcessorMixin]:
        """Build the model with random weights on the GPU, if there is one, and a processor whose
        small tokenizer is trained here.

        Args:
            stock: as transformers makes it, without what this project changes.
        """
        free()
        tokenizer = train_tokenizer([QUESTION], (), 320)
        patches = {**_PATCHES, "merge_size": 2}
        sides = {"shortest_edge": 28**2, "longest_edge": 448**2}
        processor: Any = Qwen2_5_VLProcessor(
            image_processor=Qwen2VLImageProcessor(size=sides, **patches),
            tokenizer=tokenizer,
            video_processor=Qwen2VLVideoProcessor(
                size=sides, do_sample_frames=False, cap_pixels_per_frame=False, **patches
            ),
            chat_template=chat_template("qwen2_5_vl"),
        )
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with device():
                model = Qwen2_5_VLForConditionalGeneration(self._config(tokenizer))
        finally:
            torch.set_default_dtype(before)
        # TRL looks it up for the model's card.
        model.config._name_or_path = f"Qwen2.5-VL-{self.size}-random"
        if stock:
            model.generation_config = GenerationConfig(
                eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
            )
            return model, processor
        return prepare_model(model, processor), decode_with_decord(processor)

    def _config(self, tokenizer: Any) -> Qwen2_5_VLConfig:
        text = _TEXT["dry" if self.dry else self.size]
        head = text["hidden_size"] // text["num_attention_heads"]
        return Qwen2_5_VLConfig(
            text_config={
                **text,
                "vocab_size": _DRY_VOCABULARY if self.dry else _VOCABULARY,
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
            vision_config={
                **(_DRY_VISION if self.dry else _VISION),
                **_PATCHES,
                "spatial_merge_size": 2,
                "window_size": 112,
                "out_hidden_size": text["hidden_size"],
            },
            image_token_id=tokenizer.image_token_id,
            video_token_id=tokenizer.video_token_id,
            vision_start_token_id=tokenizer.vision_start_token_id,
            vision_end_token_id=tokenizer.vision_end_token_id,
            tie_word_embeddings=self.size == "3b",
        )

    def video(self, number: int) -> Frames:
        return noise(number, self.sizes.frames, self.sizes.side_px)

    def prompts(self, processor: ProcessorMixin, count: int) -> list[EncodedPrompt]:
        """Encode ``count`` prompts, each with a video of its own."""
        return encode_prompts(processor, [(QUESTION, (self.video(number),)) for number in range(count)])


def noise(number: int, frames: int, side_px: int) -> Frames:
    """A video whose pixels are noise, the same for the same number."""
    pixels = np.random.default_rng(number).integers(0, 256, (frames, side_px, side_px, 3), np.uint8)
    return Frames(pixels, tuple(range(frames)), frames, RATE)


def free() -> None:
    """Give back the memory of the models of parts that are over."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
