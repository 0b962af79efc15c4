"""Byte-level BPE tokenizer trained on the corpus's own text, with Qwen's special tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from stages.lib.models.chat import (
    END_OF_TEXT,
    IMAGE,
    REPLY_TAGS,
    SPECIAL,
    SYSTEM,
    TURN_END,
    VIDEO,
    VISION_END,
    VISION_START,
)


def train_tokenizer(texts: Iterable[str], scaffolding: Sequence[str], vocabulary: int) -> Qwen2Tokenizer:
    """Train on `texts`; at most `vocabulary` tokens in all, fewer where the text has no more pairs
    worth merging.

    `scaffolding`: pieces of fixed syntax that become one token each (not special). The pieces are
    cut out of the text before merges are learned, as they are when text is tokenised.

    Raises:
        ValueError: the vocabulary cannot hold the bytes and the added tokens.
    """
    plain = [*REPLY_TAGS, *dict.fromkeys(scaffolding)]
    trainable = vocabulary - len(SPECIAL) - len(plain)
    if trainable < 256:
        raise ValueError(
            f"model.vocabulary: {vocabulary} is too small; 256 bytes and {len(SPECIAL) + len(plain)} added tokens need"
            f" at least {vocabulary - trainable + 256}"
        )

    template = Qwen2Tokenizer()
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.NFC()
    learner.pre_tokenizer = template.backend_tokenizer.pre_tokenizer
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=trainable, min_frequency=2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    # Every prompt contains the words of the chat format; two occurrences are enough to make each of
    # them mergeable.
    chat = [f"system\n{SYSTEM}", "user\n", "assistant\n"] * 2
    learner.train_from_iterator(_without(plain, [*texts, *chat]), trainer)

    learned = json.loads(learner.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],  # type: ignore[misc]  # the stub knows lines of a file only
        unk_token=None,  # type: ignore[arg-type]  # every byte is a token: nothing is unknown
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        padding_side="left",
        extra_special_tokens={
            "image_token": IMAGE,
            "video_token": VIDEO,
            "vision_start_token": VISION_START,
            "vision_end_token": VISION_END,
        },
    )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL], special_tokens=True)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    return tokenizer


def _without(tokens: Sequence[str], texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        pieces = [text]
        for token in sorted(tokens, key=len, reverse=True):
            pieces = [part for piece in pieces for part in piece.split(token)]
        yield from (piece for piece in pieces if piece)
