"""Video files that the sections of this benchmark read."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

from stages.lib.video.encoder import ffmpeg_binary
from stages.lib.video.probe import Probe, probe

REAL = Path("tests/data/clips/bigbuckbunny.mp4")
#: Frames that are asked for of a file.
SAMPLED = 16


class File(NamedTuple):
    name: str
    path: Path
    facts: Probe


def encode(folder: Path, name: str, seconds: int, *output: str) -> File:
    """Encode the real clip, repeated for so many seconds, with these arguments."""
    path = folder / name
    command = [
        ffmpeg_binary(),
        "-nostdin",
        "-v",
        "error",
        "-y",
        "-stream_loop",
        "-1",
        "-i",
        str(REAL),
        "-t",
        str(seconds),
    ]
    subprocess.run([*command, "-an", "-preset", "faster", "-pix_fmt", "yuv420p", *output, str(path)], check=True)
    return File(name, path, probe(path))
