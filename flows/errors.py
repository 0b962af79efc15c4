"""Errors of the flows."""

from __future__ import annotations

from collections.abc import Iterable

from stages.errors import VidbridgeError


class FlowError(VidbridgeError):
    """A failure of a run, or of what a command does around one."""


class UsageError(FlowError):
    """An invalid request: an unknown stage, a recipe that does not exist, edits that would be
    lost."""

    status = 2


class DvcError(FlowError):
    """DVC refused: an unreadable ``dvc.yaml``, a cycle, two stages that write one path."""


class UnsafeContent(FlowError):
    """``dvc.lock``, a ``.dvc`` file or the run cache names content that DVC would write outside the
    folder of an out.
    """


class StageFailed(FlowError):
    """A stage's command ended with a non-zero status.

    ``exit_code`` is the command's own status where DVC told it, else DVC's. 2 means that a person
    has to change something, so that trying again is pointless.
    """

    def __init__(self, stage: str, exit_code: int, tail: tuple[str, ...]) -> None:
        super().__init__(f"stage {stage}", f"failed with exit status {exit_code}", "its last lines say why")
        self.args = (stage, exit_code, tail)
        self.stage, self.exit_code, self.tail = stage, exit_code, tail

    def __str__(self) -> str:
        last = "\n  ".join(self.tail) or "it printed nothing"
        return f"{self.field} {self.problem}; its last lines:\n  {last}"


class RunFailed(FlowError):
    """Parts of a run failed. The text has a line for each, and one for what to do."""

    def __init__(self, lines: Iterable[str], remedy: str) -> None:
        self.lines = tuple(lines)
        super().__init__("run", "\n".join(self.lines), remedy)
        self.args = (self.lines, remedy)

    def __str__(self) -> str:
        return "\n".join([*self.lines, self.remedy])


class StageTimedOut(FlowError):
    """A stage ran longer than ``meta.timeout_s`` in ``dvc.yaml``."""


class StageCancelled(FlowError):
    """A stage was cancelled; it is never retried."""
