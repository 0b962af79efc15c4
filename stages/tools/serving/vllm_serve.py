"""Arguments with which ``vllm serve`` shows an exported model what it saw in its training.

Read in the sources of vLLM 0.32 (``vllm/multimodal/video.py``), and run against it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.domain.core.timeline import SampledFrames, counts
from stages.lib.engine_server.normalising import normalises_alike
from stages.tracking.registry.servable import Usage

#: vLLM's name for taking frames evenly, first and last included, rounded to the nearest frame. It
#: is a way of sampling, whatever the family of the model; by default vLLM chooses one by family,
#: and that of Qwen2-VL and Qwen2.5-VL takes the first frame of each piece, 2 a second.
_EVENLY = "qwen3_vl"
#: Most frames that this way of sampling takes.
_MOST = 768


def media_io(sampled: SampledFrames) -> dict[str, Any]:
    """Settings of vLLM's reader of videos by which it takes the frames of
    :func:`~stages.domain.core.timeline.sample_indices`, unless :func:`limit_of` says otherwise.

    Half a frame is never to be rounded, since counts are even.
    """
    if isinstance(sampled, int):
        return {"video_backend": _EVENLY, "min_frames": sampled, "max_frames": sampled}
    return {
        "video_backend": _EVENLY,
        "fps": float(sampled.per_second),
        "min_frames": sampled.at_least,
        "max_frames": sampled.at_most,
    }


def limit_of(sampled: SampledFrames) -> str:
    """Condition under which :func:`media_io` gives the same frames, behind a sentence; mostly
    none."""
    conditions = []
    if counts(sampled)[-1] > _MOST:
        conditions.append(f"at most {_MOST} are shown")
    if not isinstance(sampled, int):
        # vLLM does not round the number of frames down to an even one.
        conditions.append(f"{float(sampled.per_second):g} a second make an even number of them")
    return "".join(f", and {condition}" for condition in conditions)


def arguments(folder: Path, usage: Usage, config: Mapping[str, Any], name: str) -> list[str]:
    """Arguments of ``vllm serve`` for the exported ``folder``, after the folder itself.

    Args:
        config: configuration of the weights.
        name: of the model in requests.
    """
    out = ["--served-model-name", name]
    if usage.model.precision == "fp32":
        # By default vLLM computes with the weights of single precision in half of it.
        out += ["--dtype", "float32"]
    out += ["--limit-mm-per-prompt", json.dumps({"image": 0, "video": 1})]
    out += ["--media-io-kwargs", json.dumps({"video": media_io(usage.sampled_frames)})]
    if config.get("model_type") == "qwen3_vl":
        # A video with no more frames than are taken would be sampled a second time.
        out += ["--mm-processor-kwargs", json.dumps({"do_sample_frames": False})]
    if not normalises_alike(folder):
        out.append("--no-mm-device-do-normalize")
    template = folder / "chat_template.jinja"
    if template.is_file() and "enable_thinking" in template.read_text(encoding="utf-8"):
        out += ["--default-chat-template-kwargs", json.dumps({"enable_thinking": True})]
    return out


def command(folder: Path, usage: Usage, config: Mapping[str, Any], name: str, place: str = ".") -> str:
    """The command for a shell; ``place``: the folder, as it is named there."""
    return shlex.join(["vllm", "serve", place, *arguments(folder, usage, config, name)])
