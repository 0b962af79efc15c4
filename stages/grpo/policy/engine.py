"""Rollouts of a training by an engine in a process of its own, on this machine or another.

Which engine draws is circumstance and comes from the environment:

- ``VIDBRIDGE_ROLLOUT_ENGINE`` (:func:`~stages.lib.engine.process.chosen_engine`): the training
  processes themselves, an engine that is started here, or the address of a running one;
- ``VIDBRIDGE_ROLLOUT_ENGINE_LOST`` (:func:`~stages.lib.engine.process.when_lost`): what to do when
  it is gone: ``wait`` (also when unset), ``hf`` (decode in the training processes from then on),
  ``fail``.

The engine gets the weights of each generation through a folder, and is asked by name for those that
should draw, so that it never draws with others. It reads the tokens that are trained on, or the
training ends.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from tqdm import tqdm
from transformers import ProcessorMixin

from stages.domain.core.frames import Frames
from stages.lib.engine.client import EngineClient
from stages.lib.engine.errors import EngineLost, StaleWeights
from stages.lib.engine.process import LOST_VARIABLE, EngineProcess, EngineSettings, Lost, chosen_engine, when_lost
from stages.lib.engine.questions import asked
from stages.lib.engine.weights import Published, WeightsFolder, weights_root
from stages.lib.engine.wire import Draw, Sampling
from stages.lib.inference.decode import Decoded, Limits
from stages.lib.models.processor import EncodedPrompt
from stages.lib.training.lora import save_merged
from stages.params import Precision

Result = TypeVar("Result")
#: A prompt and its videos, by key.
Shown = Callable[[str], tuple[str, Sequence[Frames]]]
#: Seconds between two attempts to find a lost engine, and between two lines about it.
_RETRY_S, _TELL_S = 2.0, 60.0
#: Weights in files, by the precision of the training.
_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Training:
    """What an engine must know of the training that it draws for.

    Attributes:
        stage: its name.
        model: folder of the model that it starts from.
        precision: of its computation.
        max_tokens: of the longest prompt and its reply.
        scratch: its folder.
        kept: number of weights that may wait to be loaded.
    """

    stage: str
    model: Path
    precision: Precision
    max_tokens: int
    scratch: Path
    kept: int


class EngineRollouts:
    """Rollouts drawn by an engine.

    Args:
        client: connection to it.
        weights: folder for the weights that it reads; None: another process writes them.
        restart: starts a new engine in place of one that ended; None: somebody else does.
        shown: prompts and videos, by key.
        lost: what to do when it is gone.
    """

    def __init__(
        self,
        training: Training,
        client: EngineClient,
        weights: WeightsFolder | None,
        restart: Callable[[], None] | None,
        processor: ProcessorMixin,
        shown: Shown,
        lost: Lost,
    ) -> None:
        self._training, self._client, self._weights, self._restart = training, client, weights, restart
        self._processor, self._shown, self._lost = processor, shown, lost
        #: Weights that draw; None: those that the engine started with. Set in the order of draws,
        #: so not those that were published last.
        self._drawing: Published | None = None
        self._step = -1

    @property
    def decodes_when_lost(self) -> bool:
        """Whether the training processes decode once the engine is gone."""
        return self._lost == "hf"

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
        told: list[Any] = [None]
        if self._weights is not None:
            told = [self._publish(self._weights, trainer.accelerator, trainer.model, state, step)]
        published: Published = _of_first(told, trainer.accelerator.num_processes)

        def load() -> None:
            self._drawing = published
            if self._weights is not None:
                self._patiently(lambda: self._client.load_weights(published.folder, published.name))

        return load

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
        first = {key: row for row, key in reversed([*enumerate(keys)])}
        number = {key: n for n, key in enumerate(dict.fromkeys(keys))}
        questions = [asked(self._processor, *self._shown(key), prompts[first[key]].ids) for key in number]
        draws = [Draw(number[key], seed) for key, seed in zip(keys, seeds, strict=True)]
        sampling = Sampling(
            limits.max_new_tokens,
            limits.ends,
            temperature=temperature,
            min_tokens=limits.min_new_tokens,
            suppressed=limits.suppressed,
            logps=True,
        )
        assert limits.max_time_s is None, "an engine has no time limit of a reply"
        weights = None if self._drawing is None else self._drawing.name
        replies = self._patiently(
            lambda: self._client.generate(questions, draws, sampling, weights=weights), reload=True
        )
        return [Decoded(reply.ids, reply.logps) for reply in replies]

    def _publish(
        self, weights: WeightsFolder, accelerator: Any, model: Any, state: Mapping[str, torch.Tensor], step: int
    ) -> Published:
        unwrapped, dtype = accelerator.unwrap_model(model), _DTYPES[self._training.precision]
        # What the engine computes in: larger weights would only be read and rounded.
        state = {name: weight.to(dtype) if weight.is_floating_point() else weight for name, weight in state.items()}
        size = sum(weight.nbytes for weight in state.values())

        def save(folder: Path) -> None:
            if isinstance(unwrapped, PeftModel):
                save_merged(unwrapped, state, folder)
            else:
                unwrapped.save_pretrained(folder, state_dict=state)

        return weights.publish(f"{self._training.stage.replace('@', '.')}-{step}", save, size)

    def _patiently(self, work: Callable[[], Result], *, reload: bool = False) -> Result:
        """Do the work, once more for each time that the engine was lost and came back."""
        while True:
            try:
                return work()
            except (EngineLost, StaleWeights) as error:
                # A new engine has the weights that it started with until somebody loads others.
                if self._lost != "wait" or (isinstance(error, StaleWeights) and not reload):
                    raise
                self._wait(error)

    def _wait(self, error: Exception) -> None:
        """Wait until the engine answers, with the weights that draw."""
        told = 0.0
        while True:
            if time.monotonic() - told > _TELL_S:
                told = time.monotonic()
                tqdm.write(
                    f"{self._training.stage}: waits for its rollout engine, as {LOST_VARIABLE} says: {error}",
                    file=sys.stderr,
                )
            try:
                if self._restart is not None:
                    self._restart()
                if self._weights is not None and self._drawing is not None:
                    self._client.load_weights(self._drawing.folder, self._drawing.name)
                held = self._client.health().weights
                if self._drawing is None or held == self._drawing.name:
                    return
            except EngineLost as gone:
                error = gone
            time.sleep(_RETRY_S)


@contextmanager
def rollouts_by_engine(
    training: Training, processor: ProcessorMixin, shown: Shown, *, first: bool, processes: int, parameters: int
) -> Iterator[EngineRollouts | None]:
    """Connect a training to the engine that the environment names, and start it if that is
    ``vllm``; None: the training processes decode. Every process must call it.

    Args:
        first: whether this is the first process, which starts the engine and writes its weights.
        parameters: number of the model's.

    Raises:
        InputError: a variable has an invalid value.
        EngineUnavailable: the engine cannot be started.
        EngineError: it does not answer as it should.
    """
    chosen, lost = chosen_engine(), when_lost()
    if chosen == "hf":
        yield None
        return
    with ExitStack() as stack:
        address, restart = [chosen], None
        if chosen == "vllm" and first:
            dtype: Literal["bfloat16", "float32"] = "bfloat16" if training.precision == "bf16" else "float32"
            own = _Own(training, EngineSettings.from_environment(dtype, training.max_tokens))
            stack.callback(own.close)
            address, restart = [own.address], own.restart
        client = stack.enter_context(EngineClient.from_environment(_of_first(address, processes)))
        weights = None
        if first:
            client.health()
            size_bytes = parameters * _DTYPES[training.precision].itemsize
            root = weights_root(training.scratch, size_bytes, training.kept)
            weights = stack.enter_context(WeightsFolder(root, training.model, kept=training.kept))
        yield EngineRollouts(training, client, weights, restart, processor, shown, lost)


def _of_first(value: list[Any], processes: int) -> Any:
    """The value of the first process; every process must call it."""
    return (broadcast_object_list(value) if processes > 1 else value)[0]


class _Own:
    """Engine that this process has started."""

    def __init__(self, training: Training, settings: EngineSettings) -> None:
        self._training, self._settings = training, settings
        self._process = self._start(None)

    @property
    def address(self) -> str:
        return self._process.client.address

    def restart(self) -> None:
        """Start it again at its address if it has ended."""
        if not self._process.running():
            folder = self._process.folder
            self._process.close()
            self._process = self._start(folder)

    def close(self) -> None:
        self._process.close()

    def _start(self, folder: Path | None) -> EngineProcess:
        self._training.scratch.mkdir(parents=True, exist_ok=True)
        return EngineProcess.start(
            self._training.model,
            self._settings,
            log_file=self._training.scratch / "engine.log",
            progress=lambda line: tqdm.write(f"{self._training.stage}: {line}", file=sys.stderr),
            folder=folder,
        )
