"""Log-probabilities of replies: the prompt once for its group, one row a reply, and as decoding
draws them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.gpu.subject import Subject
from stages.lib.inference.decode import Decoded, Draw, Limits, decode
from stages.lib.inference.vision_cache import encode_equal_videos_once
from stages.lib.models.packing import Continuation, packed_inputs
from stages.lib.models.processor import EncodedPrompt, join_videos, modality_of, placeholder_ids
from stages.lib.models.settings import plain_model

LORA_RANK = 16
_LORA = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"


class Policy:
    """A model that is trained, and its prompts.

    Args:
        prompts: number of prompts.

    Attributes:
        model: with its adapters, if it has any.
        head: how log-probabilities are computed from the last hidden states.
    """

    def __init__(self, subject: Subject, prompts: int) -> None:
        self.subject = subject
        model, self.processor = subject.build()
        self.fused = _fuse_head(model)
        encode_equal_videos_once(model)
        self.model: Any = _trainable(model, subject)
        self.prompts = subject.prompts(self.processor, prompts)

    @property
    def head(self) -> str:
        return "TRL's fused head" if self.fused else "logits of the scored tokens (no TRL)"

    @property
    def device(self) -> torch.device:
        return torch.device(plain_model(self.model).device)

    def autocast(self) -> torch.autocast:
        """Products in bf16, as a trainer with `bf16` computes them."""
        return torch.autocast(self.device.type, torch.bfloat16)

    def replies(self, prompts: int, tokens: int) -> list[Continuation]:
        """Groups of replies of tokens that no tokenizer writes, the same every time."""
        rollouts, text = self.subject.sizes.rollouts, self.model.config.get_text_config()
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(
            len(self.processor.tokenizer), text.vocab_size, (prompts, rollouts, tokens), generator=generator
        )
        return [Continuation(prompt, rows.tolist()) for prompt, rows in zip(self.prompts[:prompts], ids, strict=True)]

    def packed(self, group: Continuation) -> torch.Tensor:
        """Log-probabilities of a group's replies in one row, [replies, tokens]."""
        inputs = packed_inputs(plain_model(self.model).base_model, self.processor, [group], self.device)
        labels = inputs["shift_labels"]
        if self.fused:
            logps: torch.Tensor = self.model(**inputs, fused_lm_head=True).log_probs
            return logps.view(len(group.replies), -1)
        del inputs["shift_labels"]
        return _chosen(self.model(**inputs, use_cache=False).logits, labels).view(len(group.replies), -1)

    def padded(self, group: Continuation) -> torch.Tensor:
        """Log-probabilities of a group's replies, a row each, [replies, tokens]. All rows have one
        length here, so that none is padded."""
        ids = torch.tensor([[*group.prompt.ids, *reply] for reply in group.replies], device=self.device)
        tokens = len(group.replies[0])
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": modality_of(ids, self.processor),
            **join_videos([group.prompt.videos] * len(ids), self.device),
        }
        if self.fused:
            labels = ids.clone()
            labels[:, :-tokens] = -100
            logps: torch.Tensor = self.model(**inputs, labels=labels, fused_lm_head=True).log_probs
            return logps[:, -tokens:]
        logits = self.model(**inputs, use_cache=False, logits_to_keep=tokens + 1).logits[:, :-1]
        return _chosen(logits, ids[:, -tokens:])

    def rollouts(
        self, prompts: Sequence[EncodedPrompt], draw: Draw, tokens: int, *, logps: bool = False
    ) -> list[Decoded]:
        """Replies of exactly so many tokens to each prompt, neighbours in their order."""
        rows = [prompt for prompt in prompts for _ in range(self.subject.sizes.rollouts)]
        limits = Limits(tokens, ends=(), suppressed=tuple(placeholder_ids(self.processor)))
        with self.autocast():
            return decode(self.model, self.processor, rows, draw, limits, logps_at=1.0 if logps else None)


class Forced:
    """Draws given tokens, [rows, tokens], whatever the logits."""

    def __init__(self, groups: Sequence[Continuation], device: torch.device) -> None:
        self._ids = torch.tensor([reply for group in groups for reply in group.replies], device=device)
        self._step = 0

    def __call__(self, _: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        tokens = self._ids[list(rows), self._step]
        self._step += 1
        return tokens


def _chosen(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits.float().log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def _fuse_head(model: PreTrainedModel) -> bool:
    """Give a model TRL's head that makes no logits; False if no TRL with one is here."""
    try:
        from trl.trainer.utils import add_fused_lm_head
    except ImportError:  # also of a TRL older than the head
        return False
    add_fused_lm_head(model)
    return True


def _trainable(model: PreTrainedModel, subject: Subject) -> Any:
    if subject.trained is None:
        return model.eval()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if subject.trained == "full":
        return model.train()
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=_LORA)).train()
