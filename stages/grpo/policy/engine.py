"""Rollout engines: Hugging Face's `generate`, or vLLM inside the training processes.

The choice of engine is circumstance and comes from the environment. The tokens that may be sampled
are not, so this module is a dependency of `grpo`.

TRL 1.16 passes vLLM only images, and token ids whose placeholders are expanded. vLLM expands
placeholders itself, so an expanded prompt would grow a second time. Here vLLM gets the unexpanded
ids with the frames, and the prompt ids that it reports are compared with the ids that the
log-probabilities are computed from. Written against vLLM 0.31; never run with vLLM itself.
Difficulty, evaluation and the controls of GRPO always generate with Hugging Face.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

import torch
from transformers import ProcessorMixin

from stages.domain.core.frames import Frames
from stages.errors import EndpointError
from stages.lib.models.processor import placeholder_ids, video_metadata
from stages.lib.models.rendering import render

RolloutEngine = Literal["hf", "vllm"]

#: Logit bias of tokens that must not be sampled: the lower bound of vLLM, which limits biases to
#: [-100, 100]. A token's probability is then below e**-100.
_NEVER = -100.0
#: Fraction of a GPU's memory that vLLM takes for its weights and its cache, unless
#: VIDBRIDGE_VLLM_MEMORY sets another.
_MEMORY = 0.3


class EngineError(EndpointError, RuntimeError):
    """Rollouts cannot be generated as the environment requests, or were generated from other token
    ids."""


def rollout_engine(environ: Mapping[str, str] = os.environ) -> RolloutEngine:
    """Read VIDBRIDGE_ROLLOUT_ENGINE: `hf` (also when unset) or `vllm`.

    Raises:
        EngineError: another value, or vLLM is requested where it cannot run.
    """
    value = environ.get("VIDBRIDGE_ROLLOUT_ENGINE", "").strip()
    if value in ("", "hf"):
        return "hf"
    if value != "vllm":
        raise EngineError(
            "VIDBRIDGE_ROLLOUT_ENGINE",
            f"{value!r} is unknown",
            "set hf, or vllm (in the training processes, as TRL's server takes no videos)",
        )
    if not torch.cuda.is_available():
        raise EngineError(
            "VIDBRIDGE_ROLLOUT_ENGINE", "vllm needs a GPU, and torch sees none", "unset it, or run where there is one"
        )
    if find_spec("vllm") is None:
        raise EngineError(
            "VIDBRIDGE_ROLLOUT_ENGINE",
            "vllm is not installed",
            "install 'vllm>=0.22,<=0.31' (what TRL 1.16 supports) into .venv, or unset it",
        )
    return "vllm"


def engine_settings(engine: RolloutEngine, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Keyword arguments of a `GRPOConfig` that select the rollout engine.

    Raises:
        EngineError: VIDBRIDGE_VLLM_MEMORY is not a fraction.
    """
    if engine == "hf":
        return {}
    value = environ.get("VIDBRIDGE_VLLM_MEMORY", "").strip()
    try:
        share = float(value or _MEMORY)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise EngineError(
            "VIDBRIDGE_VLLM_MEMORY",
            f"{value!r} is not a fraction of a GPU's memory",
            "set a number between 0 and 1, such as 0.3",
        )
    return {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": share}


def never_sampled(processor: ProcessorMixin, *, vllm: bool) -> dict[str, Any]:
    """Generation settings that keep placeholders of pixels from being sampled."""
    tokens = placeholder_ids(processor)
    return {"logit_bias": dict.fromkeys(tokens, _NEVER)} if vllm else {"suppress_tokens": tokens}


def vllm_request(processor: ProcessorMixin, prompt: str, videos: Sequence[Frames]) -> dict[str, Any]:
    """Build the request of `vllm.LLM.generate` for a prompt about these videos.

    Returns:
        `prompt_token_ids`: the rendered prompt with one placeholder per video; `multi_modal_data`:
        for each video a uint8 array [frames, height, width, 3] and its metadata;
        `mm_processor_kwargs`: settings that prevent a second sampling of frames.
    """
    text = render(processor, prompt, len(videos))
    return {
        "prompt_token_ids": list(processor.tokenizer(text, add_special_tokens=False)["input_ids"]),
        "multi_modal_data": {
            "video": [(frames.pixels, {**video_metadata(frames), "do_sample_frames": False}) for frames in videos]
        },
        "mm_processor_kwargs": {"do_sample_frames": False},
    }


class VideoEngine:
    """Wrapper of a `vllm.LLM` that generates from `requests` instead of TRL's rows, which have no
    videos.

    All other attributes are those of the engine itself.
    """

    def __init__(self, engine: Any) -> None:
        self.requests: list[dict[str, Any]] = []
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, prompts: Sequence[Mapping[str, Any]], **options: Any) -> Any:
        """Outputs of the requests, in the order of `prompts`.

        Raises:
            EngineError: the engine read other token ids than those that are trained on.
        """
        if len(self.requests) != len(prompts):
            raise EngineError(
                "vLLM",
                f"{len(prompts)} prompts but {len(self.requests)} requests",
                "TRL no longer calls it as this class expects",
            )
        outputs = self._engine.generate(self.requests, **options)
        for row, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
            read, trained = list(output.prompt_token_ids), list(prompt["prompt_token_ids"])
            if read != trained:
                raise EngineError(
                    "vLLM",
                    f"row {row} was generated from {len(read)} tokens that are not the {len(trained)} trained on",
                    "this vLLM expands videos in another way: unset VIDBRIDGE_ROLLOUT_ENGINE",
                )
        return outputs
