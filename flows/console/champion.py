"""Warning if the alias ``champion`` is not where the gate put it: anyone who may write to the
registry can move it by hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.console import show

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from stages.tracking.registry.versions import Version
    from stages.tracking.session import Session


def warn_of_moved(session: Session, which: str) -> None:
    """Warn on stderr that the gate did not put ``champion`` where it is, if ``which`` means that
    alias of a registered model.

    Raises:
        TrackingError: the store does not answer.
    """
    from stages.tracking.registry.named import find_named, parse_named
    from stages.tracking.registry.versions import CHAMPION

    if which == CHAMPION or (which.startswith("models:") and parse_named(which).which == CHAMPION):
        warn_of_moved_version(session.client, find_named(session, which))


def warn_of_moved_version(client: MlflowClient, version: Version) -> None:
    """Warn likewise about a version, by whatever name it was found."""
    from stages.tracking.registry.named import moved_fault

    if fault := moved_fault(client, version):
        show.say(f"warning: {fault}", error=True)
