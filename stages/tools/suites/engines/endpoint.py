"""A model behind an OpenAI-compatible chat endpoint (vLLM, or a hosted one): questions side by side, a video prepared once for all."""

from __future__ import annotations

import asyncio
import base64
import tempfile
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from stages.domain.core.frames import Frames
from stages.lib.video.encoder import encode
from stages.lib.video.errors import VideoError
from stages.runtime.endpoints import EndpointSettings
from stages.runtime.http import NoAnswer, Refused, complete, open_client
from stages.tools.suites.engines.models import MAX_PIXELS_PER_FRAME
from stages.tools.suites.engines.questions import Answer, Load, Question, Tell, seen

#: How a video is sent: its frames as pictures one after the other, or as one short video of exactly these frames.
Form = Literal["jpeg", "mp4"]
#: Hardly to be told from the frames themselves.
JPEG_QUALITY, MP4_CRF = 92, 14
#: After so many questions in a row without an answer, for each that may be under way, the rest is not asked: the endpoint is down.
_GIVE_UP_AFTER = 2
#: Statuses that speak of one question: it is too long, or holds what the endpoint does not take.
_OF_ONE_QUESTION = frozenset({400, 413, 422})


class _Open(BaseModel):
    """The part of an endpoint's answer that is read; it may hold more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _Message(_Open):
    content: str | None = None
    #: Thinking, where the endpoint sets it apart; its name differs.
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(_Open):
    message: _Message


class _Completion(_Open):
    choices: tuple[_Choice, ...]


class EndpointModel:
    """A model that is asked over HTTP.

    ``usage`` counts requests and retries.

    Args:
        model: as the endpoint names it.
        seed: sent along, and that of the order in which shuffled videos are shown.
    """

    def __init__(self, model: str, place: EndpointSettings, form: Form, max_new_tokens: int, seed: int) -> None:
        self.usage: Counter[str] = Counter()
        self._model, self._place, self._form = model, place, form
        self._max_new_tokens, self._seed = max_new_tokens, seed
        self._failed_in_a_row = 0

    def answer(self, asked: Sequence[Question], pending: set[Question], load: Load, tell: Tell) -> None:
        """Ask what is pending; ``tell`` is called after each answer. A question that the endpoint does not answer has none.

        Raises:
            JudgeError: the endpoint takes no question at all (key, address, name of the model).
        """
        self._failed_in_a_row = 0
        asyncio.run(self._answer([question for question in asked if question in pending], load, tell))

    async def _answer(self, asked: Sequence[Question], load: Load, tell: Tell) -> None:
        slots = asyncio.Semaphore(self._place.concurrency)
        async with open_client(self._place) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for sight, about in groupby(asked, key=lambda question: question.sight):
                        await self._about(sight, list(about), load, tell, group, slots, client)
            except ExceptionGroup as several:
                # The first has ended the others, and says it all.
                raise several.exceptions[0] from None

    async def _about(
        self,
        sight: str,
        asked: Sequence[Question],
        load: Load,
        tell: Tell,
        group: asyncio.TaskGroup,
        slots: asyncio.Semaphore,
        client: httpx.AsyncClient,
    ) -> None:
        """Start the questions about one sight, each when there is a slot: so no more videos are in memory than are asked about."""
        if self._is_down():
            tell([self._not_asked(question) for question in asked])
            return
        try:
            frames = await asyncio.to_thread(load, sight)
        except VideoError as error:
            tell([Answer(question, None, 0, str(error)) for question in asked])
            return
        for view, questions in groupby(asked, key=lambda question: question.view):
            same = list(questions)
            try:
                content = await asyncio.to_thread(content_of, seen(frames, view, f"{self._seed}/{sight}"), self._form)
            except VideoError as error:
                tell([Answer(question, None, 0, str(error)) for question in same])
                continue
            for question in same:
                await slots.acquire()
                group.create_task(self._one(question, content, len(frames.pixels), client, slots, tell))

    async def _one(
        self, question: Question, content: list[Any], frames: int, client: httpx.AsyncClient, slots: asyncio.Semaphore, tell: Tell
    ) -> None:
        try:
            tell([await self._ask(question, content, frames, client)])
        finally:
            slots.release()

    async def _ask(self, question: Question, content: list[Any], frames: int, client: httpx.AsyncClient) -> Answer:
        if self._is_down():
            return self._not_asked(question)
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": [*content, {"type": "text", "text": question.prompt}]}],
            "temperature": 0,
            "max_tokens": self._max_new_tokens,
            "seed": self._seed,
        }
        try:
            response = await complete(client, self._place, body, self.usage, "evaluation")
        except NoAnswer as error:
            self._failed_in_a_row += 1
            return Answer(question, None, frames, f"no answer: {error}")
        except Refused as error:
            if error.status not in _OF_ONE_QUESTION:
                raise
            self._failed_in_a_row += 1
            return Answer(question, None, frames, str(error))
        self._failed_in_a_row = 0
        return _read(question, frames, response)

    def _is_down(self) -> bool:
        return self._failed_in_a_row >= _GIVE_UP_AFTER * self._place.concurrency

    def _not_asked(self, question: Question) -> Answer:
        return Answer(question, None, 0, f"not asked, since {self._failed_in_a_row} questions before it got no answer")


def _read(question: Question, frames: int, response: httpx.Response) -> Answer:
    try:
        completion = _Completion.model_validate_json(response.content)
    except ValidationError:
        return Answer(question, None, frames, "the endpoint's answer is no chat completion")
    message = completion.choices[0].message if completion.choices else _Message()
    thinking = message.reasoning_content or message.reasoning
    if message.content is None and not thinking:
        return Answer(question, None, frames, "the model wrote nothing")
    # A reply that was cut off at its limit is a reply, as with any other model, while it was thinking too.
    reply = message.content if message.content is not None else f"<think>{thinking}"
    # Half a surrogate pair could not be written down.
    reply = reply.encode("utf-8", "replace").decode("utf-8")
    return Answer(question, reply, frames, "")


def content_of(frames: Frames, form: Form) -> list[Any]:
    """The parts of a chat message that show these frames, each at most :data:`MAX_PIXELS_PER_FRAME` pixels.

    Raises:
        VideoError: they cannot be encoded.
    """
    pictures = [_fitted(pixels) for pixels in frames.pixels]
    if form == "mp4":
        return [{"type": "video_url", "video_url": {"url": _data_url("video/mp4", _mp4(pictures, frames))}}]
    return [{"type": "image_url", "image_url": {"url": _data_url("image/jpeg", _jpeg(picture))}} for picture in pictures]


def _fitted(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Image.Image:
    """The frame as a picture with even sides, scaled down where it is too large."""
    picture = Image.fromarray(pixels)
    scale = min(1.0, (MAX_PIXELS_PER_FRAME / (picture.width * picture.height)) ** 0.5)
    size = (max(2, int(picture.width * scale) // 2 * 2), max(2, int(picture.height * scale) // 2 * 2))
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)


def _jpeg(picture: Image.Image) -> bytes:
    out = BytesIO()
    picture.save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


def _mp4(pictures: Sequence[Image.Image], frames: Frames) -> bytes:
    """A video of these pictures that lasts about as long as what they were taken from."""
    rate = max(Fraction(len(pictures)) * frames.rate / frames.total, Fraction(1, 60)).limit_denominator(1000)
    with tempfile.TemporaryDirectory(prefix="vidbridge-") as folder:
        file = Path(folder) / "shown.mp4"
        encode(np.stack([np.asarray(picture) for picture in pictures]), rate, file, MP4_CRF)
        return file.read_bytes()


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
