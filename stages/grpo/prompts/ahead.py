"""Rollouts ahead of the steps that train on them.

With a staleness of *s*, the rollouts of a generation are drawn by the policy that was in force *s*
generations earlier, so that drawing and judging them need not wait for the steps between. The
first generations have no earlier policy: theirs is the one that training starts from.

An engine draws while this process trains. Without one this process draws, before it trains, with
the same result for a given staleness; judging goes on beside training either way. Prompts are
taken in the order of generations, seeds belong to the generation that trains, and each checkpoint
has the rollouts that wait: training that is resumed trains on the same ones.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from accelerate.utils import gather_object
from pydantic import TypeAdapter

from stages.grpo.prompts.rounds import DrawsPrompts
from stages.grpo.step import StepScores
from stages.lib.inference.decode import Decoded
from stages.lib.models.processor import EncodedPrompt
from stages.lib.training.checkpoints import CLOCK

#: Beside the weights in a checkpoint: the rollouts that no step has trained on.
AHEAD_FILE = "ahead.json"
#: Share of a generation's time that was spent waiting for its rollouts.
IDLE_SHARE = f"{CLOCK}idle_share"


@dataclass(frozen=True)
class Drawn:
    """Rollouts of one process for a generation.

    Attributes:
        generation: that trains on them, from 0.
        sampled_at: optimiser steps behind the policy that sampled them.
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


@dataclass
class Ahead:
    """Generations of one process that wait for their turn.

    Attributes:
        staleness: number of generations that rollouts are drawn ahead.
        generations: number of generations of the training.
        prompts_of: keys of the prompts of a generation, over all processes.
        waiting: of the next generations, in order.
    """

    staleness: int
    generations: int
    prompts_of: Callable[[int], Sequence[str]]
    waiting: deque[Future[Drawn]] = field(default_factory=deque)

    def save(self, file: Path, gathered: Sequence[Sequence[Drawn]]) -> None:
        """Write the waiting rollouts of all processes, in order of processes."""
        file.write_bytes(_SAVED.dump_json([list(drawn) for drawn in gathered]))

    def load(self, file: Path, process: int, processes: int) -> list[Drawn]:
        """Rollouts that :meth:`save` wrote, of this process; with another number of processes they
        are dealt anew, in order, and have no verdicts.

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
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        threading.Thread(target=self._work, name="rollouts", daemon=True).start()

    def submit(self, work: Callable[[], Drawn]) -> Future[Drawn]:
        future: Future[Drawn] = Future()
        self._queue.put((future, work))
        return future

    def _work(self) -> None:
        while True:
            future, work = self._queue.get()
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)


class DrawsAhead(DrawsPrompts):
    """Trainer whose rollouts may be drawn ahead.

    Args (beside those of :class:`~stages.grpo.prompts.rounds.DrawsPrompts`):
        ahead: draws and judges the rollouts of later generations, and of the present one; None:
            each generation draws its own.
    """

    def __init__(self, *, ahead: Ahead | None = None, **kwargs: Any) -> None:
        self._ahead = ahead
        #: Rollouts of the present generation's first round, until they have their verdicts.
        self._early: Drawn | None = None
        self._beside = None if ahead is None else _Beside()
        self._turn_began = time.monotonic()
        super().__init__(**kwargs)

    @property
    def _corrects_sampling(self) -> bool:
        return super()._corrects_sampling or self._ahead is not None

    def _judged(self, keys: Sequence[str], ids: Sequence[Sequence[int]]) -> StepScores:
        """Judge rollouts of training that are not the present ones."""
        raise NotImplementedError

    def _chosen(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if self._engine is not None:
            self._engine.take_weights(self)
        if self._ahead is None:
            return super()._chosen(inputs)
        present, waiting = self.state.global_step // self.num_iterations, self._ahead.waiting
        following = present + len(waiting)
        for generation in range(following, min(present + self._ahead.staleness + 1, self._ahead.generations)):
            waiting.append(self._start(self._ahead, generation, len(inputs)))
        early = self._early = self._waited_for(waiting.popleft())
        if early.generation != present:
            raise RuntimeError(f"generation {present} got the rollouts of {early.generation}")
        self._metrics["train"]["staleness"].append((self.state.global_step - early.sampled_at) / self.num_iterations)
        return [{"prompt": key} for key in early.keys]

    def _start(self, ahead: Ahead, generation: int, rows: int) -> Future[Drawn]:
        """Start drawing and judging the rollouts of a generation; without an engine they are drawn
        when this returns."""
        keys = [key for key in ahead.prompts_of(generation) for _ in range(self.num_generations)]
        own = super()._chosen([{"prompt": key} for key in keys[self._own_rows(rows)]])
        keys = [row["prompt"] for row in own]
        step = self.state.global_step
        prompts, seeds = self._encode(keys), self._seeds(rows, generation * self.num_iterations)
        drawn = None if self._engine is not None else self._draw(keys, prompts, seeds)

        def finish() -> Drawn:
            replies = drawn if drawn is not None else self._draw(keys, prompts, seeds)
            ids, logps = [reply.ids for reply in replies], [reply.logps for reply in replies]
            return Drawn(generation, step, keys, ids, logps, self._judged(keys, ids))

        assert self._beside is not None
        return self._beside.submit(finish)

    def _waited_for(self, drawn: Future[Drawn]) -> Drawn:
        """Wait for rollouts; log the share of the time since the last ones that went by waiting."""
        began = time.monotonic()
        found = drawn.result()
        now = time.monotonic()
        self._metrics["train"][IDLE_SHARE].append((now - began) / max(now - self._turn_began, 1e-9))
        self._turn_began = now
        return found

    def _rollouts(self, rows: Sequence[EncodedPrompt]) -> list[Decoded]:
        return super()._rollouts(rows) if self._early is None else self._early.replies

    def _early_scores(self, replies: Sequence[str]) -> StepScores | None:
        """Verdicts on the rollouts of this round, if they were judged ahead."""
        early, self._early = self._early, None
        if early is None or early.scores is None:
            return None
        if [score.reply for score in early.scores.scores] != list(replies):
            raise RuntimeError(
                "other replies were judged than those that are trained on; TRL decodes them in another way"
            )
        return early.scores

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self._ahead is not None:
            gathered = gather_object([[drawn.result() for drawn in self._ahead.waiting]])
            if self.accelerator.is_main_process:
                self._ahead.save(
                    Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / AHEAD_FILE, gathered
                )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self._ahead is None:
            return
        for drawn in self._ahead.load(
            Path(checkpoint) / AHEAD_FILE, self.accelerator.process_index, self.accelerator.num_processes
        ):
            future: Future[Drawn] = Future()
            future.set_result(drawn)
            self._ahead.waiting.append(future)
