"""Server's side of the protocol around any engine: what it holds, who may ask, what is answered.

Runs in the engine's environment: the standard library, numpy and Starlette only.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stages.lib.engine import wire
from stages.lib.engine.wire import Answer, Health, Question, Reply, Sampling, Video, WireError

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Refused(Exception):
    """The model cannot do what is asked; the text says why."""


class OutOfMemory(Exception):
    """The engine's memory does not suffice; the text says for what."""


class Died(Exception):
    """The engine cannot go on; the text says why."""


class Engine(Protocol):
    """Something that draws replies."""

    #: Of its libraries, by name.
    versions: Mapping[str, str]
    model: str
    device: str

    async def generate(
        self, question: Question, videos: Sequence[Video], seeds: Sequence[str | None], sampling: Sampling
    ) -> tuple[list[int], list[Reply]]:
        """The prompt's token ids as the model read them, and a reply for each seed.

        Raises:
            Refused, OutOfMemory, Died: see there.
        """
        ...

    async def load_weights(self, folder: Path) -> None:
        """Replace the weights, and forget what was computed with the old ones. Nothing is generated
        in the meantime.

        Raises:
            Died: see there.
        """
        ...


class HeldVideos:
    """The most recently used videos, in up to ``limit_bytes``."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._videos: OrderedDict[str, Video] = OrderedDict()

    def __len__(self) -> int:
        return len(self._videos)

    def __getitem__(self, digest: str) -> Video:
        return self._videos[digest]

    def missing(self, digests: Sequence[str]) -> list[str]:
        """Those that are not held. Those that are become the most recently used."""
        for digest in digests:
            if digest in self._videos:
                self._videos.move_to_end(digest)
        return sorted({digest for digest in digests if digest not in self._videos})

    def add(self, digest: str, video: Video) -> None:
        """Hold a video, and let go of others that no longer fit.

        Raises:
            OutOfMemory: it is larger than the limit.
        """
        size = video.pixels.nbytes
        if size > self._limit_bytes:
            raise OutOfMemory(f"a video of {size:,} bytes, and the engine holds {self._limit_bytes:,} (--video-gb)")
        if digest in self._videos:
            return
        while self._bytes + size > self._limit_bytes:
            _, oldest = self._videos.popitem(last=False)
            self._bytes -= oldest.pixels.nbytes
        self._videos[digest] = video
        self._bytes += size


class Turnstile:
    """Many may generate at a time; who loads weights is alone, and is let in before those who came
    later."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._inside = 0
        self._loading = False

    @asynccontextmanager
    async def generating(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._loading)
            self._inside += 1
        try:
            yield
        finally:
            async with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @asynccontextmanager
    async def loading(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._loading)
            self._loading = True
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self._inside == 0)
            yield
        finally:
            async with self._changed:
                self._loading = False
                self._changed.notify_all()


class Answering:
    """An engine behind the protocol.

    Args:
        weights: name of the weights that the engine started with.
        key: that every request must name; None: none.
        video_bytes: memory for videos.
        on_death: called once the engine cannot go on.
    """

    def __init__(
        self, engine: Engine, *, weights: str, key: str | None, video_bytes: int, on_death: Callable[[], None]
    ) -> None:
        self._engine = engine
        self._weights = weights
        self._key = key
        self._videos = HeldVideos(video_bytes)
        self._turnstile = Turnstile()
        self._on_death = on_death

    def app(self) -> Starlette:
        """Application that a server runs."""
        return Starlette(
            routes=[
                Route("/health", self._guarded(self._health), methods=["GET"]),
                Route("/videos/{digest}", self._guarded(self._put_video), methods=["PUT"]),
                Route("/generate", self._guarded(self._generate), methods=["POST"]),
                Route("/weights", self._guarded(self._load), methods=["POST"]),
            ]
        )

    def _guarded(
        self, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Check key and protocol before ``handler``, and answer what it raises."""

        async def guarded(request: Request) -> Response:
            response = self._refusal(request)
            if response is None:
                try:
                    response = await handler(request)
                except WireError as error:
                    response = _error(400, wire.REFUSED, str(error))
                except Refused as error:
                    response = _error(400, wire.REFUSED, str(error))
                except OutOfMemory as error:
                    response = _error(507, wire.MEMORY, str(error))
                except Died as error:
                    self._on_death()
                    response = _error(503, wire.DIED, str(error))
            response.headers[wire.HEADER] = str(wire.PROTOCOL)
            return response

        return guarded

    def _refusal(self, request: Request) -> Response | None:
        if self._key is not None:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self._key.encode()):
                return _error(401, wire.KEY, "the key is another one" if given else "a key is needed")
        protocol = request.headers.get(wire.HEADER)
        if protocol != str(wire.PROTOCOL):
            return _error(
                400, wire.OTHER_PROTOCOL, f"the engine speaks protocol {wire.PROTOCOL}, the client {protocol or 'none'}"
            )
        return None

    def _state(self) -> Response:
        engine = self._engine
        state = Health(
            wire.PROTOCOL,
            dict(engine.versions),
            engine.model,
            self._weights,
            engine.device,
            os.getpid(),
            len(self._videos),
        )
        return _json(200, state.encode())

    async def _health(self, _: Request) -> Response:
        return self._state()

    async def _put_video(self, request: Request) -> Response:
        video = Video.from_body(await request.body())
        digest = request.path_params["digest"]
        if video.digest != digest:
            raise WireError(f"the video's digest is {video.digest}, not {digest}")
        self._videos.add(digest, video)
        return Response(status_code=204)

    async def _generate(self, request: Request) -> Response:
        asked = wire.Request.decode(await request.body())
        async with self._turnstile.generating():
            if asked.weights is not None and asked.weights != self._weights:
                problem = f"it holds the weights {self._weights!r}, and {asked.weights!r} should draw"
                return _error(409, wire.STALE_WEIGHTS, problem)
            if missing := self._videos.missing([digest for question in asked.questions for digest in question.videos]):
                return _error(409, wire.UNKNOWN_VIDEOS, f"{len(missing)} videos are not held", missing)
            answer = await _unless_gone(request, self._answer(asked))
        return _json(200, answer.encode())

    async def _answer(self, asked: wire.Request) -> Answer:
        # Held here: other requests may push them out.
        videos = [[self._videos[digest] for digest in question.videos] for question in asked.questions]
        numbers: list[list[int]] = [[] for _ in asked.questions]
        for number, draw in enumerate(asked.draws):
            numbers[draw.question].append(number)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(
                        self._engine.generate(question, own, [asked.draws[n].seed for n in drawn], asked.sampling)
                    )
                    for question, own, drawn in zip(asked.questions, videos, numbers, strict=True)
                ]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        replies: dict[int, Reply] = {}
        for drawn, task in zip(numbers, tasks, strict=True):
            replies |= zip(drawn, task.result()[1], strict=True)
        return Answer([task.result()[0] for task in tasks], [replies[n] for n in range(len(asked.draws))])

    async def _load(self, request: Request) -> Response:
        try:
            asked = json.loads(await request.body())
            folder, name = Path(asked["folder"]), str(asked["name"])
        except (ValueError, TypeError, KeyError) as error:
            raise WireError(f"the body names no weights: {error!r}") from error
        async with self._turnstile.loading():
            try:
                manifest = wire.read_manifest(folder)
            except WireError as error:
                return _error(422, wire.WEIGHTS, str(error))
            if manifest.name != name:
                return _error(422, wire.WEIGHTS, f"{folder} holds the weights {manifest.name!r}, not {name!r}")
            # Until they are loaded whole, nobody knows what the engine holds.
            self._weights = ""
            await self._engine.load_weights(folder)
            self._weights = name
        return self._state()


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Do the work, unless the client leaves: then nobody waits for it."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            log.info("the client left: its request is given up")
            raise Refused("the client left")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


def end_with_parent(parent: int, *, every_s: float = 0.5) -> None:
    """Kill this process's group once its parent is another process than ``parent``.

    A process that is killed cannot end its children, and what vLLM starts does not end by itself.
    """

    def watch() -> None:
        waiting = threading.Event()
        while os.getppid() == parent:
            waiting.wait(every_s)
        end_group()

    threading.Thread(target=watch, name="parent", daemon=True).start()


def end_group() -> None:
    """Kill all processes of this process's group, this one too. It must lead the group."""
    import signal

    os.killpg(os.getpid(), signal.SIGKILL)


def _json(status: int, body: bytes) -> Response:
    return Response(body, status_code=status, media_type="application/json")


def _error(status: int, code: str, problem: str, videos: Sequence[str] = ()) -> Response:
    return _json(status, wire.error_body(code, problem, videos))
