"""What a server grants to those who ask it, from the environment. Light, so that a command can look before it starts one."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER, MEGABYTES, SECONDS = "VIDBRIDGE_SERVE_VIDEOS", "VIDBRIDGE_SERVE_MAX_MB", "VIDBRIDGE_SERVE_TIMEOUT_S"
KEY = "VIDBRIDGE_SERVE_KEY"

#: Questions of one request.
MAX_ROWS = 16
#: Letters of a question with its options.
MAX_TEXT = 8192
#: Characters of a value that a message repeats.
SHOWN = 80

# Memory. Together with the model's own these are what a server takes at most; DECISIONS.md adds them up.
#: What one decoding process may take: the decoder's frames, one frame in full size, and all of them as the processor makes them.
DECODER_BYTES = 1 << 30
#: Decoding processes for videos that have just begun, and for those that take longer than QUICK_S.
QUICK, SLOW = 2, 1
#: Pixels that are in memory while a video is decoded: some 80 million, 8192 x 8192 with its small frames.
VIDEO_PIXEL_BYTES = 256 << 20
#: Frames of one request, as small as the processor makes them: 16 videos of a 7B recipe (16 frames of 153,664 pixels) take 118 MB.
REQUEST_FRAME_BYTES = 256 << 20
#: Frames of all requests that wait for the model.
FRAME_BYTES = 512 << 20
#: Pixels that the model is shown in one batch: 16 rows of such a recipe.
BATCH_PIXELS = 40_000_000
#: Bodies of requests that are being received or answered, together, and how long one is that is not counted.
BODY_BYTES, SMALL_BODY_BYTES = 256 << 20, 64 << 10
#: What a body holds beside videos: questions, options, JSON.
TEXT_BYTES = 4 << 20

# Time.
#: A video that is not decoded by then goes on, from its beginning, in a process that others do not wait for.
QUICK_S = 2.0
#: Share of a request's time that decoding one video may take.
DECODING_SHARE = 0.6
#: How long the head of a request may take, and how long a body may pause.
HEAD_S, PAUSE_S = 10.0, 10.0

# Numbers.
#: Requests that are worked on or wait; one more is told to come back.
MAX_REQUESTS = 64
#: Requests that wait for a decoder which takes its time.
MAX_SLOW = 8
#: Open connections.
MAX_CONNECTIONS = 1000
#: Seconds after which one that was told to come back may try again.
RETRY_S = 5

#: Characters of VIDBRIDGE_SERVE_KEY: 16 of a random generator cannot be guessed over a network.
MIN_KEY = 16


@dataclass(frozen=True)
class Limits:
    """What a server grants. ``folder``: where videos may be read by path; None: nowhere."""

    folder: Path | None
    max_bytes: int
    timeout_s: float

    @property
    def max_body_bytes(self) -> int:
        """Videos as base64, and what stands around them."""
        return self.max_bytes * 4 // 3 + TEXT_BYTES


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


def key_from_environment() -> str | None:
    """VIDBRIDGE_SERVE_KEY, the bearer token that a client has to send; None where it is not set.

    Raises:
        ValueError: it is too short to be a secret, or cannot stand in a header.
    """
    key = os.environ.get(KEY, "")
    if not key:
        return None
    if len(key) < MIN_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"{KEY}: {len(key)} characters; set at least {MIN_KEY} printable ASCII ones without spaces"
            " (python -c 'import secrets; print(secrets.token_urlsafe())'), or unset it"
        )
    return key


def _positive(environment: Mapping[str, str], name: str, usual: str) -> float:
    text = environment.get(name, "") or usual
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: {text!r} is no number above 0; give one, or unset it")
    return value
