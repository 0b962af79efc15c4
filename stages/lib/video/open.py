"""Opening videos for samples: the loader of frames, and what it may keep in memory and on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from stages.domain.core.frames import Fit
from stages.lib.rows.samples import InputError, load_clips
from stages.lib.video.loader import FrameLoader
from stages.params import Params
from stages.runtime import paths
from stages.runtime.frame_cache import FrameStore

#: What decoded frames may take in memory, in MB, unless VIDBRIDGE_FRAME_CACHE_MB says otherwise.
FRAME_CACHE_MB = 512
#: What they may take on disk, in GB, unless VIDBRIDGE_FRAME_DISK_GB says otherwise.
FRAME_DISK_GB = 20.0


def frame_loader(params: Params, fit: Callable[[], Fit] | None = None) -> FrameLoader:
    """Frames of samples, decoded from the source folder and kept in memory up to a bound; with ``fit``, large clips' on disk.

    Raises:
        InputError: VIDBRIDGE_FRAME_CACHE_MB or VIDBRIDGE_FRAME_DISK_GB is no number.
    """
    store = None if fit is None else frame_store()
    return FrameLoader(load_clips(), Path(params.ingest.source), frame_memory_bytes(), paths.CLIPS, store, fit)


def frame_memory_bytes() -> int:
    """Bytes that VIDBRIDGE_FRAME_CACHE_MB lets decoded frames take in memory.

    Raises:
        InputError: it is no number.
    """
    given = os.environ.get("VIDBRIDGE_FRAME_CACHE_MB", "").strip() or str(FRAME_CACHE_MB)
    if not given.isdecimal():
        raise InputError(
            f"VIDBRIDGE_FRAME_CACHE_MB: {given!r} is not a number of megabytes; give a whole one such as {FRAME_CACHE_MB}"
        )
    return int(given) * 1_000_000


def frame_store() -> FrameStore | None:
    """The folder where VIDBRIDGE_FRAME_CACHE and VIDBRIDGE_FRAME_DISK_GB have frames kept on disk; None: nowhere.

    Raises:
        InputError: a bound that is no number.
    """
    given = os.environ.get("VIDBRIDGE_FRAME_DISK_GB", "").strip()
    try:
        gigabytes = float(given or FRAME_DISK_GB)
        most_bytes = int(gigabytes * 1e9)
    except (ValueError, OverflowError):
        most_bytes = -1
    if most_bytes < 0:
        raise InputError(
            f"VIDBRIDGE_FRAME_DISK_GB: {given!r} is not a number of gigabytes; give one such as 20, or 0 to keep no frames on disk"
        )
    folder = Path(os.environ.get("VIDBRIDGE_FRAME_CACHE") or paths.FRAMES).expanduser()
    return FrameStore(folder, most_bytes) if most_bytes else None
