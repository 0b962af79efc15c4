"""Rollouts of a training by an engine in a process of its own, on this machine or another.

Which engine draws is circumstance and comes from the environment
(:mod:`stages.lib.engine.connection`). It gets the weights of each generation through a folder, and
is asked by name for those that should draw, so that it never draws with others. It reads the tokens
that are trained on, or the training ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from transformers import ProcessorMixin

from stages.domain.core.frames import Frames
from stages.lib.engine.connection import Connection, DrawnFor, connected
from stages.lib.engine.policy import EnginePolicy
from stages.lib.engine.process import chosen_engine
from stages.lib.engine.questions import asked, asked_once
from stages.lib.engine.weights import Published, WeightsFolder
from stages.lib.engine.wire import Sampling
from stages.lib.inference.decode import Decoded, Limits
from stages.lib.models.load import dtype_of
from stages.lib.models.processor import EncodedPrompt
from stages.lib.training.lora import save_merged

Value = TypeVar("Value")
#: A prompt and its videos, by key.
Shown = Callable[[str], tuple[str, Sequence[Frames]]]


class EngineRollouts:
    """Rollouts drawn by an engine.

    Args:
        shown: prompts and videos, by key.
    """

    def __init__(self, drawn_for: DrawnFor, connection: Connection, processor: ProcessorMixin, shown: Shown) -> None:
        self._drawn_for, self._connection = drawn_for, connection
        self._processor, self._shown = processor, shown
        self._step = -1

    @property
    def decodes_when_lost(self) -> bool:
        """Whether the training processes decode once the engine is gone."""
        return self._connection.decodes_when_lost

    def policy(self, ends: Sequence[int]) -> EnginePolicy:
        """The policy whose weights draw now.

        Args:
            ends: tokens that end a reply.
        """
        return EnginePolicy(self._connection, self._processor, ends, self._drawn_for.max_tokens)

    def take_weights(self, trainer: Any) -> Callable[[], None]:
        """Publish the weights of a trainer; every process must call it. Return the work that makes
        the engine load them, to be done before it draws with them.

        Raises:
            WeightsError: they do not fit into their folder, or cannot be written.
        """
        step = int(trainer.state.global_step)
        if step == self._step:
            return lambda: None
        self._step = step
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        published: Published | None = None
        if self._connection.weights is not None:
            published = self._publish(self._connection.weights, trainer.accelerator, trainer.model, state, step)
        published = _of_first(published, trainer.accelerator.num_processes)
        assert published is not None, "the first process publishes"
        return lambda: self._connection.load(published)

    def draw(
        self,
        keys: Sequence[str],
        prompts: Sequence[EncodedPrompt],
        seeds: Sequence[str],
        limits: Limits,
        temperature: float,
    ) -> list[Decoded]:
        """Draw a reply to the prompt of each key, with the log-probabilities of its tokens.

        Raises:
            EngineLost: it is gone, and this is not waited for.
            EngineError: it does not draw; for one, it read other tokens than ``prompts`` have.
        """
        questions, draws = asked_once(
            keys, seeds, lambda row: asked(self._processor, *self._shown(keys[row]), prompts[row].ids)
        )
        sampling = Sampling(
            limits.max_new_tokens,
            limits.ends,
            temperature=temperature,
            min_tokens=limits.min_new_tokens,
            suppressed=limits.suppressed,
            logps=True,
        )
        assert limits.max_time_s is None, "an engine has no time limit of a reply"
        replies = self._connection.generate(questions, draws, sampling)
        return [Decoded(reply.ids, reply.logps) for reply in replies]

    def _publish(
        self, weights: WeightsFolder, accelerator: Any, model: Any, state: Mapping[str, torch.Tensor], step: int
    ) -> Published:
        unwrapped, dtype = accelerator.unwrap_model(model), dtype_of(self._drawn_for.precision)
        # What the engine computes in: larger weights would only be read and rounded.
        state = {name: weight.to(dtype) if weight.is_floating_point() else weight for name, weight in state.items()}
        size = sum(weight.nbytes for weight in state.values())

        def save(folder: Path) -> None:
            if isinstance(unwrapped, PeftModel):
                save_merged(unwrapped, state, folder)
            else:
                unwrapped.save_pretrained(folder, state_dict=state)

        return weights.publish(f"{self._drawn_for.stage.replace('@', '.')}-{step}", save, size)


@contextmanager
def rollouts_by_engine(
    drawn_for: DrawnFor, processor: ProcessorMixin, shown: Shown, *, first: bool, processes: int
) -> Iterator[EngineRollouts | None]:
    """Connect a training to the engine that the environment names, and start it if that is
    ``vllm``; None: the training processes decode. Every process must call it.

    Args:
        first: whether this is the first process, which starts the engine and writes its weights.

    Raises:
        InputError: a variable has an invalid value.
        EngineUnavailable: the engine cannot be started.
        EngineError: it does not answer as it should.
    """
    chosen = chosen_engine()
    if chosen == "hf":
        yield None
        return
    with connected(
        drawn_for, chosen, first=first, of_first=lambda address: _of_first(address, processes)
    ) as connection:
        yield EngineRollouts(drawn_for, connection, processor, shown)


def _of_first(value: Value, processes: int) -> Value:
    """The value of the first process; every process must call it."""
    told: list[Value] = [value]
    return (broadcast_object_list(told) if processes > 1 else told)[0]
