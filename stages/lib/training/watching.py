"""Watching a training: the policy is measured every few steps, without a trace in the training
itself, and the best of the saved checkpoints can be kept.

Measurements are part of the trainer's history, so that a state brings back those before it. Those
behind it wait in the scratch folder (``watched.jsonl``), each with a digest of the trained weights:
a step that is trained once more and reaches the same weights is not measured again.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm
from transformers import TrainerCallback
from trl.models import unwrap_model_for_generation

from stages.errors import InputError
from stages.lib.training.checkpoints import WATCHED

#: Metric by which checkpoints are compared: the mean over tasks of the greedy replies' scores.
GREEDY = f"{WATCHED}greedy"
JOURNAL_FILE = "watched.jsonl"

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Processes of a training: this one's index, and their number."""

    index: int
    count: int

    def gather(self, rows: Sequence[T]) -> list[T]:
        """Rows of all processes, one process after the other; every process must call it."""
        gathered: list[T] = gather_object(list(rows))
        return gathered


#: Measures a model with its processor. Called on every process; all of them get the same values.
Measure = Callable[[Any, Any, Ranks], Mapping[str, float]]


@dataclass(frozen=True)
class Watch:
    """Settings of watching.

    Attributes:
        every: steps between two measurements; the start and the last step are always measured.
        keep: checkpoint that becomes the row's policy.
        measure: returns metrics whose names start with ``watch/``; :data:`GREEDY` is left out if
            it is unknown.
    """

    every: int
    keep: Literal["best", "last"]
    measure: Measure

    def due(self, step: int, last: int) -> bool:
        return step % self.every == 0 or step == last


class Kept(NamedTuple):
    """Checkpoint that becomes the row's policy, beside the last one; scores are None where there is
    none."""

    keep: Literal["best", "last"]
    step: int
    score: float | None
    last_step: int
    last_score: float | None


def kept(
    keep: Literal["best", "last"], history: Sequence[Mapping[str, float]], saved_steps: Sequence[int], last: int
) -> Kept:
    """Choose among the saved checkpoints; of equal ones the later.

    Raises:
        InputError: the best is asked for, and no saved checkpoint has a score.
    """
    scores = _scores(history)
    step = last
    if keep == "best":
        candidates = [step for step in saved_steps if step in scores]
        if not candidates:
            raise InputError(
                "watch.keep",
                "'best', and no saved checkpoint has a score: at each of them the judge left a task without a verdict",
                "repair the judge, or write keep: last",
            )
        step = _best(scores, candidates)
    return Kept(keep, step, scores.get(step), last, scores.get(last))


def _scores(history: Sequence[Mapping[str, float]]) -> dict[int, float]:
    """Score of each step that was measured and has one."""
    return {int(row["step"]): row[GREEDY] for row in history if GREEDY in row}


def _best(scores: Mapping[int, float], steps: Iterable[int]) -> int:
    """Step with the highest score; of equal ones the later."""
    return max(steps, key=lambda step: (scores[step], step))


class Watcher(TrainerCallback):
    """Measures the policy when it is due; on every process."""

    def __init__(self, trainer: Any, watch: Watch, *, stage: str, scratch: Path, hooks: Any) -> None:
        self._trainer, self._watch, self._stage, self._hooks = trainer, watch, stage, hooks
        self._journal = scratch / JOURNAL_FILE

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if state.global_step == 0:
            self._look(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if self._watch.due(state.global_step, state.max_steps):
            self._look(state)

    def _look(self, state: Any) -> None:
        accelerator, step = self._trainer.accelerator, int(state.global_step)
        with (
            random_state_kept(),
            unwrap_model_for_generation(
                self._trainer.model_wrapped,
                accelerator,
                gradient_checkpointing_kwargs=self._trainer.args.gradient_checkpointing_kwargs,
            ) as model,
        ):
            weights = weights_digest(model)
            # The first process reads the file, and all of them do what it says.
            found = [self._known(step, weights) if accelerator.is_main_process else None]
            values: Mapping[str, float] | None = broadcast_object_list(found)[0]
            fresh = values is None
            if values is None:
                ranks = Ranks(accelerator.process_index, accelerator.num_processes)
                values = self._watch.measure(model, self._trainer.processing_class, ranks)
        state.log_history.append({**values, "step": step})
        if accelerator.is_main_process:
            if fresh:
                self._hooks.still_ours()
                with self._journal.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": step, "weights": weights, "values": dict(values)}) + "\n")
            self._hooks.on_metrics(step, dict(values))
            tqdm.write(f"{self._stage}: {_told(step, state.log_history)}")

    def _known(self, step: int, weights: str) -> Mapping[str, float] | None:
        """Look up the values of an earlier measurement of the same step and weights."""
        if not self._journal.is_file():
            return None
        for line in self._journal.read_text(encoding="utf-8").splitlines(keepends=True):
            if not line.endswith("\n"):
                continue  # its process was killed while it wrote
            row = json.loads(line)
            if row["step"] == step and row["weights"] == weights:
                values: Mapping[str, float] = row["values"]
                return values
        return None


def _told(step: int, history: Sequence[Mapping[str, float]]) -> str:
    """One line about the latest measurement, beside the best one so far."""
    scores = _scores(history)
    if step not in scores:
        return f"step {step}: held-out score unknown, a task has no verdict"
    best = _best(scores, scores)
    return f"step {step}: held-out score {scores[step]:.3f} (best {scores[best]:.3f} at step {best})"


def weights_digest(model: torch.nn.Module) -> str:
    """Digest of the trained weights, by name; equal only if their bits are."""
    sums = hashlib.sha256()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            sums.update(f"{name} {int(torch.hash_tensor(weight.detach()).view(torch.int64))}\n".encode())
    return sums.hexdigest()


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the global random states as they were: of Python, numpy, and torch on CPU and GPU."""
    python, arrays = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
