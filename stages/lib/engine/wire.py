"""Messages between this project and a rollout engine, over HTTP.

Both sides import this module, and the engine's side has neither this project's dependencies nor its
torch: only the standard library and numpy are used here.

- ``GET /health``: a :class:`Health`.
- ``PUT /videos/DIGEST``: the body of a :class:`Video`. The engine keeps as many as fit its limit.
- ``POST /generate``: a :class:`Request`; answered by an :class:`Answer`.
- ``POST /weights``: ``{"folder": ..., "name": ...}``: reads the weights of a folder that
  :mod:`stages.lib.engine.weights` wrote; answered by a :class:`Health`.

Each request and each answer names :data:`PROTOCOL` in the header :data:`HEADER`. An error has the
body ``{"error": {"code": ..., "problem": ..., "videos": ...}}`` with one of the codes below.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

#: Number of this protocol; it changes with every message that the other side would misread.
PROTOCOL = 1
HEADER = "x-vidbridge-protocol"
#: Releases of vLLM that the server was tried with.
VLLM_RELEASES = ("0.32",)

#: 409, with ``videos``: digests that the engine does not hold.
UNKNOWN_VIDEOS = "unknown_videos"
#: 409: the engine holds other weights than the request names.
STALE_WEIGHTS = "stale_weights"
#: 401.
KEY = "key"
#: 400: another protocol.
OTHER_PROTOCOL = "protocol"
#: 400: the message cannot be read, or the model cannot do this.
REFUSED = "refused"
#: 422: the folder holds no complete weights of that name.
WEIGHTS = "weights"
#: 507.
MEMORY = "memory"
#: 503: vLLM ended; the server ends, too.
DIED = "died"

#: Description of the weights in their folder: it is written last.
MANIFEST = "weights.json"


class WireError(ValueError):
    """A message, or a folder of weights, is not what the protocol describes."""


@dataclass(frozen=True, eq=False)
class Video:
    """A video as the model was trained on it.

    Attributes:
        pixels: uint8 RGB [frames, height, width, 3].
        metadata: fields of a ``VideoMetadata`` of transformers, as JSON has them.
    """

    pixels: npt.NDArray[np.uint8]
    metadata: Mapping[str, Any]

    @cached_property
    def _head(self) -> bytes:
        text = json.dumps({"shape": self.pixels.shape, "metadata": dict(self.metadata)}, sort_keys=True).encode()
        return len(text).to_bytes(4, "big") + text

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the body, in hexadecimal."""
        hashed = hashlib.sha256(self._head)
        hashed.update(np.ascontiguousarray(self.pixels).data)
        return hashed.hexdigest()

    @property
    def body(self) -> bytes:
        """The length of a JSON text in four bytes, that text, and the pixels."""
        return self._head + np.ascontiguousarray(self.pixels).tobytes()

    @classmethod
    def from_body(cls, body: bytes) -> Video:
        """Read the body of a video; its pixels are writable, since libraries warn of others.

        Raises:
            WireError: it is none.
        """
        start = 4 + int.from_bytes(body[:4], "big")
        try:
            head = json.loads(body[4:start])
            pixels = np.frombuffer(bytearray(memoryview(body)[start:]), np.uint8).reshape(head["shape"])
            metadata = dict(head["metadata"])
        except (ValueError, TypeError, KeyError) as error:
            raise WireError(f"the body is not a video: {error}") from error
        if pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise WireError(f"the video has the shape {pixels.shape}, not [frames, height, width, 3]")
        return cls(pixels, metadata)


@dataclass(frozen=True)
class Question:
    """Token ids of a rendered prompt with one placeholder for each video, and the digests of these
    videos."""

    prompt_ids: tuple[int, ...]
    videos: tuple[str, ...]


@dataclass(frozen=True)
class Draw:
    """A reply that is asked for: the number of its question, and its seed; None: greedy."""

    question: int
    seed: str | None = None


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn: from the model's whole distribution at a temperature.

    Attributes:
        max_tokens: a reply is cut off after this many.
        ends: tokens that end a reply, and no others do.
        temperature: of replies that have a seed.
        min_tokens: a reply does not end before this many.
        suppressed: tokens that are never drawn.
        logps: return the log-probability that each token was drawn with, at the temperature (greedy
            replies: at 1).
    """

    max_tokens: int
    ends: tuple[int, ...]
    temperature: float = 1.0
    min_tokens: int = 0
    suppressed: tuple[int, ...] = ()
    logps: bool = False


@dataclass(frozen=True)
class Reply:
    """Token ids of a reply with the token that ended it, if any; their log-probabilities, if asked
    for; and whether it ended by itself."""

    ids: list[int]
    logps: list[float]
    finish: Literal["end", "length"]


@dataclass(frozen=True)
class Request:
    """Replies that are asked for.

    Attributes:
        weights: name of the weights that must draw them; None: any.
    """

    questions: tuple[Question, ...]
    draws: tuple[Draw, ...]
    sampling: Sampling
    weights: str | None = None

    def encode(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def decode(cls, body: bytes) -> Request:
        """Read a request.

        Raises:
            WireError: it is none.
        """
        try:
            data = json.loads(body)
            request = cls(
                tuple(
                    Question(tuple(map(int, q["prompt_ids"])), tuple(map(str, q["videos"]))) for q in data["questions"]
                ),
                tuple(Draw(int(d["question"]), d["seed"]) for d in data["draws"]),
                Sampling(**{**data["sampling"], **{n: tuple(data["sampling"][n]) for n in ("ends", "suppressed")}}),
                data["weights"],
            )
        except (ValueError, TypeError, KeyError) as error:
            raise WireError(f"the body is not a request: {error!r}") from error
        for draw in request.draws:
            if not 0 <= draw.question < len(request.questions):
                raise WireError(f"a reply to question {draw.question} of {len(request.questions)}")
        return request


@dataclass(frozen=True)
class Answer:
    """Replies in the order of the request's draws; ``read``: the token ids of each question's
    prompt as the model read it, placeholders expanded."""

    read: list[list[int]]
    replies: list[Reply]

    def encode(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def decode(cls, body: bytes) -> Answer:
        """Read an answer.

        Raises:
            WireError: it is none.
        """
        try:
            data = json.loads(body)
            return cls(data["read"], [Reply(**reply) for reply in data["replies"]])
        except (ValueError, TypeError, KeyError) as error:
            raise WireError(f"the body is not an answer: {error!r}") from error


@dataclass(frozen=True)
class Health:
    """State of an engine.

    Attributes:
        protocol: number of its protocol.
        versions: of its libraries, by name.
        model: folder of the model that it started with.
        weights: name of the weights that it holds; empty: not known, as loading them failed.
        device: what it computes on.
        pid: number of its process.
        held_videos: number of videos that it holds.
    """

    protocol: int
    versions: Mapping[str, str]
    model: str
    weights: str
    device: str
    pid: int
    held_videos: int

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, body: bytes) -> Health:
        """Read a health message.

        Raises:
            WireError: it is none.
        """
        try:
            return cls(**json.loads(body))
        except (ValueError, TypeError) as error:
            raise WireError(f"the body is not a health message: {error!r}") from error


@dataclass(frozen=True)
class Manifest:
    """Description of a folder of weights: their name, and the size of each file in bytes."""

    name: str
    files: Mapping[str, int]

    def write(self, folder: Path) -> None:
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read the description of a folder of weights, and check that the weights are whole.

    Raises:
        WireError: there is none, or a file is missing or has another size.
    """
    try:
        data = json.loads((folder / MANIFEST).read_text())
        manifest = Manifest(str(data["name"]), {str(name): int(size) for name, size in data["files"].items()})
    except FileNotFoundError as error:
        raise WireError(f"{folder} holds no {MANIFEST}: it is half-written, was removed, or is elsewhere") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise WireError(f"{folder / MANIFEST} cannot be read: {error!r}") from error
    for name, size in manifest.files.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            raise WireError(f"{file} has {'no' if found is None else found} bytes of {size}: it is half-written")
    return manifest


def error_body(code: str, problem: str, videos: Sequence[str] = ()) -> bytes:
    """Body of an error."""
    return json.dumps({"error": {"code": code, "problem": problem, "videos": list(videos)}}).encode()


@dataclass(frozen=True)
class Error:
    """What an error's body says. ``code``: empty if it is no error of this protocol."""

    code: str
    problem: str
    videos: tuple[str, ...]

    @classmethod
    def decode(cls, body: bytes) -> Error:
        """Read any body."""
        try:
            error = json.loads(body)["error"]
            return cls(str(error["code"]), str(error["problem"]), tuple(map(str, error["videos"])))
        except (ValueError, TypeError, KeyError):
            return cls("", body[:200].decode(errors="replace"), ())
