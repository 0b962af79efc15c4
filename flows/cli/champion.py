"""A warning where the alias ``champion`` is not where the gate put it: whoever may write to the registry can move it by hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flows.console import show

if TYPE_CHECKING:
    from stages.tracking.registry.versions import Version


def warn_of_moved(root: Path, which: str) -> None:
    """Say on stderr that the gate did not put ``champion`` where it is, if ``which`` means that alias of a registered model.

    Raises:
        TrackingError: the store does not answer.
    """
    from stages.tracking.registry.named import find_named, parse_named
    from stages.tracking.registry.versions import CHAMPION
    from stages.tracking.runs.store import open_client

    if which == CHAMPION or (which.startswith("models:") and parse_named(which).which == CHAMPION):
        warn_of_moved_version(root, find_named(root, open_client(root), which))


def warn_of_moved_version(root: Path, version: Version) -> None:
    """The same of a version that was found, whatever it was called by."""
    from stages.tracking.registry.named import moved_fault
    from stages.tracking.runs.store import open_client

    if fault := moved_fault(open_client(root), version):
        show.say(f"warning: {fault}", error=True)
