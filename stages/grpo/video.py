"""Video in TRL's GRPO trainer.

TRL 1.16 has no video input here: given video prompts it generates correctly and then computes the
loss *without the video*, with no error. Four overrides fix this. The processor's flat video fields
are split into one record per row when prompts are tokenised; the records travel as a list through
TRL's buffered batch, which shuffles and splits lists along with the tensors; the loss takes them
from there; and the log-probability pass wraps the model, so that each chunk of rows gets the videos
of its own rows. A test compares the log-probabilities with those of a plain forward pass, and
another checks that the stock trainer still fails it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from trl import GRPOConfig

from stages.grpo.engine import VideoEngine, never_sampled
from stages.grpo.generation import DecodesRollouts
from stages.lib.inference.vision_cache import encode_equal_videos_once
from stages.lib.models.positions import place_text_behind_videos
from stages.lib.models.processor import EncodedPrompt, VideoFields, join_videos, modality_of
from stages.lib.training.lora import without_adapters

#: Function that encodes prompts by their keys, in order.
Encode = Callable[[Sequence[str]], list[EncodedPrompt]]


class TakesVideos(DecodesRollouts):
    """`GRPOTrainer` whose dataset's `prompt` column holds keys; `encode` turns keys into token ids
    and video fields.

    The rollouts of a prompt share one encoding, so a video is decoded and processed once for all of
    them.

    Args:
        encode: encodes prompts by key.
        request: builds vLLM's request for a key; required where vLLM generates.
    """

    def __init__(
        self,
        *,
        encode: Encode,
        request: Callable[[str], dict[str, Any]] | None = None,
        args: GRPOConfig,
        processing_class: Any,
        **kwargs: Any,
    ) -> None:
        # TRL prevents sampling of the image token; a sampled video token would lack features just
        # the same.
        args.generation_kwargs = {
            **(args.generation_kwargs or {}),
            **never_sampled(processing_class, vllm=args.use_vllm),
        }
        self._encode, self._request = encode, request
        #: Videos of the rows that the model processes now, while generating and in the loss.
        self._row_videos: list[VideoFields] = []
        super().__init__(args=args, processing_class=processing_class, **kwargs)
        if self.use_vllm:
            self.vllm_generation.llm = VideoEngine(self.vllm_generation.llm)
        for model in (self.model, self.ref_model):
            if model is not None:
                # TRL loads a reference model itself, and under DeepSpeed wraps it in an engine
                # whose `config` is DeepSpeed's.
                plain = without_adapters(self.accelerator.unwrap_model(model))
                encode_equal_videos_once(plain)
                place_text_behind_videos(plain)

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        distinct = list(dict.fromkeys(prompts))
        encoded = dict(zip(distinct, self._encode(distinct), strict=True))
        rows = [encoded[prompt] for prompt in prompts]
        self._row_videos = [row.videos for row in rows]
        if self.use_vllm:
            assert self._request is not None
            requests = {prompt: self._request(prompt) for prompt in distinct}
            self.vllm_generation.llm.requests = [requests[prompt] for prompt in prompts]
        ids = [list(row.ids) for row in rows]
        kinds = [modality_of(torch.tensor(row), self.processing_class).tolist() for row in ids]
        return ids, None, {**join_videos(self._row_videos, "cpu"), "mm_token_type_ids": kinds}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        return {**output, "videos": self._row_videos}

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._row_videos = inputs["videos"]
        loss: torch.Tensor = super()._compute_loss(model, inputs)
        return loss

    def _get_per_token_logps_and_entropies(self, model: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(self._row_videos) != len(input_ids):
            raise RuntimeError(
                f"{len(input_ids)} rows but {len(self._row_videos)} videos; TRL no longer passes rows as this class"
                " expects"
            )
        return super()._get_per_token_logps_and_entropies(self._with_videos(model), input_ids, *args, **kwargs)

    def _passed(self, batch: Mapping[str, Any], model: Any, *, entropy: bool = False) -> tuple[torch.Tensor, Any]:
        """Log-probabilities of the rows of a batch, and entropies if asked for, [rows, tokens]."""
        held, self._row_videos = self._row_videos, batch["videos"]
        try:
            logps, entropies, _ = self._get_per_token_logps_and_entropies(
                model,
                torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                batch["completion_ids"].shape[1],
                batch_size=self.args.per_device_train_batch_size,
                compute_entropy=entropy,
            )
        finally:
            self._row_videos = held
        return logps, entropies

    def _with_videos(self, model: Any) -> Callable[..., Any]:
        """Wrap the model in a function that is called on consecutive chunks of the rows and adds
        the videos of each."""
        videos, start = self._row_videos, 0

        def forward(*, input_ids: torch.Tensor, **inputs: Any) -> Any:
            nonlocal start
            rows, start = videos[start : start + len(input_ids)], start + len(input_ids)
            return model(
                input_ids=input_ids,
                mm_token_type_ids=modality_of(input_ids, self.processing_class),
                **join_videos(rows, input_ids.device),
                **inputs,
            )

        return forward
