"""Conversion of text and sampled frames to tensors, shared by SFT, GRPO and generation, so that all
see the same prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Literal

import torch
from transformers import ProcessorMixin, Qwen3VLVideoProcessor
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata, load_video

from stages.domain.core.frames import Frames
from stages.errors import InputError
from stages.lib.models.rendering import behind_opening, defused, render

#: The model's argument for the seconds that a temporal patch spans, one value per video.
SECONDS = "second_per_grid_ts"
#: Label of a position without loss.
IGNORE = -100
#: The processors of all three families refuse frames with a larger ratio of the sides.
_LONGEST = 200


class UnfitFramesError(InputError, ValueError):
    """The shape or number of frames is not accepted by the model's processor; the message names the
    value and the remedy."""


@dataclass(frozen=True)
class VideoFields:
    """The processor's output for the videos of one prompt.

    Attributes:
        pixels: float32 [patches, patch values] of all its videos, one after the other.
        grids: int64 [videos, 3], numbers of temporal, vertical and horizontal patches.
        seconds: seconds per temporal patch, one value per video; None for families whose prompts
            contain times as text.
    """

    pixels: torch.Tensor
    grids: torch.Tensor
    seconds: tuple[float, ...] | None


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of a rendered prompt (video placeholders expanded) and its videos."""

    ids: tuple[int, ...]
    videos: VideoFields


@dataclass(frozen=True)
class EncodedVideo:
    """The processor's output for one video, and its placeholder text; any number of prompts may use
    it."""

    fields: VideoFields
    expansion: str


def encode_prompts(
    processor: ProcessorMixin, prompts: Sequence[tuple[str, Sequence[Frames]]], samples: Sequence[str] = ()
) -> list[EncodedPrompt]:
    """Encode prompts, each with its videos. Frames are used as they are, without a second sampling.

    Does the two parts of the processor's own call separately: texts recur and are cached, since
    rendering and tokenising them costs as much as the pixels.

    Args:
        samples: names of the prompts, for messages.

    Raises:
        UnfitFramesError: the processor does not accept this shape or number of frames.
    """
    for number, (_, videos) in enumerate(prompts):
        for frames in videos:
            refuse_unfit(processor, frames, samples[number] if samples else None)
    fields, expansions = _process_videos(processor, [frames for _, videos in prompts for frames in videos])
    counts = [len(videos) for _, videos in prompts]
    rest = iter(expansions)
    return [
        EncodedPrompt(_prompt_ids(processor, prompt, tuple(islice(rest, count))), videos)
        for (prompt, _), count, videos in zip(prompts, counts, split_videos(fields, counts), strict=True)
    ]


def encode_video(processor: ProcessorMixin, frames: Frames) -> EncodedVideo:
    """Encode one video for prompts of :func:`about_video`. Frames are used as they are.

    Raises:
        UnfitFramesError: the processor does not accept this shape or number of frames.
    """
    refuse_unfit(processor, frames)
    fields, expansions = _process_videos(processor, [frames])
    return EncodedVideo(split_videos(fields, [1])[0], expansions[0])


def about_video(processor: ProcessorMixin, prompt: str, video: EncodedVideo) -> EncodedPrompt:
    """Encode a prompt about this video alone, as :func:`encode_prompts` does; the pixels are
    shared, not copied."""
    return EncodedPrompt(_prompt_ids(processor, prompt, (video.expansion,)), video.fields)


def refuse_unfit(processor: ProcessorMixin, frames: Frames, sample: str | None = None) -> None:
    """Check that the processor accepts these frames.

    Raises:
        UnfitFramesError: the processor does not accept this shape or number of frames.
    """
    video: Any = processor.video_processor
    count, height, width = frames.pixels.shape[:3]
    name = "" if sample is None else f"sample {sample!r}: "
    if isinstance(video, Qwen3VLVideoProcessor) and count < video.temporal_patch_size:
        raise UnfitFramesError(
            f"{name}frames", f"{count}, and Qwen3-VL takes at least {video.temporal_patch_size}", "pass it twice"
        )
    if max(height, width) > _LONGEST * min(height, width):
        raise UnfitFramesError(
            f"{name}frames",
            f"{width} x {height} px, one side more than {_LONGEST} times the other, which no model here takes",
            "crop the video",
        )


def _process_videos(processor: ProcessorMixin, videos: Sequence[Frames]) -> tuple[Mapping[str, Any], Sequence[str]]:
    """Run the processor on videos: its flat fields, and each video's placeholder text."""
    fields, expansions = processor._process_videos(
        [torch.from_numpy(frames.pixels.copy()).permute(0, 3, 1, 2) for frames in videos],
        video_metadata=[VideoMetadata(**video_metadata(frames)) for frames in videos],
        do_sample_frames=False,
        input_data_format="channels_first",
        return_metadata=True,
    )
    return fields, expansions


@lru_cache(maxsize=8192)
def _prompt_ids(processor: ProcessorMixin, prompt: str, expansions: tuple[str, ...]) -> tuple[int, ...]:
    """Token ids of the rendered prompt, each video placeholder replaced by the placeholders of its
    patches."""
    texts, _ = processor.get_text_with_replacements(
        [render(processor, prompt, len(expansions))], videos_replacements=list(expansions)
    )
    return tuple(processor.tokenizer(texts[0], add_special_tokens=False)["input_ids"])


def video_metadata(frames: Frames) -> dict[str, Any]:
    """Metadata of a video for processors, as the fields of a ``VideoMetadata``."""
    height, width = frames.pixels.shape[1:3]
    return {
        "total_num_frames": frames.total,
        "fps": float(frames.rate),
        "width": width,
        "height": height,
        "duration": float(frames.total / frames.rate),
        # A new list: the processor of Qwen3-VL pads it in place if the number of frames is odd.
        "frames_indices": list(frames.indices),
    }


def split_videos(fields: Mapping[str, Any], videos_of: Sequence[int]) -> list[VideoFields]:
    """Split the processor's flat video fields into one record per prompt. ``videos_of``: number of
    videos of each prompt."""
    grids = torch.as_tensor(fields["video_grid_thw"])
    if sum(videos_of) != len(grids):
        raise ValueError(
            f"videos: the prompts name {sum(videos_of)}, the processor made {len(grids)}; each video needs one"
            " placeholder"
        )
    patches = grids.prod(-1).tolist()
    seconds = fields.get(SECONDS)
    out: list[VideoFields] = []
    video = row = 0
    for count in videos_of:
        rows = sum(patches[video : video + count])
        out.append(
            VideoFields(
                pixels=fields["pixel_values_videos"][row : row + rows],
                grids=grids[video : video + count],
                seconds=None if seconds is None else tuple(float(s) for s in seconds[video : video + count]),
            )
        )
        video, row = video + count, row + rows
    return out


def join_videos(videos: Sequence[VideoFields], device: torch.device | str) -> dict[str, torch.Tensor]:
    """Build the model's keyword arguments for the videos of consecutive rows."""
    joined = {
        "pixel_values_videos": torch.cat([fields.pixels for fields in videos]).to(device),
        "video_grid_thw": torch.cat([fields.grids for fields in videos]).to(device),
    }
    if all(fields.seconds is not None for fields in videos):
        joined[SECONDS] = torch.tensor([s for fields in videos for s in fields.seconds or ()]).to(device)
    return joined


def modality_of(ids: torch.Tensor, processor: Any) -> torch.Tensor:
    """Rebuild ``mm_token_type_ids`` from token ids: 0 text, 1 image, 2 video. Same shape as
    ``ids``."""
    kinds = torch.zeros_like(ids)
    kinds[ids == processor.image_token_id] = 1
    kinds[ids == processor.video_token_id] = 2
    return kinds


def placeholder_ids(processor: Any) -> list[int]:
    """Ids of the placeholder tokens of pixels; the model has no features for one that it
    samples."""
    return [int(processor.image_token_id), int(processor.video_token_id)]


@lru_cache(maxsize=8192)
def reply_ids(processor: ProcessorMixin, reply: str) -> tuple[int, ...]:
    """Token ids of a target reply behind :func:`reply_opening`, and of the end of the turn.

    The reply is tokenised apart from the prompt, as generation produces it. It comes from an
    annotation or a model, so it is data like a prompt: control tokens in it are defused.
    """
    tokenizer = processor.tokenizer
    return (
        *tokenizer(defused(processor, behind_opening(processor, reply)), add_special_tokens=False)["input_ids"],
        int(tokenizer.eos_token_id),
    )


def prompt_batch(
    processor: ProcessorMixin,
    prompts: Sequence[EncodedPrompt],
    device: torch.device | str,
    *,
    side: Literal["left", "right"] = "left",
) -> dict[str, torch.Tensor]:
    """Build inputs for generation: ``input_ids``, ``attention_mask``, ``mm_token_type_ids``
    [prompts, longest], and the videos.

    Args:
        side: of the padding; transformers' own generation needs it on the left.
    """
    ids, mask = padded_ids(processor, [prompt.ids for prompt in prompts], side)
    return {
        "input_ids": ids.to(device),
        "attention_mask": mask.to(device),
        "mm_token_type_ids": modality_of(ids, processor).to(device),
        **join_videos([prompt.videos for prompt in prompts], device),
    }


def padded_ids(
    processor: Any, rows: Sequence[Sequence[int]], side: Literal["left", "right"]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad token ids on one side: ids and mask, [rows, longest]."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), int(processor.tokenizer.pad_token_id))
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        own = slice(longest - len(row), None) if side == "left" else slice(len(row))
        ids[number, own] = torch.tensor(row)
        mask[number, own] = 1
    return ids, mask


def training_batch(
    processor: ProcessorMixin, prompts: Sequence[EncodedPrompt], replies: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Build right-padded inputs for supervised training on the CPU, with ``labels`` on the reply
    and the end of the turn only."""
    rows = [(prompt.ids, reply_ids(processor, reply)) for prompt, reply in zip(prompts, replies, strict=True)]
    ids, mask = padded_ids(processor, [prompt + reply for prompt, reply in rows], "right")
    labels = torch.full_like(ids, IGNORE)
    for row, (prompt, reply) in enumerate(rows):
        labels[row, len(prompt) : len(prompt) + len(reply)] = torch.tensor(reply)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "mm_token_type_ids": modality_of(ids, processor),
        **join_videos([prompt.videos for prompt in prompts], "cpu"),
    }


class _DecodesWithDecord:
    """Mixin that reads a path in a chat message through decord; transformers itself supports
    torchcodec only."""

    def fetch_videos(self, video_url_or_urls: Any, sample_indices_fn: Any = None) -> Any:
        if isinstance(video_url_or_urls, list):
            pairs = [self.fetch_videos(url, sample_indices_fn=sample_indices_fn) for url in video_url_or_urls]
            return [video for video, _ in pairs], [metadata for _, metadata in pairs]
        return load_video(video_url_or_urls, backend="decord", sample_indices_fn=sample_indices_fn)


def decode_with_decord(processor: ProcessorMixin) -> ProcessorMixin:
    """Make ordinary chat messages that name a video file work; everything else stays as it is.

    The class keeps the name of the stock class, since ``save_pretrained`` writes that name and
    ``AutoProcessor`` looks it up.
    """
    stock: type[BaseVideoProcessor] = type(processor.video_processor)
    if not issubclass(stock, _DecodesWithDecord):
        processor.video_processor.__class__ = type(
            stock.__name__, (_DecodesWithDecord, stock), {"__module__": stock.__module__}
        )
    return processor
