"""Similarity of phrases for the T-score: by shared words, or by a sentence-transformers model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.domain.core.words import words
from stages.errors import EndpointError
from stages.lib.judging.weights import reason_of, source_of, where_to_look

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

#: Most vectors in memory; a policy may keep inventing new phrases.
_KEPT = 1 << 16
#: Phrases per forward pass of the model.
_BATCH = 64
#: The other phrases of a batch move a cosine by up to 3e-7 (measured); rounding makes scores
#: independent of the order of requests.
_DECIMALS = 4


class EmbedderError(EndpointError, RuntimeError):
    """The configured embedder cannot be used; the message names the setting and the remedy."""


class LexicalEmbedder:
    """Dice overlap of the two phrases' words."""

    def similarities(self, these: Sequence[str], those: Sequence[str]) -> NDArray[np.float64]:
        first, second = [set(words(phrase)) for phrase in these], [set(words(phrase)) for phrase in those]
        shares = [[2 * len(a & b) / (len(a) + len(b)) if a and b else 0.0 for b in second] for a in first]
        return _exact(np.array(shares, dtype=np.float64).reshape(len(these), len(those)), these, those)


class SentenceEmbedder:
    """Cosine of the two phrases' embeddings; negative values count as 0. Vectors are cached by
    phrase."""

    def __init__(self, model: SentenceTransformer) -> None:
        self._model = model
        self._vectors: dict[str, NDArray[np.float64]] = {}

    def similarities(self, these: Sequence[str], those: Sequence[str]) -> NDArray[np.float64]:
        if not these or not those:
            return np.zeros((len(these), len(those)))
        self._embed(dict.fromkeys((*these, *those)))
        first, second = (np.stack([self._vectors[phrase] for phrase in phrases]) for phrases in (these, those))
        cosines = np.clip(first @ second.T, 0.0, 1.0).round(_DECIMALS)
        self._forget()
        return _exact(cosines, these, those)

    def cosines(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Compute the cosine of each pair, at least 0."""
        self._embed(dict.fromkeys(text for pair in pairs for text in pair))
        found = [float(np.clip(self._vectors[one] @ self._vectors[other], 0.0, 1.0)) for one, other in pairs]
        self._forget()
        return [round(cosine, _DECIMALS) for cosine in found]

    def reads_whole(self, text: str) -> bool:
        """True if the model reads all of a text."""
        longest = self._model.max_seq_length
        return (
            longest is None or len(self._model.tokenizer(text, truncation=False, verbose=False)["input_ids"]) <= longest
        )

    def _embed(self, phrases: Iterable[str]) -> None:
        new = [phrase for phrase in phrases if phrase not in self._vectors]
        if not new:
            return
        # In double precision a dot product is symmetric far beyond the digits that remain after
        # rounding.
        vectors = np.asarray(self._model.encode(new, batch_size=_BATCH, show_progress_bar=False), dtype=np.float64)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        self._vectors |= dict(zip(new, vectors / np.where(lengths > 0, lengths, 1.0), strict=True))

    def _forget(self) -> None:
        for phrase in list(islice(self._vectors, max(0, len(self._vectors) - _KEPT))):
            del self._vectors[phrase]


def _exact(table: NDArray[np.float64], these: Sequence[str], those: Sequence[str]) -> NDArray[np.float64]:
    """Set ``table`` to exactly 1 for equal phrases, also for two that contain no word."""
    for i, this in enumerate(these):
        for j, that in enumerate(those):
            if this == that:
                table[i, j] = 1.0
    return table


def load_embedder(name: str, revision: str) -> SentenceEmbedder:
    """Load the embedder of the rewards. It runs on the CPU on every machine, so rewards are the
    same everywhere.

    Raises:
        EmbedderError: it is neither in the cache nor downloadable, or not a sentence-transformers
            model.
    """
    return load_sentences(name, revision, None, partial(_unavailable, name, revision))


def load_sentences(
    name: str, revision: str, device: torch.device | None, problem: Callable[[str], EndpointError]
) -> SentenceEmbedder:
    """Load the sentence-transformers model ``name`` from the hub at a pinned revision, from its
    cache, or from a folder: safetensors only, no code of its own, in float32.

    Call this before training is set up: an active ZeRO-3 configuration would partition these
    weights, too.

    Args:
        device: None: the CPU.
        problem: builds the error from the reason why it cannot be loaded.
    """
    # Imported here: they take seconds, which the lexical embedder should not pay.
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import is_sentence_transformer_model
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # a progress bar for a second of loading is noise in a stage's log
    source = source_of(name)
    try:
        # Without its list of modules the library would silently choose a pooling.
        if not is_sentence_transformer_model(source, revision=revision):
            raise problem("no modules.json was found")
        weights = {"dtype": torch.float32, "use_safetensors": True}
        model = SentenceTransformer(
            source, revision=revision, device=str(device or "cpu"), trust_remote_code=False, model_kwargs=weights
        )
        return SentenceEmbedder(model)
    except (OSError, ValueError) as error:
        raise problem(reason_of(error)) from error


def _unavailable(name: str, revision: str, reason: str) -> EmbedderError:
    return EmbedderError(
        "rewards.embedder.model",
        f"{name!r} at rewards.embedder.revision {revision!r} cannot be loaded as a sentence-transformers model"
        f" ({reason})",
        f"{where_to_look()}, or set `embedder: {{kind: lexical}}`",
    )
