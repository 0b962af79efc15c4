"""Models: a tiny one built from a configuration, a pretrained one from the hub or a folder, and the folders they are kept in.

All three families (Qwen2-VL, Qwen2.5-VL, Qwen3-VL) are the classes of transformers; nothing here has code of its own at run time,
and none that a model brings is run (:mod:`stages.lib.models.harmless`). So a saved folder loads through `AutoModelForImageTextToText`
and `AutoProcessor` anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import torch
from huggingface_hub import constants
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
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
from transformers.utils import logging as transformers_logging

from stages.errors import VidbridgeError
from stages.lib.models.chat import chat_template, train_tokenizer
from stages.lib.models.harmless import CONFIG, NO_CODE, NO_PICKLE, fault_of_files, first_sentence
from stages.lib.models.positions import fault_of_rule, place_text_behind_videos
from stages.lib.models.processor import decode_with_decord
from stages.lib.models.settings import plain_generation, without_dropout
from stages.params import Precision, TinyModelParams
from stages.runtime import paths

#: Frames merged into one temporal patch, in all three families.
_TEMPORAL_PATCH = 2
#: Frames of a tiny model are never scaled down below this many pixels a side.
_TINY_MAX_SIDE_PX = 448


class ModelUnavailableError(VidbridgeError, RuntimeError):
    """A model cannot be had; the message says what to set."""


def build_tiny(
    model: TinyModelParams, texts: Iterable[str], scaffolding: Sequence[str], seed: int
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A model of the real architecture with a random start, in float32 on the CPU, and its processor.

    `texts`: what the tokenizer is trained on. `scaffolding`: fixed syntax that becomes one token a piece.
    Weights are drawn with a standard deviation of width**-0.5 in each tower: with the usual 0.02 a narrow model stays blind.

    Raises:
        ValueError: the vocabulary is too small, or the family cannot have this shape.
    """
    tokenizer = train_tokenizer(texts, scaffolding, model.vocabulary)
    set_seed(seed)
    # A DeepSpeed configuration that is already alive would scatter the weights while they are drawn.
    net = _net(model, tokenizer)
    net.generation_config = GenerationConfig(eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id])
    processor = _tiny_processor(model, tokenizer)
    return _ready(net, processor), processor


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
        # Rotary frequencies are dealt to time, height and width in about the proportions of the real models.
        "rope_parameters": {"rope_type": "default", "rope_theta": text.rope_theta, "mrope_section": [half - 2 * side, side, side]},
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
                f"model.vision.mlp_width: {vision.mlp_width} is no multiple of width {vision.width}, which qwen2_vl needs"
            )
        vision_config |= {
            "embed_dim": vision.width,
            "hidden_size": text.width,
            "mlp_ratio": vision.mlp_width // vision.width,
        }
        return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text_config, vision_config=vision_config, **tokens))
    vision_config |= {"hidden_size": vision.width, "intermediate_size": vision.mlp_width, "out_hidden_size": text.width}
    if model.family == "qwen2_5_vl":
        vision_config |= {
            # A window of four merged patches a side; narrow towers are shallow, so every layer also sees the whole frame.
            "window_size": vision.patch_px * vision.merge * 4,
            "fullatt_block_indexes": list(range(vision.layers)),
        }
        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text_config, vision_config=vision_config, **tokens))
    text_config |= {"head_dim": text.width // text.heads}
    text_config["rope_parameters"]["mrope_interleaved"] = True
    # Features of the vision layers named here are added to the first text layers, one each.
    taps = min(3, vision.layers, text.layers)
    vision_config |= {
        "num_position_embeddings": 16**2,
        "deepstack_visual_indexes": [(i + 1) * vision.layers // taps - 1 for i in range(taps)],
    }
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text_config, vision_config=vision_config, **tokens))


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
    image = Qwen2VLImageProcessor(size=size, **patches)
    template = chat_template(model.family)
    if model.family == "qwen3_vl":
        # Qwen3-VL counts the pixels of all frames together, and would sample again by itself.
        whole = {"shortest_edge": smallest, "longest_edge": 768 * _TINY_MAX_SIDE_PX**2}
        video = Qwen3VLVideoProcessor(size=whole, cap_pixels_per_frame=False, do_sample_frames=False, fps=2, **patches)
        processor = Qwen3VLProcessor(image_processor=image, tokenizer=tokenizer, video_processor=video, chat_template=template)
        return decode_with_decord(processor)
    video = Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False, do_sample_frames=False, **patches)
    kind = Qwen2VLProcessor if model.family == "qwen2_vl" else Qwen2_5_VLProcessor
    processor = kind(image_processor=image, tokenizer=tokenizer, video_processor=video, chat_template=template)
    return decode_with_decord(processor)


def load_pretrained(
    name: str, revision: str, precision: Precision, max_pixels_per_frame: int
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A pretrained model at a pinned revision, from the hub, its cache, or a folder (where `revision` means nothing).

    `max_pixels_per_frame`: a frame is scaled down to at most this many pixels.

    Raises:
        ModelUnavailableError: it is neither in the cache nor to be had, its weights are no safetensors, it needs code of its own, or it
            was trained with other positions behind a video.
    """
    source: str | Path = Path(name).resolve() if Path(name).is_dir() else name
    if isinstance(source, Path) and (source / CONFIG).is_file() and (fault := fault_of_files(source)):
        raise ModelUnavailableError(f"model.name: {name!r}: {fault}")
    try:
        processor = AutoProcessor.from_pretrained(source, revision=revision, padding_side="left", **NO_CODE)
        net = AutoModelForImageTextToText.from_pretrained(
            source, revision=revision, dtype=_dtype(precision), **NO_CODE, **NO_PICKLE
        )
    except ValueError as error:
        raise ModelUnavailableError(
            f"model.name: {name!r} at model.revision {revision!r} cannot be loaded: {first_sentence(error)}; take a model of a type that"
            " transformers knows"
        ) from error
    except OSError as error:
        remedy = (
            "HF_HUB_OFFLINE is set: unset it once to download, or set HF_HOME to a cache that holds it"
            if constants.HF_HUB_OFFLINE
            else "check the name and the revision, set HF_TOKEN if it is gated, or download it on another machine and name the folder"
        )
        raise ModelUnavailableError(
            f"model.name: {name!r} at model.revision {revision!r} cannot be loaded; {remedy} ({error})"
        ) from error
    _check_rule(net, name, ours=isinstance(source, Path) and (source / paths.USAGE_FILE).is_file())
    _cap_pixels(processor, max_pixels_per_frame)
    return _ready(net, processor), decode_with_decord(processor)


def _cap_pixels(processor: ProcessorMixin, pixels: int) -> None:
    video: Any = processor.video_processor
    counts_all_frames = isinstance(video, Qwen3VLVideoProcessor)
    side = video.patch_size * video.merge_size
    if pixels < side**2:
        raise ValueError(f"model.max_pixels_per_frame: {pixels} holds no patch; this model needs at least {side**2}")
    shortest = int(video.size["shortest_edge"])
    # The smallest size is a floor that the cap may not undercut.
    shortest = min(shortest, int(pixels / 1.05))
    if counts_all_frames:
        video.size = {"shortest_edge": shortest, "longest_edge": int(video.size["longest_edge"])}
        video.max_video_tokens = pixels // side**2
        video.cap_pixels_per_frame = True
    else:
        video.size = {"shortest_edge": shortest, "longest_edge": pixels}
        video.cap_pixels_per_frame = False
    video.do_sample_frames = False


def load_model(folder: Path, precision: Precision) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A model that `save_model` or a trainer wrote, on the CPU.

    Raises:
        ModelUnavailableError: the folder is missing or no model, its weights are no safetensors, it needs code of its own, or it was
            trained with other positions behind a video.
    """
    transformers_logging.disable_progress_bar()  # a bar for a second of reading is noise in a stage's log
    folder = folder.resolve()  # a relative path that does not exist would be taken for a name on the hub
    if not (folder / "config.json").is_file():
        raise ModelUnavailableError(f"{folder}: holds no model (config.json is missing); run the stage that writes it")
    if fault := fault_of_files(folder):
        raise ModelUnavailableError(f"{folder}: {fault}")
    try:
        processor = AutoProcessor.from_pretrained(folder, padding_side="left", **NO_CODE)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ModelUnavailableError(
            f"{folder}: its processor cannot be loaded: {first_sentence(error)}; copy that of its base"
        ) from error
    net = AutoModelForImageTextToText.from_pretrained(folder, dtype=_dtype(precision), **NO_CODE, **NO_PICKLE)
    _check_rule(net, str(folder), ours=(folder / paths.USAGE_FILE).is_file())
    return _ready(net, processor), decode_with_decord(processor)


def _check_rule(net: PreTrainedModel, name: str, *, ours: bool) -> None:
    fault = fault_of_rule(net.config, name, ours=ours)
    if fault is not None:
        raise ModelUnavailableError(fault)


def freeze(model: PreTrainedModel, parts: Collection[Literal["vision"]]) -> None:
    """Take these parts out of training: ``vision`` is the whole tower, the merger that hands its features to the text included."""
    if "vision" in parts:
        model.base_model.visual.requires_grad_(False)


def _ready(model: PreTrainedModel, processor: ProcessorMixin) -> PreTrainedModel:
    """What every model here is given. What is saved is not touched by it, or put right by it."""
    # A checkpoint's settings are not params.yaml. What shapes a reply or a gradient and is no weight is taken from there alone.
    model.generation_config = plain_generation(model, processor)
    without_dropout(model)
    model.config.use_cache = (
        True  # training says False and saved it so; whoever serves the weights would compute every prefix again
    )
    # The names under which weights are saved follow how they were loaded, and loading under ZeRO-3 makes up a prefix
    # ("model.model."). Without this record the names are those of the published weights, always.
    if hasattr(model, "_weight_conversions"):
        del model._weight_conversions
    # A 3D convolution whose kernel is exactly one patch is a matrix product: the same numbers, and on a CPU a supervised step
    # of the tiny model takes a quarter less time.
    for module in model.modules():
        if isinstance(module, torch.nn.Conv3d) and module.kernel_size == module.stride:
            module.forward = MethodType(_one_patch, module)  # type: ignore[method-assign]
    place_text_behind_videos(model)
    return model


def _one_patch(self: torch.nn.Conv3d, patches: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(patches.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None, None]


def save_model(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Write an ordinary Hugging Face folder: safetensors, configuration, processor, chat template. Same weights, same bytes."""
    transformers_logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_threads() -> None:
    """Threads of torch in this process: VIDBRIDGE_THREADS, else one on a CPU (more are slower on a busy machine)."""
    given = os.environ.get("VIDBRIDGE_THREADS", "")
    if given and not (given.isdigit() and int(given) > 0):
        raise ValueError(f"VIDBRIDGE_THREADS: {given!r} is no number of threads; give a whole number above 0, or unset it")
    if given:
        torch.set_num_threads(int(given))
    elif not torch.cuda.is_available():
        torch.set_num_threads(1)


def _dtype(precision: Precision) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32
