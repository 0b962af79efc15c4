"""The policy of an engine: replies to prompts, as a model in this process would give them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from stages.lib.engine.connection import Connection, DrawnFor, connected
from stages.lib.engine.errors import EngineLost
from stages.lib.engine.process import chosen_engine
from stages.lib.engine.questions import asked, asked_once
from stages.lib.engine.wire import Sampling
from stages.lib.inference.policy import Draws, ModelPolicy, Policy, Query
from stages.lib.models.load import device, load_model, save_model
from stages.lib.models.processor import placeholder_ids
from stages.lib.models.settings import end_ids, longest
from stages.params import Precision
from stages.runtime import paths

#: A model and its processor, on the CPU.
Loaded = tuple[PreTrainedModel, ProcessorMixin]


class EnginePolicy:
    """An engine, with the weights that draw.

    Args:
        ends: tokens that end a reply.
        max_tokens: of the longest prompt and its reply.
        fallback: the same policy in this process, asked once the engine is gone if the environment
            says so; None: there is none.
    """

    def __init__(
        self,
        connection: Connection,
        processor: ProcessorMixin,
        ends: Sequence[int],
        max_tokens: int,
        fallback: Callable[[], Policy] | None = None,
    ) -> None:
        self._connection, self._processor, self._ends = connection, processor, tuple(ends)
        self._max_tokens, self._fallback = max_tokens, fallback
        self._instead: Policy | None = None

    @property
    def processor(self) -> ProcessorMixin:
        return self._processor

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    def decode(self, queries: Sequence[Query], max_new_tokens: int, draws: Draws | None) -> list[list[int]]:
        """See :meth:`stages.lib.inference.policy.Policy.decode`. A sampled reply is that of its
        seed under the engine's own generator.

        Raises:
            EngineLost: it is gone, and this is neither waited for nor made up for.
            EngineError: it does not draw; for one, it read other tokens than a model here would.
        """
        if self._instead is not None:
            return self._instead.decode(queries, max_new_tokens, draws)
        questions, wanted = asked_once(
            [id(query.encoded) for query in queries],
            [None] * len(queries) if draws is None else draws.seeds,
            lambda row: asked(self._processor, queries[row].prompt, (queries[row].frames,), queries[row].encoded.ids),
        )
        sampling = Sampling(
            max_new_tokens,
            self._ends,
            temperature=1.0 if draws is None else draws.temperature,
            suppressed=tuple(placeholder_ids(self._processor)),
        )
        try:
            return [reply.ids for reply in self._connection.generate(questions, wanted, sampling)]
        except EngineLost as error:
            if self._fallback is None or not self._connection.decodes_when_lost:
                raise
            tqdm.write(f"replies are decoded here from now on, as the engine is gone: {error}", file=sys.stderr)
            self._instead = self._fallback()
            return self._instead.decode(queries, max_new_tokens, draws)


@contextmanager
def opened_policy(
    folder: Path | None,
    precision: Precision,
    *,
    stage: str,
    load: Callable[[], Loaded] | None = None,
    scratch: Path | None = None,
    prepare: Callable[[PreTrainedModel], object] | None = None,
    chosen: str | None = None,
    one_kind: bool = False,
) -> Iterator[Policy]:
    """Open a model for questions: in this process, or in the engine that the environment names.

    Args:
        folder: of the model; None: it has none, and ``load`` makes it.
        stage: name of what asks, for messages.
        load: loads the model; None: it is loaded from its folder.
        scratch: folder for the engine's log and for what it needs meanwhile; None: that of the
            project for this stage.
        prepare: changes a model of this process for these questions.
        chosen: the engine (:func:`~stages.lib.engine.process.chosen_engine`); None: that of the
            environment.
        one_kind: never go on in this process when the engine is lost, whatever the environment
            says: no reply is then of another implementation than the first.

    Raises:
        InputError: a variable has an invalid value.
        EngineUnavailable: the engine cannot be started.
        EngineError: it does not answer as it should.
        WeightsError: it cannot be given the weights.
    """
    chosen = chosen_engine() if chosen is None else chosen
    if load is None:
        assert folder is not None, "there is something to load"
        load = partial(load_model, folder, precision)
    # For an engine, too: loading checks files and positions, and knows what ends a reply.
    model, processor = load()

    def here(model: PreTrainedModel) -> Policy:
        if prepare is not None:
            prepare(model)
        model.to(device())  # type: ignore[arg-type]
        return ModelPolicy(model, processor)

    if chosen == "hf":
        yield here(model)
        return
    scratch = scratch or paths.ENGINES / stage
    scratch.mkdir(parents=True, exist_ok=True)
    if folder is None:
        folder = scratch / "model"
        save_model(model, processor, folder)
    ends, max_tokens = end_ids(model, processor), longest(model)
    del model  # the engine has its own
    files = [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]
    drawn_for = DrawnFor(
        stage,
        folder,
        precision,
        max_tokens,
        scratch,
        size_bytes=sum(file.stat().st_size for file in files),
    )
    with connected(drawn_for, chosen) as connection:
        if chosen != "vllm":  # it has the weights of whoever asked before
            assert connection.weights is not None
            published = connection.weights.publish(
                "".join(letter if letter.isalnum() else "." for letter in stage),
                lambda target: [shutil.copyfile(file, target / file.name) for file in files],
                drawn_for.size_bytes,
            )
            connection.load(published)
        fallback = None if one_kind else lambda: here(load()[0])
        yield EnginePolicy(connection, processor, ends, max_tokens, fallback)
