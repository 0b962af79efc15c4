"""Loading and saving of models, from the hub or from folders.

All three families (Qwen2-VL, Qwen2.5-VL, Qwen3-VL) are classes of transformers. Saved models need
no code of this project, and code that comes with a model is not run
(:mod:`stages.lib.models.harmless`). So a saved folder loads anywhere through
``AutoModelForImageTextToText`` and ``AutoProcessor``.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, Literal

import torch
from huggingface_hub import constants
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
    Qwen3VLVideoProcessor,
)
from transformers.utils import logging as transformers_logging

from stages.errors import MachineError
from stages.lib.models.harmless import CONFIG, NO_CODE, NO_PICKLE, fault_of_files, first_sentence
from stages.lib.models.packing import take_packed_rows
from stages.lib.models.positions import fault_of_rule, place_text_behind_videos
from stages.lib.models.processor import decode_with_decord
from stages.lib.models.settings import plain_generation, without_dropout
from stages.lib.models.tower import attend_by_length
from stages.runtime import paths

if TYPE_CHECKING:
    from stages.params import Precision


class ModelUnavailableError(MachineError, RuntimeError):
    """A model cannot be loaded; the message names the setting to change."""


#: Arguments of a tokenizer that say how it was loaded.
_OF_THE_LOADING = ("is_local", "local_files_only")


def load_pretrained(
    name: str, revision: str, precision: Precision, max_pixels_per_frame: int
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a pretrained model at a pinned revision, from the hub, its cache, or a folder (where
    ``revision`` has no effect).

    ``max_pixels_per_frame``: frames are scaled down to at most this many pixels.

    Raises:
        ModelUnavailableError: it is neither in the cache nor downloadable, its weights are not
            safetensors, it needs code of its own, or it was trained with other positions behind a
            video.
    """
    source: str | Path = Path(name).resolve() if Path(name).is_dir() else name
    if isinstance(source, Path) and (source / CONFIG).is_file() and (fault := fault_of_files(source)):
        raise ModelUnavailableError("model.name", f"{name!r}: {fault.problem}", fault.remedy)
    try:
        processor = AutoProcessor.from_pretrained(source, revision=revision, padding_side="left", **NO_CODE)
        net = AutoModelForImageTextToText.from_pretrained(
            source, revision=revision, dtype=dtype_of(precision), **NO_CODE, **NO_PICKLE
        )
    except ValueError as error:
        raise ModelUnavailableError(
            "model.name",
            f"{name!r} at model.revision {revision!r} cannot be loaded: {first_sentence(error)}",
            "set a model of a type that transformers supports",
        ) from error
    except OSError as error:
        remedy = (
            "HF_HUB_OFFLINE is set: unset it once to download, or set HF_HOME to a cache that holds it"
            if constants.HF_HUB_OFFLINE
            else "check the name and the revision, set HF_TOKEN if it is gated, or download it on another machine and"
            " name the folder"
        )
        raise ModelUnavailableError(
            "model.name", f"{name!r} at model.revision {revision!r} cannot be loaded", f"{remedy} ({error})"
        ) from error
    _check_rule(net, name, ours=isinstance(source, Path) and (source / paths.USAGE_FILE).is_file())
    _cap_pixels(processor, max_pixels_per_frame)
    return prepare_model(net, processor), decode_with_decord(_without_circumstances(processor))


def _cap_pixels(processor: ProcessorMixin, pixels: int) -> None:
    video: Any = processor.video_processor
    counts_all_frames = isinstance(video, Qwen3VLVideoProcessor)
    side = video.patch_size * video.merge_size
    if pixels < side**2:
        raise ValueError(
            f"model.max_pixels_per_frame: {pixels} is less than one patch; this model needs at least {side**2}"
        )
    shortest = int(video.size["shortest_edge"])
    # The cap must not fall below the processor's smallest size.
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
    """Load a model that ``save_model`` or a trainer wrote, to the CPU.

    Raises:
        ModelUnavailableError: the folder is missing or is not a model, its weights are not
            safetensors, it needs code of its own, or it was trained with other positions behind a
            video.
    """
    transformers_logging.disable_progress_bar()  # a progress bar for a second of loading is noise in a stage's log
    folder = folder.resolve()  # a relative path that does not exist would be treated as a name on the hub
    if not (folder / "config.json").is_file():
        raise ModelUnavailableError(
            str(folder), "is not a model (config.json is missing)", "run the stage that writes it"
        )
    if fault := fault_of_files(folder):
        raise ModelUnavailableError(str(folder), *fault)
    try:
        processor = AutoProcessor.from_pretrained(folder, padding_side="left", **NO_CODE)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ModelUnavailableError(
            str(folder),
            f"its processor cannot be loaded: {first_sentence(error)}",
            "copy the processor of its base model",
        ) from error
    net = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype_of(precision), **NO_CODE, **NO_PICKLE)
    _check_rule(net, str(folder), ours=(folder / paths.USAGE_FILE).is_file())
    return prepare_model(net, processor), decode_with_decord(_without_circumstances(processor))


def _without_circumstances(processor: ProcessorMixin) -> ProcessorMixin:
    """Remove how a tokenizer was loaded from the settings that it saves: whether the hub could be
    reached (``HF_HUB_OFFLINE``) is where a model was trained, not what it is."""
    for name in _OF_THE_LOADING:
        processor.tokenizer.init_kwargs.pop(name, None)
    return processor


def _check_rule(net: PreTrainedModel, name: str, *, ours: bool) -> None:
    fault = fault_of_rule(net.config, name, ours=ours)
    if fault is not None:
        raise ModelUnavailableError(name, *fault)


def freeze(model: PreTrainedModel, parts: Collection[Literal["vision"]]) -> None:
    """Exclude these parts from training. ``vision`` is the whole tower with the merger that passes
    its features to the text."""
    if "vision" in parts:
        model.base_model.visual.requires_grad_(False)


def prepare_model(model: PreTrainedModel, processor: ProcessorMixin) -> PreTrainedModel:
    """Apply the settings that all models here share to a new or loaded model. Saved settings stay
    correct, or become so."""
    # Settings that shape a reply or a gradient come from params.yaml alone, never from a
    # checkpoint.
    model.generation_config = plain_generation(model, processor)
    without_dropout(model)
    # Training sets and saves False, with which a server of the weights would recompute every
    # prefix.
    model.config.use_cache = True
    # Saved names of weights follow how they were loaded, and loading under ZeRO-3 invents a prefix
    # ("model.model."). Without this record the names are always those of the published weights.
    if hasattr(model, "_weight_conversions"):
        del model._weight_conversions
    # A 3D convolution with a kernel of exactly one patch is a matrix product: the same values, and
    # on a CPU a supervised step of the tiny model takes a quarter less time.
    for module in model.modules():
        if isinstance(module, torch.nn.Conv3d) and module.kernel_size == module.stride:
            module.forward = MethodType(_one_patch, module)  # type: ignore[method-assign]
    attend_by_length(model)
    take_packed_rows(model)
    place_text_behind_videos(model)
    return model


def _one_patch(self: torch.nn.Conv3d, patches: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(patches.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None, None]


def save_model(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Write an ordinary Hugging Face folder: safetensors, configuration, processor, chat template.
    Equal weights give equal bytes."""
    transformers_logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def device() -> torch.device:
    """First GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_threads() -> None:
    """Set the number of torch threads of this process: VIDBRIDGE_THREADS, else one on a CPU (more
    are slower on a busy machine)."""
    threads = os.environ.get("VIDBRIDGE_THREADS", "")
    if threads and not (threads.isdigit() and int(threads) > 0):
        raise ValueError(
            f"VIDBRIDGE_THREADS: {threads!r} is not a number of threads; set a whole number >= 1, or unset it"
        )
    if threads:
        torch.set_num_threads(int(threads))
    elif not torch.cuda.is_available():
        torch.set_num_threads(1)


def dtype_of(precision: Precision) -> torch.dtype:
    """Type of a model's weights."""
    return torch.bfloat16 if precision == "bf16" else torch.float32
