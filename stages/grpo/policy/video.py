"""Video in TRL's GRPO trainer, and a prompt once for its group.

TRL 1.16 has no video input here: given video prompts it generates correctly and then computes the
loss *without the video*, with no error. The processor's flat video fields are split into one record
per row when prompts are tokenised; the records travel as a list through TRL's buffered batch, which
splits lists along with the tensors; and the log-probability pass takes them from there.

That pass, which serves the loss, the old and the reference policy and the entropies, puts the rows
of a prompt into one packed row (:mod:`stages.lib.models.packing`): the prompt is computed once for
its replies, forward and backward. So TRL's shuffle of rows between generation and loss is left out,
which would spread the replies to a prompt over rounds of accumulation.
``VIDBRIDGE_SHARED_PREFIX=0`` computes one row a reply, as TRL does: the same numbers within
rounding. Tests compare both with a plain forward pass, and check that the stock trainer still fails
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from trl import GRPOConfig
from trl.trainer.utils import split_tensor_dict

from stages.grpo.policy.generation import DecodesRollouts
from stages.grpo.policy.shared_prompts import SharedPrompts
from stages.lib.inference.vision_cache import encode_equal_videos_once
from stages.lib.models.packing import packed_inputs, packs, take_packed_rows
from stages.lib.models.positions import place_text_behind_videos
from stages.lib.models.processor import EncodedPrompt, VideoFields, join_videos, modality_of, placeholder_ids
from stages.lib.models.settings import plain_model

#: Function that encodes prompts by their keys, in order.
Encode = Callable[[Sequence[str]], list[EncodedPrompt]]


class TakesVideos(DecodesRollouts):
    """`GRPOTrainer` whose dataset's `prompt` column holds keys; `encode` turns keys into token ids
    and video fields.

    The rollouts of a prompt share one encoding, so a video is decoded and processed once for all of
    them.

    Args:
        encode: encodes prompts by key.
    """

    def __init__(
        self,
        *,
        encode: Encode,
        args: GRPOConfig,
        processing_class: Any,
        **kwargs: Any,
    ) -> None:
        # TRL prevents sampling of the image token; a sampled video token would lack features just
        # the same.
        args.generation_kwargs = {
            **(args.generation_kwargs or {}),
            "suppress_tokens": placeholder_ids(processing_class),
        }
        self._encode = encode
        self._row_keys: list[str] = []
        #: Videos of the rows that the model processes now, while generating and in the loss.
        self._row_videos: list[VideoFields] = []
        #: In the pass of some rows: place, among all hidden states that the model returns, of the
        #: one that a token of a row's reply is predicted from; None for other rows.
        self._state_of: Callable[[int, int], int | None] = lambda _, __: None
        super().__init__(args=args, processing_class=processing_class, **kwargs)
        for model in (self.model, self.ref_model):
            if model is not None:
                # TRL loads a reference model itself, and under DeepSpeed wraps it in an engine
                # whose `config` is DeepSpeed's.
                plain = plain_model(self.accelerator.unwrap_model(model))
                encode_equal_videos_once(plain)
                take_packed_rows(plain)
                place_text_behind_videos(plain)

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        distinct = list(dict.fromkeys(prompts))
        encoded = dict(zip(distinct, self._encode(distinct), strict=True))
        rows = [encoded[prompt] for prompt in prompts]
        self._row_keys, self._row_videos = list(prompts), [row.videos for row in rows]
        # TRL would hand the videos of all rows, joined, to transformers' `generate`.
        return [list(row.ids) for row in rows], None, {}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        return {**output, "videos": self._row_videos}

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._row_videos = inputs["videos"]
        loss: torch.Tensor = super()._compute_loss(model, inputs)
        return loss

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """Prepare inputs as TRL does, but for its shuffle of the rows of a generation: they are
        those of one optimiser step, so their order changes nothing but which rows of a prompt are
        in a round of accumulation together."""
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        rounds, kept = self.args.steps_per_generation, self._buffered_inputs  # type: ignore[has-type]
        if kept is None or self._step % (rounds * self.num_iterations) == 0:
            kept = self._buffered_inputs = split_tensor_dict(
                self._generate_and_score_completions(generation_batch), rounds
            )
        return kept[self._step % rounds]

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **kwargs: Any,
    ) -> Any:
        if len(self._row_videos) != len(input_ids):
            raise RuntimeError(
                f"{len(input_ids)} rows but {len(self._row_videos)} videos; TRL no longer passes rows as this class"
                " expects"
            )
        if not packs():
            return super()._get_per_token_logps_and_entropies(
                self._with_videos(model, logits_to_keep),
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size=batch_size,
                compute_entropy=compute_entropy,
                **kwargs,
            )
        if kwargs.get("compute_aux_loss"):
            raise RuntimeError("a model with experts was given; packed rows have no load-balancing loss")
        logps: list[torch.Tensor] = []
        entropies: list[torch.Tensor] = []
        count = batch_size or len(input_ids)
        for first in range(0, len(input_ids), count):
            rows = slice(first, first + count)
            shared = SharedPrompts(input_ids[rows], attention_mask[rows], logits_to_keep, self._row_videos[rows])
            self._state_of = partial(_state_of_shared, shared, rows)
            inputs = packed_inputs(
                self._plain_model.base_model, self.processing_class, shared.continuations, input_ids.device
            )
            with self.accelerator.autocast():
                outputs = model(**inputs, fused_lm_head=True)
            logps.append(shared.by_row(outputs.log_probs))
            if compute_entropy:
                entropies.append(shared.by_row(outputs.entropy))
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None

    @property
    def _unwrapped(self) -> Any:
        """The model with its adapters, without the wrapper that would average gradients."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def _plain_model(self) -> Any:
        return plain_model(self._unwrapped)

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

    def _with_videos(self, model: Any, replies: int) -> Callable[..., Any]:
        """Wrap the model in a function that is called on consecutive chunks of the rows and adds
        the videos of each."""
        videos, start = self._row_videos, 0

        def forward(*, input_ids: torch.Tensor, **inputs: Any) -> Any:
            nonlocal start
            first, (count, columns) = start, input_ids.shape
            rows, start = videos[start : start + count], start + count
            # Rows end with their replies: `logits_to_keep` columns, behind those of the prompts.
            self._state_of = partial(_state_of_padded, slice(first, start), columns, replies)
            return model(
                input_ids=input_ids,
                mm_token_type_ids=modality_of(input_ids, self.processing_class),
                **join_videos(rows, input_ids.device),
                **inputs,
            )

        return forward


def _state_of_shared(shared: SharedPrompts, rows: slice, row: int, token: int) -> int | None:
    return shared.place(row - rows.start, token) if rows.start <= row < rows.stop else None


def _state_of_padded(rows: slice, columns: int, replies: int, row: int, token: int) -> int | None:
    place: int = (row - rows.start) * columns + columns - replies + token - 1
    return place if rows.start <= row < rows.stop else None
