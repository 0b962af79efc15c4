"""Client of a rollout engine, over a Unix socket or HTTP.

Frames go to the engine as they were trained on, and only those that it does not hold: mostly once a
training.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx

from stages.errors import InputError
from stages.lib.engine import wire
from stages.lib.engine.errors import (
    EngineError,
    EngineLost,
    EngineMemory,
    EngineMismatch,
    KeyRefused,
    PromptMismatch,
    RequestRefused,
    StaleWeights,
    WeightsError,
)
from stages.lib.engine.wire import Answer, Draw, Health, Question, Reply, Request, Sampling, Video

#: The engine's key; needed unless it listens on a Unix socket or on loopback.
KEY_VARIABLE = "VIDBRIDGE_ENGINE_KEY"
#: Time limit of a request, in seconds.
TIMEOUT_VARIABLE = "VIDBRIDGE_ENGINE_TIMEOUT_S"
#: A group of long replies of a large model takes minutes.
_TIMEOUT_S = 1800.0
_CONNECT_S = 10.0
#: Above what anybody means by a number of seconds or GiB.
_MOST = 1e6
#: Times that videos are sent for one request: twice if another client's pushed some out between.
_UPLOADS = 3
UNIX = "unix:"
Message = TypeVar("Message")


def number_of(name: str, default: float, unit: str, environ: Mapping[str, str], most: float = _MOST) -> float:
    """Read a number above 0 from an environment variable.

    Raises:
        InputError: it is none, or above ``most``.
    """
    value = environ.get(name, "").strip()
    try:
        number = float(value or default)
    except ValueError:
        number = math.nan
    if not 0 < number <= most:
        bound = "" if most == _MOST else f" and <= {most:g}"
        raise InputError(name, f"{value!r} is not a number of {unit}", f"set a number > 0{bound}, or unset it")
    return number


@dataclass(frozen=True, eq=False)
class Asked:
    """A question for the engine.

    Attributes:
        prompt_ids: token ids of the rendered prompt, one placeholder for each video.
        videos: in the order of their placeholders.
        expanded_ids: the ids that the model must read, placeholders expanded; None: not checked.
    """

    prompt_ids: Sequence[int]
    videos: Sequence[Video]
    expanded_ids: Sequence[int] | None = None


class EngineClient:
    """Connection to one rollout engine; threads may share it.

    Args:
        address: ``unix:PATH``, or ``http://HOST:PORT``.
        timeout_s: time limit of a request.

    Raises:
        InputError: the address is neither.
    """

    def __init__(self, address: str, *, key: str | None = None, timeout_s: float = _TIMEOUT_S) -> None:
        self.address = address
        if address.startswith(UNIX):
            transport = httpx.HTTPTransport(uds=address.removeprefix(UNIX))
            base = "http://engine"
        elif address.startswith(("http://", "https://")):
            transport, base = httpx.HTTPTransport(), address.rstrip("/")
        else:
            raise InputError(
                "VIDBRIDGE_ROLLOUT_ENGINE", f"{address!r} is not an address", "set unix:PATH or http://HOST:PORT"
            )
        headers = {wire.HEADER: str(wire.PROTOCOL)} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._http = httpx.Client(
            base_url=base,
            transport=transport,
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=_CONNECT_S),
            trust_env=False,
        )

    @classmethod
    def from_environment(cls, address: str, environ: Mapping[str, str] = os.environ) -> Self:
        """Connect with the key and the time limit of the environment.

        Raises:
            InputError: the address or the time limit is invalid.
        """
        timeout_s = number_of(TIMEOUT_VARIABLE, _TIMEOUT_S, "seconds", environ)
        return cls(address, key=environ.get(KEY_VARIABLE, "").strip() or None, timeout_s=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the engine goes on."""
        self._http.close()

    def health(self) -> Health:
        """State of the engine.

        Raises:
            EngineLost: it cannot be reached.
            EngineMismatch: it speaks another protocol, or has a vLLM that this client does not
                know.
            EngineError: it refuses to tell.
        """
        health = self._read(Health.decode, self._send("GET", "/health"))
        release = health.versions.get("vllm")
        if release is not None and not release.startswith(tuple(f"{known}." for known in wire.VLLM_RELEASES)):
            raise EngineMismatch(
                self.address,
                f"it runs vLLM {release}, and this version knows {', '.join(wire.VLLM_RELEASES)}",
                "build it again (make vllm)",
            )
        return health

    def generate(
        self, questions: Sequence[Asked], draws: Sequence[Draw], sampling: Sampling, *, weights: str | None = None
    ) -> list[Reply]:
        """Replies in the order of ``draws``.

        Args:
            weights: name of the weights that must draw them; None: any.

        Raises:
            EngineLost: it cannot be reached, ended in the meantime, or did not answer in time.
            PromptMismatch: it read other token ids than ``expanded_ids``.
            StaleWeights: it holds other weights.
            EngineMemory: it cannot hold the videos.
            EngineError: it refuses the request.
        """
        videos = {video.digest: video for asked in questions for video in asked.videos}
        body = Request(
            tuple(
                Question(tuple(asked.prompt_ids), tuple(video.digest for video in asked.videos)) for asked in questions
            ),
            tuple(draws),
            sampling,
            weights,
        ).encode()
        for attempt in range(_UPLOADS + 1):
            response = self._request("POST", "/generate", body)
            if response.is_success:
                return self._checked(questions, draws, self._read(Answer.decode, response.content))
            error = wire.Error.decode(response.content)
            if error.code != wire.UNKNOWN_VIDEOS or attempt == _UPLOADS:
                break
            for digest in error.videos:
                self._send("PUT", f"/videos/{digest}", videos[digest].body)
        raise self._error_of(response)

    def load_weights(self, folder: Path, name: str) -> Health:
        """Read the weights of a folder into the engine, once the requests that it answers are done.

        Raises:
            EngineLost: it cannot be reached, or ended in the meantime.
            WeightsError: it finds no complete weights of this name there.
            EngineError: it refuses.
        """
        body = json.dumps({"folder": str(folder.resolve()), "name": name}).encode()
        return self._read(Health.decode, self._send("POST", "/weights", body))

    def _checked(self, questions: Sequence[Asked], draws: Sequence[Draw], answer: Answer) -> list[Reply]:
        if len(answer.replies) != len(draws) or len(answer.read) != len(questions):
            raise EngineMismatch(
                self.address,
                f"it answers {len(draws)} replies to {len(questions)} questions with {len(answer.replies)} to"
                f" {len(answer.read)}",
                "build it again (make vllm)",
            )
        for number, (asked, read) in enumerate(zip(questions, answer.read, strict=True)):
            if asked.expanded_ids is None or read == list(asked.expanded_ids):
                continue
            pairs = enumerate(zip(read, asked.expanded_ids, strict=False))
            place = next((at for at, (a, b) in pairs if a != b), min(len(read), len(asked.expanded_ids)))
            raise PromptMismatch(
                self.address,
                f"it read {len(read)} tokens of prompt {number}, and {len(asked.expanded_ids)} are trained on; they"
                f" part at token {place}",
                "its vLLM expands videos in another way: set VIDBRIDGE_ROLLOUT_ENGINE=hf, and report this",
            )
        return answer.replies

    def _read(self, decode: Callable[[bytes], Message], body: bytes) -> Message:
        try:
            return decode(body)
        except wire.WireError as error:
            raise EngineMismatch(
                self.address, f"it answers with another message ({error})", "build it again (make vllm)"
            ) from error

    def _send(self, method: str, path: str, body: bytes = b"") -> bytes:
        response = self._request(method, path, body)
        if not response.is_success:
            raise self._error_of(response)
        return response.content

    def _request(self, method: str, path: str, body: bytes) -> httpx.Response:
        try:
            response = self._http.request(method, path, content=body)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise EngineLost(
                self.address, f"no engine answers there ({error})", "start it, or look at its log"
            ) from error
        except httpx.TimeoutException as error:
            raise EngineLost(
                self.address,
                f"no answer to {path} within {self._http.timeout.read:g} s",
                f"ask for less at a time, or raise {TIMEOUT_VARIABLE}",
            ) from error
        except httpx.TransportError as error:
            raise EngineLost(
                self.address,
                f"the engine ended while it answered {path} ({error})",
                "look at its log, and start it again",
            ) from error
        protocol = response.headers.get(wire.HEADER)
        if protocol is None and response.status_code == 500:
            raise EngineError(
                self.address, f"it failed to answer {path}: HTTP {response.status_code}", "look at its log"
            )
        if protocol != str(wire.PROTOCOL):
            raise EngineMismatch(
                self.address,
                "is not a rollout engine of VidBridge"
                if protocol is None
                else f"speaks protocol {protocol}, and this version {wire.PROTOCOL}",
                "run the engine and the training from one version of VidBridge",
            )
        return response

    def _error_of(self, response: httpx.Response) -> EngineError | WeightsError:
        error, address = wire.Error.decode(response.content), self.address
        other = "run the engine and the training from one version of VidBridge"
        match error.code:
            case wire.UNKNOWN_VIDEOS:
                return EngineMemory(
                    address,
                    f"it cannot hold the videos of one request: {len(error.videos)} are missing again",
                    "raise VIDBRIDGE_ENGINE_VIDEO_GB (--video-gb of its server), or ask for fewer at a time",
                )
            case wire.STALE_WEIGHTS:
                return StaleWeights(address, error.problem, "load those weights first")
            case wire.KEY:
                remedy = f"set {KEY_VARIABLE} to the same key where the engine and the training run"
                return KeyRefused(address, error.problem, remedy)
            case wire.OTHER_PROTOCOL:
                return EngineMismatch(address, error.problem, other)
            case wire.REFUSED:
                return RequestRefused(address, error.problem, "correct the request, or the engine's options")
            case wire.WEIGHTS:
                remedy = "write them again, in a folder that the engine sees under the same path"
                return WeightsError(address, error.problem, remedy)
            case wire.MEMORY:
                return EngineMemory(address, error.problem, "give the engine more memory, or ask for less at a time")
            case wire.DIED:
                return EngineLost(address, error.problem, "look at its log, and start it again")
        return EngineError(
            address, f"it answers with HTTP {response.status_code}: {error.problem}", "look at the engine's log"
        )
