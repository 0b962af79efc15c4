"""Resize of frames as a model's processor does it, so that they can be stored as small as the model
sees them."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoVideoProcessor, ProcessorMixin
from transformers.image_utils import SizeDict
from transformers.video_processing_utils import BaseVideoProcessor

from stages.domain.core.frames import Fit, Shrink
from stages.lib.models.harmless import NO_CODE

#: Settings of a video processor that affect its resizing.
_RESIZING = {
    "cap_pixels_per_frame",
    "do_resize",
    "max_video_tokens",
    "merge_size",
    "patch_size",
    "resample",
    "size",
    "temporal_patch_size",
}


@lru_cache(maxsize=8)
def fit_of(model_folder: Path) -> Fit:
    """Build the resize of the processor in this folder.

    Models with equal resizing share its name, so a policy and the models trained from it do. The
    folder is read once per process.
    """
    video: Any = AutoVideoProcessor.from_pretrained(model_folder.resolve(), **NO_CODE)
    settings = {name: value for name, value in video.to_dict().items() if name in _RESIZING}
    versions = [version(name) for name in ("torch", "torchvision", "transformers")]
    name = sha256(repr((type(video).__name__, sorted(settings.items()), versions)).encode()).hexdigest()
    return Fit(name, lambda pixels: _fitted(video, pixels))


@lru_cache(maxsize=8)
def shrink_of(model_folder: Path) -> Shrink:
    """Build the resize of :func:`fit_of` for single frames."""
    video: Any = AutoVideoProcessor.from_pretrained(model_folder.resolve(), **NO_CODE)
    return Shrink(
        lambda count, height, width: _shrunk_size(video, count, height, width),
        lambda frame, size: _shrunk(video, frame, size),
    )


def most_pixels(processor: ProcessorMixin, count: int) -> int:
    """Largest number of pixels per frame that the processor outputs for any video of ``count``
    frames."""
    video: Any = processor.video_processor
    if not video.do_resize:
        raise ValueError(
            "preprocessor_config.json: do_resize is false, so that nothing bounds what a video takes; set it to true"
        )
    # Any large size will do: larger frames are scaled down to the limit, for every shape.
    height, width = _resized(
        video, torch.empty((1, count, 3, 1 << 16, 1 << 16), dtype=torch.uint8, device="meta")
    ).shape[-2:]
    return int(height * width)


def _shrunk_size(video: Any, count: int, height: int, width: int) -> tuple[int, int]:
    if not video.do_resize:
        return height, width

    def size(height: int, width: int) -> tuple[int, int]:
        resized = _resized(video, torch.empty((1, count, 3, height, width), dtype=torch.uint8, device="meta"))
        return int(resized.shape[-2]), int(resized.shape[-1])

    fitted = size(height, width)
    return fitted if fitted[0] * fitted[1] < height * width and size(*fitted) == fitted else (height, width)


def _shrunk(video: Any, frame: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    if frame.shape[:2] == size:
        return frame
    writable = frame if frame.flags.writeable else frame.copy()  # torch warns of others
    # The call that the processors make once they have computed the size.
    resized = BaseVideoProcessor.resize(
        video,
        torch.from_numpy(writable).permute(2, 0, 1)[None, None],
        size=SizeDict(height=size[0], width=size[1]),
        resample=video.resample,
    )
    return resized[0, 0].permute(1, 2, 0).contiguous().numpy()


def _fitted(video: Any, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    if not video.do_resize:
        return pixels
    writable = pixels if pixels.flags.writeable else pixels.copy()  # torch warns of others
    fitted = _resized(video, torch.from_numpy(writable).permute(0, 3, 1, 2)[None])
    # Only if it is smaller, and if the processor leaves the result unchanged: it may not for very
    # long frames.
    if (
        fitted.shape[-2] * fitted.shape[-1] >= pixels.shape[1] * pixels.shape[2]
        or _resized(video, fitted).shape != fitted.shape
    ):
        return pixels
    return fitted[0].permute(0, 2, 3, 1).contiguous().numpy()


def _resized(video: Any, frames: torch.Tensor) -> torch.Tensor:
    resized: torch.Tensor = video.resize(
        videos=frames,
        size=SizeDict(**dict(video.size)),
        resample=video.resample,
        factor=video.patch_size * video.merge_size,
        temporal_factor=video.temporal_patch_size,
        cap_pixels_per_frame=video.cap_pixels_per_frame,
    )
    return resized
