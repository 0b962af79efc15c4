"""Options of ``vidbridge gc``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: Other clones and machines may share cache and remote, and take days to say what they need.
KEEP_DAYS = 7.0


@dataclass(frozen=True)
class GcOptions:
    """Options of the command. ``also``: other projects that use this cache or remote."""

    remote: bool
    versions: bool
    keep_days: float
    also: tuple[Path, ...]

    @property
    def keep_s(self) -> float:
        return self.keep_days * 86400
