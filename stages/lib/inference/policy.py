"""What replies to prompts about videos: a model in this process, or an engine in another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from transformers import PreTrainedModel, ProcessorMixin

from stages.domain.core.frames import Frames
from stages.lib.inference.decode import Limits, SeededDraws, decode, greedy
from stages.lib.models.processor import EncodedPrompt, placeholder_ids
from stages.lib.models.settings import end_ids, longest, plain_model


class Query(NamedTuple):
    """A prompt about a video, and the same as a model reads it."""

    prompt: str
    frames: Frames
    encoded: EncodedPrompt


class Draws(NamedTuple):
    """How replies are sampled: from the policy's whole distribution at ``temperature``, each with
    its seed."""

    seeds: Sequence[str]
    temperature: float


class Policy(Protocol):
    """What replies to prompts.

    Attributes:
        processor: of its model.
        max_tokens: of the longest prompt and its reply.
    """

    @property
    def processor(self) -> ProcessorMixin: ...

    @property
    def max_tokens(self) -> int: ...

    def decode(self, queries: Sequence[Query], max_new_tokens: int, draws: Draws | None) -> list[list[int]]:
        """Token ids of a reply to each query, as one batch; greedy without ``draws``. A query that
        occurs several times is read once."""
        ...


class ModelPolicy:
    """A model in this process.

    Args:
        max_time_s: the replies of a batch are cut off after this time; None: never.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, *, max_time_s: float | None = None) -> None:
        self._model, self._processor, self._max_time_s = model, processor, max_time_s

    @property
    def processor(self) -> ProcessorMixin:
        return self._processor

    @property
    def max_tokens(self) -> int:
        return longest(plain_model(self._model))

    def decode(self, queries: Sequence[Query], max_new_tokens: int, draws: Draws | None) -> list[list[int]]:
        draw = greedy if draws is None else SeededDraws(draws.seeds, draws.temperature, self._model.device)
        limits = Limits(
            max_new_tokens,
            tuple(end_ids(plain_model(self._model), self._processor)),
            tuple(placeholder_ids(self._processor)),
            max_time_s=self._max_time_s,
        )
        replies = decode(self._model, self._processor, [query.encoded for query in queries], draw, limits)
        return [reply.ids for reply in replies]
