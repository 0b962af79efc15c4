"""Errors of the flows; each message says field, value and remedy."""

from __future__ import annotations

from stages.errors import VidbridgeError


class FlowError(VidbridgeError):
    """A failure that the user can act upon; the message suffices, a traceback adds nothing."""


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
        self.stage, self.exit_code, self.tail = stage, exit_code, tail
        last = "\n  ".join(tail) or "it printed nothing"
        super().__init__(f"stage {stage} failed with exit status {exit_code}; its last lines:\n  {last}")


class StageTimedOut(FlowError):
    """A stage ran longer than ``meta.timeout_s`` in ``dvc.yaml``."""


class StageCancelled(FlowError):
    """A stage was cancelled; it is never retried."""
