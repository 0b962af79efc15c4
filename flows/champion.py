"""A warning where the alias ``champion`` is not where the gate put it: whoever may write to the registry can move it by hand."""

from __future__ import annotations

from pathlib import Path

from flows import show
from stages.params import load_params
from stages.tracking.versions import CHAMPION


def warn_of_moved(root: Path, which: str) -> None:
    """Say on stderr that the gate did not put ``champion`` where it is, if ``which`` means that alias of the project's own model.

    Raises:
        TrackingError: the store does not answer.
    """
    gate = load_params(root / "params.yaml").gate
    if which not in (CHAMPION, f"models:/{gate.registered_model}@{CHAMPION}"):
        return
    from stages.tracking.ledger import alias_fault
    from stages.tracking.store import open_client

    if fault := alias_fault(open_client(root), gate.registered_model, gate.ledger):
        show.say(f"warning: {fault}", error=True)
