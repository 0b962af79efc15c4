"""Decoding: replies to prompts about videos, each distinct prompt passed through the model once.

transformers' ``generate`` has one row a reply from the start, so a group of eight passes its prompt
eight times, and rows that have ended stay until the last one ends. Here the prompts are prefilled
once each, questions about one video even share what stands before the question (:mod:`stems
<stages.lib.inference.stems>`), all replies to a prompt read its keys and values where they are
(:mod:`prefix_attention <stages.lib.inference.prefix_attention>`), and rows leave when they end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache, PreTrainedModel, ProcessorMixin
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from stages.lib.inference.prefix_attention import Block, Prefixes, attending_to_prefixes, bias_of, cached_block
from stages.lib.inference.seeds import seed_number
from stages.lib.inference.stems import Stem, by_length, equal_prompts, stems_of
from stages.lib.inference.vision_cache import any_process
from stages.lib.models.processor import SECONDS, EncodedPrompt, padded_ids, prompt_batch
from stages.lib.models.settings import plain_model
from stages.lib.models.sharded import gathered

#: Draws the next token of each row, [rows], from logits in single precision, [rows, vocabulary];
#: the rows are numbers of replies.
Draw = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
#: Rows that have ended leave the batch when they are this fraction of it: each time, the keys and
#: values of the others are copied.
_LEAVING = 1 / 8


@dataclass(frozen=True)
class Limits:
    """Bounds of replies.

    Attributes:
        max_new_tokens: a reply is cut off after this many.
        ends: tokens that end a reply.
        suppressed: tokens that are never drawn.
        min_new_tokens: a reply does not end before this many.
        max_time_s: all replies are cut off after this time; None: never.
    """

    max_new_tokens: int
    ends: tuple[int, ...]
    suppressed: tuple[int, ...] = ()
    min_new_tokens: int = 0
    max_time_s: float | None = None


@dataclass
class Decoded:
    """Token ids of a reply, with the token that ended it, if any; ``logps``: the log-probability
    that each was drawn with, if asked for."""

    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)


def greedy(logits: torch.Tensor, _: Sequence[int]) -> torch.Tensor:
    """Draw the most probable tokens."""
    return logits.argmax(-1)


class SeededDraws:
    """Samples from the whole distribution at a temperature, with one random generator per reply.

    The arg max of logits / temperature + Gumbel noise is a draw from softmax(logits / temperature)
    (Gumbel, *Statistical Theory of Extreme Values*, 1954; Maddison, Tarlow and Minka, *A\\*
    Sampling*, 2014); -log of an exponential variate is Gumbel noise.
    """

    def __init__(self, seeds: Sequence[str], temperature: float, device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed_number(seed)) for seed in seeds]
        self._temperature = temperature

    def __call__(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        # In double precision, a variate of 0, whose logarithm is infinite, does not occur.
        noise = torch.empty_like(logits, dtype=torch.float64)
        for variates, row in zip(noise, rows, strict=True):
            variates.exponential_(generator=self._generators[row])
        return (logits / self._temperature - noise.log_()).argmax(-1)


def decode(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    prompts: Sequence[EncodedPrompt],
    draw: Draw,
    limits: Limits,
    *,
    logps_at: float | None = None,
) -> list[Decoded]:
    """Decode a reply to each prompt, in order. Equal prompts pass through the model once.

    Where processes share the weights every one must call this. Under ZeRO-3 all make as many passes
    through the model as the one with the longest reply; under FSDP2 each gathers all weights first,
    and they go their own ways.

    Args:
        model: with its adapters and whatever wraps its forward pass, such as autocast.
        logps_at: collect the log-probabilities of the drawn tokens at this temperature.
    """
    together, started = _processes_pass_together(), time.monotonic()
    plain = plain_model(model)
    with torch.no_grad(), _evaluating(model), gathered(model):
        alike = equal_prompts(prompts)
        stems = stems_of(processor, [prompts[first] for first, *_ in alike], shared=not together)
        read = _read(model, plain, processor, stems, together)
        # Rows stand in the order of their stems, so that those of a stem are neighbours.
        rows = _Rows(
            read.state.chosen([row for row, place in enumerate(read.places) for _ in alike[place]]),
            [number for place in read.places for number in alike[place]],
        )
        replies = [Decoded() for _ in prompts]
        with attending_to_prefixes(plain.base_model.language_model):
            for step in range(limits.max_new_tokens):
                logits = _allowed(rows.state.logits, limits, step)
                tokens = draw(logits, rows.numbers)
                logps = None if logps_at is None else _logps(logits, tokens, logps_at)
                rows.note(replies, tokens.tolist(), logps, limits.ends)
                late = limits.max_time_s is not None and time.monotonic() - started > limits.max_time_s
                over = late or all(rows.ended)
                if together:
                    over = not any_process(not over, model.device)
                if over or step == limits.max_new_tokens - 1:
                    break
                kept = rows.leave()
                rows.state = _next(model, rows.state, tokens if kept is None else tokens[kept])
    return replies


class _State(NamedTuple):
    """Rows of a batch.

    Attributes:
        logits: of each row's next token, in single precision, [rows, vocabulary].
        position_R: position of each row's next token.
        prefixes: of the rows.
        cache: keys and values of the tokens behind the prefixes.
    """

    logits: torch.Tensor
    position_R: torch.Tensor
    prefixes: Prefixes
    cache: DynamicCache

    def chosen(self, rows: Sequence[int]) -> _State:
        """These rows, in ascending order; a row may occur several times."""
        index = torch.tensor(rows, device=self.logits.device)
        self.cache.batch_select_indices(index)
        return _State(self.logits[index], self.position_R[index], self.prefixes.chosen(rows), self.cache)


class _Read(NamedTuple):
    """Prompts that the model has read, one row each; ``places``: which prompt each row is."""

    state: _State
    places: list[int]


@dataclass
class _Rows:
    """Replies that are being written: their state, their numbers, and whether they have ended."""

    state: _State
    numbers: list[int]
    ended: list[bool] = field(init=False)

    def __post_init__(self) -> None:
        self.ended = [False] * len(self.numbers)

    def note(
        self, replies: Sequence[Decoded], tokens: Sequence[int], logps: Sequence[float] | None, ends: tuple[int, ...]
    ) -> None:
        for row, (number, token) in enumerate(zip(self.numbers, tokens, strict=True)):
            if self.ended[row]:
                continue
            replies[number].ids.append(token)
            if logps is not None:
                replies[number].logps.append(logps[row])
            self.ended[row] = token in ends

    def leave(self) -> list[int] | None:
        """Drop ended rows if they are many; return the rows that are kept, or None for all."""
        kept = [row for row, ended in enumerate(self.ended) if not ended]
        # Under ZeRO-3 a process whose replies have all ended goes on with the others.
        kept = kept or [0]
        if len(self.ended) - len(kept) < max(1, _LEAVING * len(self.ended)):
            return None
        self.state = self.state.chosen(kept)
        self.numbers = [self.numbers[row] for row in kept]
        self.ended = [self.ended[row] for row in kept]
        return kept


def _read(model: Any, plain: Any, processor: Any, stems: Sequence[Stem], together: bool) -> _Read:
    """Pass each stem through the model once, and each prompt's rest."""
    lengths = [len(stem.prompt.ids) for stem in stems]
    # Processes that pass through the model together make as many passes.
    batches = [list(range(len(stems)))] if together else by_length(lengths)
    blocks: list[Block] = []
    logits: list[torch.Tensor] = []
    positions: list[torch.Tensor] = []
    for batch in batches:
        # Padding on the right is behind all that attends: no mask is needed.
        inputs = prompt_batch(processor, [stems[number].prompt for number in batch], model.device, side="right")
        mask = inputs.pop("attention_mask")
        seconds = {SECONDS: inputs[SECONDS]} if SECONDS in inputs else {}
        position, following = plain.base_model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            video_grid_thw=inputs["video_grid_thw"],
            attention_mask=mask,
            **seconds,
        )
        cache = DynamicCache(config=plain.config)
        with _last_logits_only(plain, mask):
            out = model(**inputs, position_ids=position, past_key_values=cache, use_cache=True)
        blocks.append(cached_block(cache, mask))
        logits.append(out.logits[:, 0].float())
        positions.append(mask.sum(-1) + following[:, 0])
    prompt_of = [(block, prompt) for block, batch in enumerate(batches) for prompt in range(len(batch))]
    ordered = [stems[number] for batch in batches for number in batch]
    places = [place for stem in ordered for place in stem.places]
    state = _State(
        torch.cat(logits), torch.cat(positions), Prefixes(blocks, prompt_of), DynamicCache(config=plain.config)
    )
    rests = [rest for stem in ordered for rest in stem.rests]
    if not any(rests):
        return _Read(state, places)
    state = state.chosen([row for row, stem in enumerate(ordered) for _ in stem.rests])
    return _Read(_with_rests(model, plain, processor, state, rests), places)


def _with_rests(model: Any, plain: Any, processor: Any, state: _State, rests: Sequence[tuple[int, ...]]) -> _State:
    """Pass the rest of each row's prompt through the model."""
    ids, mask = (each.to(model.device) for each in padded_ids(processor, rests, "right"))
    position_RT = state.position_R[:, None] + (mask.cumsum(-1) - 1)
    # The padding is between what the model reads here and what it writes.
    state = state._replace(prefixes=replace(state.prefixes, own_bias_RK=bias_of(mask)))
    with attending_to_prefixes(plain.base_model.language_model), _last_logits_only(plain, mask):
        logits = _passed(model, state, ids, position_RT)
    return state._replace(logits=logits, position_R=state.position_R + mask.sum(-1))


def _next(model: Any, state: _State, tokens_R: torch.Tensor) -> _State:
    """Pass one more token of each row through the model."""
    logits = _passed(model, state, tokens_R[:, None], state.position_R[:, None])
    return state._replace(logits=logits, position_R=state.position_R + 1)


def _passed(model: Any, state: _State, ids_RT: torch.Tensor, position_RT: torch.Tensor) -> torch.Tensor:
    """Logits behind the last of these tokens, in single precision, [rows, vocabulary]."""
    out = model(
        input_ids=ids_RT,
        position_ids=position_RT.expand(3, -1, -1),
        past_key_values=state.cache,
        use_cache=True,
        prefixes=state.prefixes,
    )
    logits: torch.Tensor = out.logits[:, -1].float()
    return logits


def _allowed(logits: torch.Tensor, limits: Limits, step: int) -> torch.Tensor:
    """Logits with those of tokens that must not be drawn at -inf."""
    never = [*limits.suppressed, *(limits.ends if step < limits.min_new_tokens else ())]
    return logits.index_fill(1, torch.tensor(never, dtype=torch.long, device=logits.device), -torch.inf)


def _logps(logits: torch.Tensor, tokens_R: torch.Tensor, temperature: float) -> list[float]:
    logps = torch.log_softmax(logits / temperature, dim=-1).gather(1, tokens_R[:, None])[:, 0]
    values: list[float] = logps.tolist()
    return values


@contextmanager
def _last_logits_only(plain: Any, mask_RT: torch.Tensor) -> Iterator[None]:
    """Within this context, logits are computed of each row's last token only, [rows, 1,
    vocabulary]; a row's tokens are where the mask is 1, the padding behind them."""
    last_R = mask_RT.sum(-1) - 1

    def chosen(_: Any, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return inputs[0][torch.arange(len(last_R), device=last_R.device), last_R][:, None]

    hook = plain.get_output_embeddings().register_forward_pre_hook(chosen)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode: no dropout, no gradient checkpointing."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _processes_pass_together() -> bool:
    """True if a pass through the model needs all processes, as each holds a part of the weights:
    transformers' condition for its ``synced_gpus``."""
    distributed = torch.distributed
    return (
        is_deepspeed_zero3_enabled()
        and distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )
