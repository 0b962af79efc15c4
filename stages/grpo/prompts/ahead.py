"""Rollouts ahead of the steps that train on them.

With a staleness of *s*, the rollouts of a generation are drawn by the policy that was in force *s*
generations earlier, so that drawing and judging them need not wait for the steps between. The
first generations have no earlier policy: theirs is the one that training starts from.

An engine draws while this process trains. Without one this process draws, before it trains, by the
same policy; judging goes on beside training either way. Prompts are taken in the order of
generations, seeds belong to the generation that trains, and each checkpoint has the rollouts that
wait: training that is resumed trains on the same ones.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate.utils import gather_object
from pydantic import TypeAdapter
from tqdm import tqdm

from stages.grpo.policy.engine import EngineRollouts
from stages.grpo.prompts.rounds import DrawsPrompts
from stages.grpo.step import StepScores
from stages.lib.engine.errors import EngineLost
from stages.lib.engine.policy import EnginePolicy
from stages.lib.inference.decode import Decoded
from stages.lib.models.processor import EncodedPrompt
from stages.lib.training.checkpoints import CLOCK

#: Beside the weights in a checkpoint: the rollouts that no step has trained on.
AHEAD_FILE = "ahead.json"
#: Share of a generation's time that was spent waiting for its rollouts.
IDLE_SHARE = f"{CLOCK}idle_share"
#: Mean difference of log-probabilities, in nats, above which an engine does not compute what is
#: trained: bf16 gives 0.02 to 0.03 at 3B and 7B.
APART = 0.1
Result = TypeVar("Result")


@dataclass(frozen=True)
class Drawn:
    """Rollouts of one process for a generation.

    Attributes:
        generation: that trains on them, from 0.
        sampled_at: optimiser steps that had been made when they were sampled.
        keys: prompt of each.
        ids: token ids of each.
        logps: log-probabilities of the tokens of each.
        scores: verdicts on them; None: they are judged again.
    """

    generation: int
    sampled_at: int
    keys: list[str]
    ids: list[list[int]]
    logps: list[list[float]]
    scores: StepScores | None

    @property
    def replies(self) -> list[Decoded]:
        return [Decoded(list(ids), list(logps)) for ids, logps in zip(self.ids, self.logps, strict=True)]


_SAVED = TypeAdapter(list[list[Drawn]])


class Waiting(NamedTuple):
    """Rollouts of a generation that wait for their turn, or are being drawn."""

    generation: int
    keys: list[str]
    drawn: Future[Drawn]

    @classmethod
    def of(cls, drawn: Drawn) -> Waiting:
        done: Future[Drawn] = Future()
        done.set_result(drawn)
        return cls(drawn.generation, drawn.keys, done)


@dataclass
class Ahead:
    """Generations of one process that wait for their turn.

    Attributes:
        staleness: number of generations that rollouts are drawn ahead.
        generations: number of generations of the training.
        prompts_of: keys of the prompts of a generation, over all processes.
        engine: draws the rollouts; None: the training processes do.
        waiting: the next generations, in order.
    """

    staleness: int
    generations: int
    prompts_of: Callable[[int], Sequence[str]]
    engine: EngineRollouts | None = None
    waiting: deque[Waiting] = field(default_factory=deque)


def save(file: Path, gathered: Sequence[Sequence[Drawn]]) -> None:
    """Write the waiting rollouts of all processes, in order of processes."""
    file.write_bytes(_SAVED.dump_json([list(drawn) for drawn in gathered]))


def load(file: Path, process: int, processes: int) -> list[Drawn]:
    """Read the rollouts that :func:`save` wrote, of one process; with another number of processes
    they are dealt anew, in order, and have no verdicts.

    Raises:
        FileNotFoundError: the checkpoint was saved by a training without staleness.
    """
    saved = _SAVED.validate_json(file.read_bytes())
    if len(saved) == processes:
        return saved[process]
    return [_part(together, process, processes) for together in zip(*saved, strict=True)]


def _part(together: Sequence[Drawn], process: int, processes: int) -> Drawn:
    """Part of one process in a generation."""
    rows = [row for drawn in together for row in zip(drawn.keys, drawn.ids, drawn.logps, strict=True)]
    count = len(rows) // processes
    keys, ids, logps = zip(*rows[process * count : (process + 1) * count], strict=True)
    return Drawn(together[0].generation, together[0].sampled_at, list(keys), list(ids), list(logps), None)


class _Beside:
    """Work beside the main thread, one piece after the other. It does not keep the process alive:
    after an error nobody waits for rollouts."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="rollouts", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        future: Future[Result] = Future()
        self._queue.put((future, work))
        return future

    def end(self) -> None:
        """Do no more; wait a moment for what is being done, since processes that end beside a
        thread may be ended by an error of torch's."""
        self._queue.put(None)
        self._thread.join(1.0)

    def _work(self) -> None:
        while (piece := self._queue.get()) is not None:
            future, work = piece
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)


class DrawsAhead(DrawsPrompts):
    """Trainer whose rollouts may be drawn ahead, and by an engine.

    Args (beside those of :class:`~stages.grpo.prompts.rounds.DrawsPrompts`):
        ahead: draws and judges the rollouts of later generations, and of the present one; None:
            each generation draws its own.
    """

    def __init__(self, *, ahead: Ahead | None = None, **kwargs: Any) -> None:
        self._ahead = ahead
        #: Rollouts of the present generation's first round, until they have their verdicts.
        self._early: Drawn | None = None
        #: Draws by the engine, its weights, and judging, in the order in which they are asked for.
        self._beside: _Beside | None = None
        #: Whether the engine has the latest weights.
        self._loaded: Future[None] | None = None
        self._turn_began = time.monotonic()
        self._lag = 0.0  # of the present generation
        self._told_apart = False
        super().__init__(**kwargs)

    @property
    def _corrects_sampling(self) -> bool:
        return self._ahead is not None

    @property
    def _engine(self) -> EngineRollouts | None:
        return None if self._ahead is None else self._ahead.engine

    def _judged(self, keys: Sequence[str], ids: Sequence[Sequence[int]]) -> StepScores:
        """Judge rollouts of training that are not the present ones."""
        raise NotImplementedError

    def _chosen(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if self._ahead is None:
            return super()._chosen(inputs)
        present, waiting = self.state.global_step // self.num_iterations, self._ahead.waiting
        # First: weights are published while the engine has no use for the earlier ones.
        early = self._finished(waiting.popleft()) if waiting else None
        self._send_weights()
        following = present + len(waiting) + (early is not None)
        for generation in range(following, min(present + self._ahead.staleness + 1, self._ahead.generations)):
            keys = self._keys_of(self._ahead, generation, len(inputs))
            waiting.append(Waiting(generation, keys, self._start(generation, keys)))
        self._early = early = early or self._finished(waiting.popleft())
        if early.generation != present:
            raise RuntimeError(f"generation {present} got the rollouts of {early.generation}")
        self._lag = (self.state.global_step - early.sampled_at) / self.num_iterations
        self._metrics["train"]["staleness"].append(self._lag)
        return [{"prompt": key} for key in early.keys]

    def _keys_of(self, ahead: Ahead, generation: int, rows: int) -> list[str]:
        """Prompts of this process's rows of a generation."""
        keys = [key for key in ahead.prompts_of(generation) for _ in range(self.num_generations)]
        return [row["prompt"] for row in super()._chosen([{"prompt": key} for key in keys[self._own_rows(rows)]])]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        if self._ahead is None:
            return super().train(*args, **kwargs)
        self._beside = _Beside()
        try:
            return super().train(*args, **kwargs)
        finally:
            self._beside.end()

    def _submit(self, work: Callable[[], Result]) -> Future[Result]:
        assert self._beside is not None, "without `ahead` nothing is drawn beside training"
        return self._beside.submit(work)

    def _send_weights(self) -> None:
        if self._engine is not None:
            self._loaded = self._submit(self._engine.take_weights(self))

    def _start(self, generation: int, keys: list[str]) -> Future[Drawn]:
        """Start drawing and judging the rollouts of a generation; without an engine they are drawn
        when this returns."""
        step = self.state.global_step
        replies = self._drawn(keys, self._encode(keys), self._seeds(len(keys), generation * self.num_iterations))

        def finish() -> Drawn:
            found = replies()
            ids, logps = [reply.ids for reply in found], [reply.logps for reply in found]
            return Drawn(generation, step, keys, ids, logps, self._judged(keys, ids))

        return self._submit(finish)

    def _drawn(
        self, keys: Sequence[str], rows: Sequence[EncodedPrompt], seeds: Sequence[str]
    ) -> Callable[[], list[Decoded]]:
        """Return what draws rollouts beside the main thread; without an engine they are drawn
        now."""
        engine, loaded = self._engine, self._loaded
        if engine is None:
            found = self._decode(rows, seeds)
            return lambda: found
        limits, temperature = self._limits(), float(self.generation_config.temperature)

        def draw() -> list[Decoded]:
            assert loaded is not None
            loaded.result()  # done, as work is done in order; it may have failed
            return engine.draw(keys, rows, seeds, limits, temperature)

        return draw

    def _finished(self, waiting: Waiting) -> Drawn:
        """Wait for rollouts. If their engine is gone and these processes are to decode then, they
        draw them, and all that wait."""
        lost: EngineLost | None = None
        try:
            drawn = self._waited_for(waiting.drawn)
        except EngineLost as error:
            lost = error
        engine = self._engine
        if lost is not None and (engine is None or not engine.decodes_when_lost):
            raise lost
        # One process may have lost it and another not.
        if engine is None or not engine.decodes_when_lost or not self._most_of_any_process(int(lost is not None)):
            return drawn
        assert self._ahead is not None
        tqdm.write(f"rollouts are decoded here from now on, as the engine is gone: {lost}", file=sys.stderr)
        self._ahead.engine = None
        again = [one._replace(drawn=self._start(one.generation, one.keys)) for one in (waiting, *self._ahead.waiting)]
        self._ahead.waiting = deque(again[1:])
        return again[0].drawn.result()

    def _waited_for(self, drawn: Future[Drawn]) -> Drawn:
        """Wait for rollouts; log the share of the time since the last ones that went by waiting."""
        began = time.monotonic()
        found = drawn.result()
        now = time.monotonic()
        self._metrics["train"][IDLE_SHARE].append((now - began) / max(now - self._turn_began, 1e-9))
        self._turn_began = now
        return found

    def _rollouts(self, rows: Sequence[EncodedPrompt]) -> list[Decoded]:
        if self._early is not None:
            return self._early.replies
        engine = self._engine
        if engine is None or not self.model.training:
            return super()._rollouts(rows)
        # A further round of a generation, by the present weights.
        draw = self._drawn(self._row_keys, rows, self._seeds(len(rows), self.state.global_step))
        found = self._unless_lost(engine, draw)
        return super()._rollouts(rows) if found is None else found

    def _by_engine(self, draw: Callable[[EnginePolicy], Result]) -> Result | None:
        """Replies that the engine draws with the present weights; every process must call it. None:
        these processes are to draw them, since there is no engine, or its next generation, which it
        is drawing, would have to end first."""
        engine = self._engine
        if engine is None or self._ahead is None or self._ahead.staleness:
            return None
        policy = engine.policy(self.eos_token_ids)
        return self._unless_lost(engine, lambda: draw(policy))

    def _unless_lost(self, engine: EngineRollouts, draw: Callable[[], Result]) -> Result | None:
        """What the engine draws; None, on every process, if one of them has lost it, and these
        processes are to draw then. Every process must call it."""
        lost = False
        found: Result | None = None
        try:
            found = self._submit(draw).result()
        except EngineLost:
            if not engine.decodes_when_lost:
                raise
            lost = True  # the next generation gives the engine up
        if engine.decodes_when_lost and self._most_of_any_process(int(lost)):
            return None
        return found

    def _early_scores(self, replies: Sequence[str]) -> StepScores | None:
        """Verdicts on the rollouts of this round, if they were judged ahead."""
        early, self._early = self._early, None
        if early is None or early.scores is None:
            return None
        if [score.reply for score in early.scores.scores] != list(replies):
            raise RuntimeError("other replies were judged than are trained on; TRL decodes them in another way")
        return early.scores

    def _log_sampling(self, gap_BT: torch.Tensor, ratio_BT: torch.Tensor, known_BT: torch.Tensor) -> None:
        super()._log_sampling(gap_BT, ratio_BT, known_BT)
        apart = self._metrics["train"]["sampling/logp_difference/mean"][-1]
        if self._engine is not None and not self._lag and apart > APART and not self._told_apart:
            self._told_apart = True
            self._told_apart = True
            tqdm.write(
                f"step {self.state.global_step + 1}: the engine's log-probabilities are {apart:.3f} from those that are"
                f" trained on, in the mean (alarm at {APART:g}); compare its precision and model with the training's",
                file=sys.stderr,
            )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self._ahead is not None:
            waiting: list[Drawn] = []
            while self._ahead.waiting:
                waiting.append(self._finished(self._ahead.waiting.popleft()))
            self._ahead.waiting.extend(map(Waiting.of, waiting))
            gathered = gather_object([waiting])
            if self.accelerator.is_main_process:
                folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
                save(folder / AHEAD_FILE, gathered)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self._ahead is None:
            return
        for drawn in load(
            Path(checkpoint) / AHEAD_FILE, self.accelerator.process_index, self.accelerator.num_processes
        ):
            self._ahead.waiting.append(Waiting.of(drawn))
