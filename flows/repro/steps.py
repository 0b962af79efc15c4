"""A plan as plain values: every stage that a target needs, the action for it, and the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from flows.errors import DvcError

State = Literal["up to date", "will run", "restore", "fetch"]


class StageMeta(BaseModel):
    """``meta:`` of a stage in ``dvc.yaml``. It does not enter the stage's hash; a stage without it
    gets these values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["data", "train", "evaluate"] = "data"
    #: Number of retries of a failed stage. A cancelled stage is never retried, nor one that exits
    #: with 2.
    retries: int = Field(default=0, ge=0)
    retry_delay_s: float = Field(default=2, ge=0)
    timeout_s: float | None = Field(default=None, gt=0)
    #: GPUs that the stage needs; displayed, not enforced.
    gpu: int = Field(default=0, ge=0)
    #: The stage imports torch, which a warm process can do in advance (:mod:`stages.runtime.warm`).
    warm: bool = False


@dataclass(frozen=True)
class InRemote:
    """Outs of a stage that the remote holds and this machine does not. ``objects``: hashes of files
    and of lists (``.dir``).
    """

    objects: tuple[str, ...]
    files: int
    size_bytes: int


@dataclass(frozen=True)
class PlanStep:
    """One stage and the action for it.

    ``restore``: unchanged, but its outputs have to be checked out from the cache. ``fetch``: the
    same, from the remote. A stage whose outputs lie in the remote (``remote``) and that nothing
    needs now is up to date. ``entry``: the entry of DVC's run cache (``KEY/VALUE``) that knows
    these outputs, where ``dvc.lock`` does not.
    """

    name: str
    state: State
    why: tuple[str, ...]
    upstream: tuple[str, ...]
    outs: tuple[str, ...]
    meta: StageMeta
    remote: InRemote | None = None
    entry: str | None = None
    #: Tables and values of ``params.yaml`` that it depends on, as ``dvc.yaml`` names them.
    params: tuple[str, ...] = ()
    #: It has inputs that DVC does not see: it is run whatever DVC knows of it.
    forced: bool = False


@dataclass(frozen=True)
class Plan:
    """Every stage that ``target`` needs, each after its dependencies.

    ``notes``: remarks for the user on how it was made. ``unanswered``: stages that would run only
    because their outputs are not in the cache, while the remote that may hold them did not answer.
    """

    target: str
    steps: tuple[PlanStep, ...]
    notes: tuple[str, ...] = ()
    unanswered: tuple[str, ...] = ()

    @property
    def to_run(self) -> tuple[PlanStep, ...]:
        return tuple(step for step in self.steps if step.state == "will run")

    @property
    def to_warm(self) -> int:
        """Number of stages to run that use a warm process."""
        return sum(step.meta.warm for step in self.to_run)

    @property
    def to_restore(self) -> tuple[PlanStep, ...]:
        return tuple(step for step in self.steps if step.state == "restore")

    @property
    def to_fetch(self) -> tuple[PlanStep, ...]:
        return tuple(step for step in self.steps if step.state == "fetch")

    @property
    def left(self) -> tuple[PlanStep, ...]:
        """Stages whose outputs stay in the remote."""
        return tuple(step for step in self.steps if step.remote is not None and step.state == "up to date")

    @property
    def distance(self) -> tuple[int, int]:
        """Distance of ``dvc.lock`` from what the target needs: stages that run, then stages that
        only the run cache knows.
        """
        return len(self.to_run), sum(step.entry is not None for step in self.steps)

    @property
    def empty(self) -> bool:
        return all(step.state == "up to date" and step.entry is None for step in self.steps)


def held(steps: tuple[PlanStep, ...]) -> tuple[int, float]:
    """Files and MB of these stages that only the remote has."""
    found = [step.remote for step in steps if step.remote is not None]
    return sum(one.files for one in found), sum(one.size_bytes for one in found) / 1e6


def verify_answer(plan: Plan) -> None:
    """Verify that the remote answered wherever its answer decides whether a stage runs.

    Raises:
        DvcError: stages would run, hours of training among them, only because a remote did not
            answer. They would also be pushed there.
    """
    if plan.unanswered:
        raise DvcError(
            f"{plan.notes[-1]}",
            f"{', '.join(plan.unanswered)}",
            "start it, correct its address or keys, or, to run them"
            " again, take another remote (dvc remote default NAME)",
        )
