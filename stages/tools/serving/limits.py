"""Limits of the server for its clients, from the environment. Light, so that a command can check
them before it starts one."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stages.errors import InputError

FOLDER, MEGABYTES, SECONDS = "VIDBRIDGE_SERVE_VIDEOS", "VIDBRIDGE_SERVE_MAX_MB", "VIDBRIDGE_SERVE_TIMEOUT_S"
KEY = "VIDBRIDGE_SERVE_KEY"

#: Questions of one request.
MAX_ROWS = 16
#: Characters of a question with its options.
MAX_TEXT = 8192
#: Characters of a value that a message repeats.
SHOWN = 80

# Memory. With the model's own these are the most a server takes; DECISIONS.md adds them up.
#: Memory of one decoding process: the decoder's frames, one frame in full size, and all of them as
#: the processor makes them.
DECODER_BYTES = 1 << 30
#: Decoding processes for new videos, and for those that take longer than QUICK_S.
QUICK, SLOW = 2, 1
#: Pixels in memory while a video is decoded: some 80 million, 8192 x 8192 with its small frames.
VIDEO_PIXEL_BYTES = 256 << 20
#: Frames of one request, as small as the processor makes them: 16 videos of a 7B recipe (16 frames
#: of 153,664 pixels) take 118 MB.
REQUEST_FRAME_BYTES = 256 << 20
#: Frames of all requests that wait for the model.
FRAME_BYTES = 512 << 20
#: Pixels in one batch of the model: 16 rows of such a recipe.
BATCH_PIXELS = 40_000_000
#: Bodies of requests that are being received or answered, together; and the size up to which a body
#: is not counted.
BODY_BYTES, SMALL_BODY_BYTES = 256 << 20, 64 << 10
#: Size of a body without videos: questions, options, JSON.
TEXT_BYTES = 4 << 20

# Time.
#: A video that is not decoded by then starts again in another process, which blocks no other
#: request.
QUICK_S = 2.0
#: Share of a request's time that decoding one video may take.
DECODING_SHARE = 0.6
#: Time limit for the head of a request, and for a pause of its body.
HEAD_S, PAUSE_S = 10.0, 10.0

# Numbers.
#: Requests in progress or waiting; further ones are refused with 503.
MAX_REQUESTS = 64
#: Requests that wait for a slow decoder.
MAX_SLOW = 8
#: Open connections.
MAX_CONNECTIONS = 1000
#: Seconds after which a request refused with 503 may be sent again.
RETRY_S = 5

#: Characters of VIDBRIDGE_SERVE_KEY: 16 of a random generator cannot be guessed over a network.
MIN_KEY = 16


@dataclass(frozen=True)
class Limits:
    """Limits of a server. ``folder``: root of videos that are read by path; None: no paths."""

    folder: Path | None
    max_bytes: int
    timeout_s: float

    @property
    def max_body_bytes(self) -> int:
        """Largest body: videos as base64, and the rest."""
        return self.max_bytes * 4 // 3 + TEXT_BYTES


def limits_from_environment(changes: Mapping[str, str] | None = None) -> Limits:
    """Read VIDBRIDGE_SERVE_VIDEOS, VIDBRIDGE_SERVE_MAX_MB (default 64), VIDBRIDGE_SERVE_TIMEOUT_S
    (default 50: MLflow gives up at 60).

    Args:
        changes: of the environment.

    Raises:
        InputError: one of them is not valid.
    """
    environment = {**os.environ, **(changes or {})}
    named = environment.get(FOLDER, "")
    folder = Path(named).expanduser().resolve() if named else None
    if folder is not None and not folder.is_dir():
        raise InputError(FOLDER, f"{named!r} is not a folder", "set the one that videos may be read from, or unset it")
    return Limits(
        folder, int(_positive(environment, MEGABYTES, "64") * (1 << 20)), _positive(environment, SECONDS, "50")
    )


def key_from_environment() -> str | None:
    """Read VIDBRIDGE_SERVE_KEY, the bearer token that a client has to send; None if unset.

    Raises:
        InputError: it is too short to be a secret, or cannot be sent in a header.
    """
    key = os.environ.get(KEY, "")
    if not key:
        return None
    if len(key) < MIN_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(
            KEY,
            f"{len(key)} characters",
            f"set at least {MIN_KEY} printable ASCII ones without spaces (python -c 'import secrets;"
            " print(secrets.token_urlsafe())'), or unset it",
        )
    return key


def _positive(environment: Mapping[str, str], name: str, usual: str) -> float:
    text = environment.get(name, "") or usual
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(name, f"{text!r} is not a number above 0", "set one, or unset it")
    return value
