"""Parameters of watching a policy while it is trained, and of sampling several replies."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from pydantic import Field

from stages.domain.tasks.rewards import RewardRules
from stages.params.judging import JudgeParams
from stages.params.own_tasks import own_code
from stages.params.types import Positive, Table


class SampledParams(Table):
    """Several replies to each prompt, drawn from the policy's whole distribution."""

    #: k, the number of replies.
    replies: int = Field(ge=2, le=1024)
    temperature: Positive


class WatchParams(Table):
    """Scores of the policy on samples of the validation split while it is trained. The test split
    is never used."""

    #: Steps between two measurements; the start and the last step are always measured.
    every: int = Field(gt=0)
    #: Largest number of samples of each task that the row trains; they stay the same for the whole
    #: run.
    samples_per_task: int = Field(gt=0)
    max_new_tokens: int = Field(gt=0)
    #: Replies that are drawn beside the greedy one; null: none.
    sampled: SampledParams | None
    #: Checkpoint that becomes the row's policy: ``last``, or the one with the ``best`` mean of
    #: greedy scores over tasks (of equal ones the later).
    keep: Literal["best", "last"]

    def check_steps(self, steps: int, save_steps: int) -> None:
        """Check that there is something to see, and that every checkpoint to choose among is saved.

        Raises:
            ValueError: with field, value and remedy.
        """
        if self.every >= steps:
            remedy = f"write at most {steps - 1}, or watch: null" if steps > 1 else "write watch: null"
            raise ValueError(
                f"watch.every: {self.every} of {steps} steps measures the start and the end alone; {remedy}"
            )
        if self.keep == "best" and self.every % save_steps:
            fitting = [number for number in range(1, self.every + 1) if self.every % number == 0]
            nearest = min(fitting, key=lambda number: (abs(number - save_steps), -number))
            above = save_steps * (self.every // save_steps + 1)
            other = f", or watch.every {above}" if above < steps else ""
            raise ValueError(
                f"watch.keep: 'best' chooses among checkpoints, and of the steps measured every {self.every} some are"
                f" not saved with save_steps {save_steps}; write save_steps {nearest}{other}, or keep last"
            )


class SftWatchParams(WatchParams):
    """Of an SFT row: with the judge, the rewards and the code of own tasks, repeated here, so that
    only a row that is watched depends on them."""

    judge: JudgeParams
    rewards: RewardRules
    #: Digest of the project's folder of tasks, if the row trains a task of the project's own: an
    #: error says which it is. null: it trains none.
    own_tasks: str | None

    def check_same(self, name: str, tasks: Collection[str], judge: JudgeParams, rewards: RewardRules) -> None:
        """Check that the scores of ``tasks`` are those of evaluation.

        Raises:
            ValueError: with field, value and remedy.
        """
        for key, expected in (("judge", judge), ("rewards", rewards)):
            if getattr(self, key) != expected:
                raise ValueError(
                    f"sft.{name}.watch.{key}: differs from `{key}`, and the curve is to be in the scores of evaluation;"
                    f" write the same there (`{key}: &{key} {{...}}` where it stands first, `{key}: *{key}` afterwards)"
                )
        if self.own_tasks != (code := own_code(tasks)):
            there = "null" if code is None else repr(code)
            problem = "no task that it trains is the project's own" if code is None else "the code of its tasks differs"
            raise ValueError(f"sft.{name}.watch.own_tasks: {self.own_tasks!r}, and {problem}; write {there}")
