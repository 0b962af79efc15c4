"""Tiny policy: a model of the real architecture with random weights, and its processor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from transformers import (
    GenerationConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    set_seed,
)

from stages.base.tokenizer import train_tokenizer
from stages.lib.models.chat import chat_template
from stages.lib.models.load import prepare_model
from stages.lib.models.processor import decode_with_decord
from stages.params import TinyModelParams

#: Frames merged into one temporal patch, in all three families.
_TEMPORAL_PATCH = 2
#: Frames of a tiny model are never scaled down below this many pixels a side.
_TINY_MAX_SIDE_PX = 448


def build_tiny(
    model: TinyModelParams, texts: Iterable[str], scaffolding: Sequence[str], seed: int
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build a model of the real architecture with random weights, in float32 on the CPU, and its
    processor.

    `texts`: training texts of the tokenizer. `scaffolding`: pieces of fixed syntax, each of which
    becomes one token. Weights are drawn with a standard deviation of width**-0.5 in each tower:
    with the usual 0.02 a narrow model does not learn to see.

    Raises:
        ValueError: the vocabulary is too small, or the family does not allow this shape.
    """
    tokenizer = train_tokenizer(texts, scaffolding, model.vocabulary)
    set_seed(seed)
    # A DeepSpeed configuration that is already alive would scatter the weights while they are
    # drawn.
    net = _net(model, tokenizer)
    net.generation_config = GenerationConfig(eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id])
    processor = _tiny_processor(model, tokenizer)
    return prepare_model(net, processor), processor


def _net(model: TinyModelParams, tokenizer: Qwen2Tokenizer) -> PreTrainedModel:
    text, vision = model.text, model.vision
    half = text.width // text.heads // 2
    side = half * 5 // 16 if model.family == "qwen3_vl" else half * 3 // 8
    text_config = {
        "vocab_size": len(tokenizer),
        "hidden_size": text.width,
        "intermediate_size": text.mlp_width,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "max_position_embeddings": 4096,
        "initializer_range": text.width**-0.5,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        # Rotary frequencies are divided among time, height and width in about the proportions of
        # the real models.
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": text.rope_theta,
            "mrope_section": [half - 2 * side, side, side],
        },
    }
    vision_config = {
        "depth": vision.layers,
        "num_heads": vision.heads,
        "patch_size": vision.patch_px,
        "spatial_merge_size": vision.merge,
        "temporal_patch_size": _TEMPORAL_PATCH,
        "initializer_range": vision.width**-0.5,
    }
    tokens = {
        "image_token_id": tokenizer.image_token_id,
        "video_token_id": tokenizer.video_token_id,
        "vision_start_token_id": tokenizer.vision_start_token_id,
        "vision_end_token_id": tokenizer.vision_end_token_id,
        "tie_word_embeddings": True,
    }
    if model.family == "qwen2_vl":
        if vision.mlp_width % vision.width:
            raise ValueError(
                f"model.vision.mlp_width: {vision.mlp_width} is not a multiple of width {vision.width}, as qwen2_vl"
                " requires; set one"
            )
        vision_config |= {
            "embed_dim": vision.width,
            "hidden_size": text.width,
            "mlp_ratio": vision.mlp_width // vision.width,
        }
        return Qwen2VLForConditionalGeneration(
            Qwen2VLConfig(text_config=text_config, vision_config=vision_config, **tokens)
        )
    vision_config |= {"hidden_size": vision.width, "intermediate_size": vision.mlp_width, "out_hidden_size": text.width}
    if model.family == "qwen2_5_vl":
        vision_config |= {
            # A window of four merged patches per side; narrow towers are shallow, so every layer
            # also attends to the whole frame.
            "window_size": vision.patch_px * vision.merge * 4,
            "fullatt_block_indexes": list(range(vision.layers)),
        }
        return Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text_config, vision_config=vision_config, **tokens)
        )
    text_config |= {"head_dim": text.width // text.heads}
    text_config["rope_parameters"]["mrope_interleaved"] = True
    # Features of the vision layers named here are added to the first text layers, one each.
    taps = min(3, vision.layers, text.layers)
    vision_config |= {
        "num_position_embeddings": 16**2,
        "deepstack_visual_indexes": [(i + 1) * vision.layers // taps - 1 for i in range(taps)],
    }
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text_config, vision_config=vision_config, **tokens)
    )


def _tiny_processor(model: TinyModelParams, tokenizer: Qwen2Tokenizer) -> ProcessorMixin:
    patches: dict[str, Any] = {
        "patch_size": model.vision.patch_px,
        "merge_size": model.vision.merge,
        "temporal_patch_size": _TEMPORAL_PATCH,
    }
    video: Any
    processor: Any
    smallest = (model.vision.patch_px * model.vision.merge) ** 2
    size = {"shortest_edge": smallest, "longest_edge": _TINY_MAX_SIDE_PX**2}
    # Qwen3-VL normalises pictures as it does videos, with other values than this class has.
    halves: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if model.family == "qwen3_vl" else {}
    image = Qwen2VLImageProcessor(size=size, **patches, **halves)
    template = chat_template(model.family)
    if model.family == "qwen3_vl":
        # Qwen3-VL limits the pixels of all frames together, and would sample frames a second time
        # by default.
        whole = {"shortest_edge": smallest, "longest_edge": 768 * _TINY_MAX_SIDE_PX**2}
        video = Qwen3VLVideoProcessor(size=whole, cap_pixels_per_frame=False, do_sample_frames=False, fps=2, **patches)
        processor = Qwen3VLProcessor(
            image_processor=image, tokenizer=tokenizer, video_processor=video, chat_template=template
        )
        return decode_with_decord(processor)
    video = Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False, do_sample_frames=False, **patches)
    kind = Qwen2VLProcessor if model.family == "qwen2_vl" else Qwen2_5_VLProcessor
    processor = kind(image_processor=image, tokenizer=tokenizer, video_processor=video, chat_template=template)
    return decode_with_decord(processor)
