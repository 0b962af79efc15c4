"""What a server grants to those who ask it, from the environment. Light, so that a command can look before it starts one."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER, MEGABYTES, SECONDS = "VIDBRIDGE_SERVE_VIDEOS", "VIDBRIDGE_SERVE_MAX_MB", "VIDBRIDGE_SERVE_TIMEOUT_S"


@dataclass(frozen=True)
class Limits:
    """What a server grants. ``folder``: where videos may be read by path; None: nowhere."""

    folder: Path | None
    max_bytes: int
    timeout_s: float


def limits_from_environment(changes: Mapping[str, str] | None = None) -> Limits:
    """VIDBRIDGE_SERVE_VIDEOS, VIDBRIDGE_SERVE_MAX_MB (64 unless set), VIDBRIDGE_SERVE_TIMEOUT_S (50: MLflow gives up at 60).

    Args:
        changes: of the environment.

    Raises:
        ValueError: one of them is not what it has to be.
    """
    environment = {**os.environ, **(changes or {})}
    named = environment.get(FOLDER, "")
    folder = Path(named).expanduser().resolve() if named else None
    if folder is not None and not folder.is_dir():
        raise ValueError(f"{FOLDER}: {named!r} is no folder; name the one that videos may be read from, or unset it")
    return Limits(folder, int(_positive(environment, MEGABYTES, "64") * (1 << 20)), _positive(environment, SECONDS, "50"))


def _positive(environment: Mapping[str, str], name: str, usual: str) -> float:
    text = environment.get(name, "") or usual
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: {text!r} is no number above 0; give one, or unset it")
    return value
