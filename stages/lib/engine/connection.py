"""Connection of a stage to its engine: it starts one or finds it, gives it weights, and does what
the environment says when it is gone.

- ``VIDBRIDGE_ROLLOUT_ENGINE`` (:func:`~stages.lib.engine.process.chosen_engine`): an engine that is
  started here, or the address of a running one;
- ``VIDBRIDGE_ROLLOUT_ENGINE_LOST`` (:func:`~stages.lib.engine.process.when_lost`): what to do when
  it is gone: ``wait`` (also when unset), ``hf`` (decode in this process from then on), ``fail``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from tqdm import tqdm

from stages.lib.engine.client import Asked, EngineClient
from stages.lib.engine.errors import EngineLost, StaleWeights
from stages.lib.engine.process import LOST_VARIABLE, EngineProcess, EngineSettings, Lost, when_lost
from stages.lib.engine.weights import KEPT, Published, WeightsFolder, weights_root
from stages.lib.engine.wire import Draw, Reply, Sampling
from stages.params import Precision

Result = TypeVar("Result")
#: Seconds between two attempts to find a lost engine, and between two lines about it.
_RETRY_S, _TELL_S = 2.0, 60.0


@dataclass(frozen=True)
class DrawnFor:
    """What an engine must know of the stage that it draws for.

    Attributes:
        stage: its name.
        model: folder of the model that it starts from.
        precision: of weights and computation.
        max_tokens: of the longest prompt and its reply.
        scratch: its folder.
        size_bytes: of the weights that are published.
        kept: number of weights that may wait to be loaded.
    """

    stage: str
    model: Path
    precision: Precision
    max_tokens: int
    scratch: Path
    size_bytes: int
    kept: int = KEPT

    @property
    def dtype(self) -> Literal["float32", "bfloat16"]:
        """The precision, as the engine calls it."""
        return "bfloat16" if self.precision == "bf16" else "float32"


class Connection:
    """A stage's engine.

    Args:
        stage: name of the stage.
        client: connection to the engine.
        weights: folder for the weights that it reads; None: another process writes them.
        restart: starts a new engine in place of one that ended; None: somebody else does.
        lost: what to do when it is gone.
    """

    def __init__(
        self,
        stage: str,
        client: EngineClient,
        weights: WeightsFolder | None,
        restart: Callable[[], None] | None,
        lost: Lost,
    ) -> None:
        self._stage, self._client, self.weights, self._restart, self._lost = stage, client, weights, restart, lost
        #: Weights that draw; None: those that the engine started with. Set in the order of draws,
        #: so not those that were published last.
        self._drawing: Published | None = None

    @property
    def decodes_when_lost(self) -> bool:
        """Whether the stage decodes once the engine is gone."""
        return self._lost == "hf"

    def load(self, published: Published) -> None:
        """Have these weights draw from now on. The process that published them makes the engine
        load them.

        Raises:
            EngineLost: it is gone, and this is not waited for.
            EngineError: it does not load them.
        """
        self._drawing = published
        if self.weights is not None:
            self._patiently(lambda: self._client.load_weights(published.folder, published.name))

    def generate(self, questions: Sequence[Asked], draws: Sequence[Draw], sampling: Sampling) -> list[Reply]:
        """Replies by the weights that draw, in the order of ``draws``.

        Raises:
            EngineLost: it is gone, and this is not waited for.
            EngineError: it does not draw; for one, it read other tokens than it was asked to.
        """
        weights = None if self._drawing is None else self._drawing.name
        return self._patiently(lambda: self._client.generate(questions, draws, sampling, weights=weights), reload=True)

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
                    f"{self._stage}: waits for its rollout engine, as {LOST_VARIABLE} says: {error}", file=sys.stderr
                )
            try:
                if self._restart is not None:
                    self._restart()
                if self.weights is not None and self._drawing is not None:
                    self._client.load_weights(self._drawing.folder, self._drawing.name)
                held = self._client.health().weights
                if self._drawing is None or held == self._drawing.name:
                    return
            except EngineLost as gone:
                error = gone
            time.sleep(_RETRY_S)


@contextmanager
def connected(
    drawn_for: DrawnFor,
    chosen: str,
    *,
    first: bool = True,
    of_first: Callable[[str], str] = lambda address: address,
) -> Iterator[Connection]:
    """Connect a stage to its engine, and start it if ``chosen`` is ``vllm``. Every process of a
    stage must call it.

    Args:
        chosen: :func:`~stages.lib.engine.process.chosen_engine`, but not ``hf``.
        first: whether this is the first process, which starts the engine and writes its weights.
        of_first: gives every process the first one's address.

    Raises:
        InputError: a variable has an invalid value.
        EngineUnavailable: the engine cannot be started.
        EngineError: it does not answer as it should.
        WeightsError: the folder of its weights cannot be used.
    """
    lost = when_lost()
    with ExitStack() as stack:
        address, restart = chosen, None
        if chosen == "vllm" and first:
            own = _Own(drawn_for, EngineSettings.from_environment(drawn_for.dtype, drawn_for.max_tokens))
            stack.callback(own.close)
            address, restart = own.address, own.restart
        client = stack.enter_context(EngineClient.from_environment(of_first(address)))
        weights = None
        if first:
            client.health()
            root = weights_root(drawn_for.scratch, drawn_for.size_bytes, drawn_for.kept)
            weights = stack.enter_context(WeightsFolder(root, drawn_for.model, kept=drawn_for.kept))
        yield Connection(drawn_for.stage, client, weights, restart, lost)


class _Own:
    """Engine that this process has started."""

    def __init__(self, drawn_for: DrawnFor, settings: EngineSettings) -> None:
        self._drawn_for, self._settings = drawn_for, settings
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
        self._drawn_for.scratch.mkdir(parents=True, exist_ok=True)
        return EngineProcess.start(
            self._drawn_for.model,
            self._settings,
            log_file=self._drawn_for.scratch / "engine.log",
            progress=lambda line: tqdm.write(f"{self._drawn_for.stage}: {line}", file=sys.stderr),
            folder=folder,
        )
