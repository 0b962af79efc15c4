"""Construction of the frame loader for samples, with its caches in memory and on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from stages.domain.core.frames import Fit
from stages.errors import InputError
from stages.lib.rows.samples import load_clips
from stages.lib.video.loader import FrameLoader
from stages.params import Params
from stages.runtime import paths
from stages.runtime.frame_cache import FrameStore
from stages.runtime.sources.videos import open_videos

#: Default of VIDBRIDGE_FRAME_CACHE_MB: bound on decoded frames in memory, in MB.
FRAME_CACHE_MB = 512
#: Default of VIDBRIDGE_FRAME_DISK_GB: bound on decoded frames on disk, in GB.
FRAME_DISK_GB = 20.0


def frame_loader(params: Params, fit: Callable[[], Fit] | None = None) -> FrameLoader:
    """Build the loader of samples' frames, with a bounded cache in memory and one on disk, which
    takes frames of large clips only with ``fit``.

    Raises:
        InputError: VIDBRIDGE_FRAME_CACHE_MB or VIDBRIDGE_FRAME_DISK_GB is not a number.
    """
    source = open_videos(params.ingest.roots)
    return FrameLoader(load_clips(), source, frame_memory_bytes(), paths.CLIPS, frame_store(), fit)


def frame_memory_bytes() -> int:
    """Bound on decoded frames in memory, in bytes, from VIDBRIDGE_FRAME_CACHE_MB.

    Raises:
        InputError: it is not a number.
    """
    megabytes = os.environ.get("VIDBRIDGE_FRAME_CACHE_MB", "").strip() or str(FRAME_CACHE_MB)
    if not megabytes.isdecimal():
        raise InputError(
            "VIDBRIDGE_FRAME_CACHE_MB",
            f"{megabytes!r} is not a number of megabytes",
            f"set a whole one such as {FRAME_CACHE_MB}",
        )
    return int(megabytes) * 1_000_000


def frame_store() -> FrameStore | None:
    """Open the cache of frames on disk, as VIDBRIDGE_FRAME_CACHE and VIDBRIDGE_FRAME_DISK_GB set
    it; None if it is switched off.

    Raises:
        InputError: the bound is not a number.
    """
    setting = os.environ.get("VIDBRIDGE_FRAME_DISK_GB", "").strip()
    try:
        gigabytes = float(setting or FRAME_DISK_GB)
        most_bytes = int(gigabytes * 1e9)
    except (ValueError, OverflowError):
        most_bytes = -1
    if most_bytes < 0:
        raise InputError(
            "VIDBRIDGE_FRAME_DISK_GB",
            f"{setting!r} is not a number of gigabytes",
            "set one such as 20, or 0 to keep no frames on disk",
        )
    folder = Path(os.environ.get("VIDBRIDGE_FRAME_CACHE") or paths.FRAMES).expanduser()
    return FrameStore(folder, most_bytes) if most_bytes else None
