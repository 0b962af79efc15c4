"""A model behind an OpenAI-compatible chat endpoint (vLLM, or a hosted one): parallel questions,
each video prepared once."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
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
from stages.runtime.endpoint.client import NoAnswer, Refused, complete, open_client
from stages.runtime.endpoint.pictures import data_url, fitted, jpeg_url
from stages.runtime.endpoint.settings import EndpointSettings
from stages.tools.suites.engines.models import MAX_PIXELS_PER_FRAME
from stages.tools.suites.engines.questions import Answer, Load, OnAnswers, Question, apply_view, seed_of

#: Form of a video in a request: its frames as pictures one after the other, or as one short video
#: of exactly these frames.
Form = Literal["jpeg", "mp4"]
#: Quality at which the loss is hardly visible.
JPEG_QUALITY, MP4_CRF = 92, 14
#: After this many consecutive failures, per question that may be in flight, the rest is skipped:
#: the endpoint is down.
_GIVE_UP_AFTER = 2
#: Statuses that concern one question: it is too long, or has content that the endpoint does not
#: accept.
_OF_ONE_QUESTION = frozenset({400, 413, 422})


class _Open(BaseModel):
    """The fields of an endpoint's response that are read; others are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _Message(_Open):
    content: str | None = None
    #: Thinking, if the endpoint separates it; the field's name differs.
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(_Open):
    message: _Message


class _Completion(_Open):
    choices: tuple[_Choice, ...]


class EndpointModel:
    """A model that is queried over HTTP.

    ``usage`` counts requests and retries.

    Args:
        model: its name at the endpoint.
        seed: sent with each request, and the seed of the frame order of shuffled videos. A sampled
            reply has one of its own, which follows from it.
        temperature: of sampled replies; 0: none are asked for.
    """

    def __init__(
        self, model: str, place: EndpointSettings, form: Form, max_new_tokens: int, seed: int, temperature: float = 0.0
    ) -> None:
        self.usage: Counter[str] = Counter()
        self._model, self._place, self._form = model, place, form
        self._max_new_tokens, self._seed, self._temperature = max_new_tokens, seed, temperature
        self._failed_in_a_row = 0

    def answer(self, questions: Sequence[Question], pending: set[Question], load: Load, on_answers: OnAnswers) -> None:
        """Ask the pending questions; ``on_answers`` is called after each answer. A question that
        the endpoint does not answer has none.

        Raises:
            JudgeError: the endpoint refuses all questions (key, address, name of the model).
        """
        self._failed_in_a_row = 0
        asyncio.run(self._answer([question for question in questions if question in pending], load, on_answers))

    async def _answer(self, questions: Sequence[Question], load: Load, on_answers: OnAnswers) -> None:
        slots = asyncio.Semaphore(self._place.concurrency)
        async with open_client(self._place) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for video_key, about in groupby(questions, key=lambda question: question.video_key):
                        await self._about(video_key, list(about), load, on_answers, group, slots, client)
            except ExceptionGroup as several:
                # The first has ended the others, and its message covers them.
                raise several.exceptions[0] from None

    async def _about(
        self,
        video_key: str,
        of_video: Sequence[Question],
        load: Load,
        on_answers: OnAnswers,
        group: asyncio.TaskGroup,
        slots: asyncio.Semaphore,
        client: httpx.AsyncClient,
    ) -> None:
        """Start the questions about one video, each when there is a slot: this bounds the number of
        videos in memory."""
        if self._is_down():
            on_answers([self._skipped(question) for question in of_video])
            return
        try:
            frames = await asyncio.to_thread(load, video_key)
        except VideoError as error:
            on_answers([Answer(question, None, 0, str(error)) for question in of_video])
            return
        for view, questions in groupby(of_video, key=lambda question: question.view):
            same = list(questions)
            try:
                content = await asyncio.to_thread(
                    content_of, apply_view(frames, view, f"{self._seed}/{video_key}"), self._form
                )
            except VideoError as error:
                on_answers([Answer(question, None, 0, str(error)) for question in same])
                continue
            for question in same:
                await slots.acquire()
                group.create_task(self._one(question, content, len(frames.pixels), client, slots, on_answers))

    async def _one(
        self,
        question: Question,
        content: list[Any],
        frames: int,
        client: httpx.AsyncClient,
        slots: asyncio.Semaphore,
        on_answers: OnAnswers,
    ) -> None:
        try:
            on_answers([await self._ask(question, content, frames, client)])
        finally:
            slots.release()

    async def _ask(self, question: Question, content: list[Any], frames: int, client: httpx.AsyncClient) -> Answer:
        if self._is_down():
            return self._skipped(question)
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": [*content, {"type": "text", "text": question.prompt}]}],
            "temperature": 0 if question.number is None else self._temperature,
            "max_tokens": self._max_new_tokens,
            "seed": self._seed if question.number is None else _number(seed_of(self._seed, question)),
        }
        try:
            response = await complete(client, self._place, body, self.usage, "evaluation")
        except NoAnswer as error:
            self._failed_in_a_row += 1
            return Answer(question, None, frames, f"no answer: {error}")
        except Refused as error:
            if error.http_status not in _OF_ONE_QUESTION:
                raise
            self._failed_in_a_row += 1
            return Answer(question, None, frames, str(error))
        self._failed_in_a_row = 0
        return _read(question, frames, response)

    def _is_down(self) -> bool:
        return self._failed_in_a_row >= _GIVE_UP_AFTER * self._place.concurrency

    def _skipped(self, question: Question) -> Answer:
        return Answer(question, None, 0, f"not asked, since {self._failed_in_a_row} questions before it got no answer")


def _number(seed: str) -> int:
    """A seed as endpoints take it: below 2 ** 31."""
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big") >> 1


def _read(question: Question, frames: int, response: httpx.Response) -> Answer:
    try:
        completion = _Completion.model_validate_json(response.content)
    except ValidationError:
        return Answer(question, None, frames, "the endpoint's answer is not a chat completion")
    message = completion.choices[0].message if completion.choices else _Message()
    thinking = message.reasoning_content or message.reasoning
    if message.content is None and not thinking:
        return Answer(question, None, frames, "the model wrote nothing")
    # A reply that was cut off at its limit is a reply, as with any other model, also while it was
    # thinking.
    reply = message.content if message.content is not None else f"<think>{thinking}"
    # Half a surrogate pair could not be written to a file.
    reply = reply.encode("utf-8", "replace").decode("utf-8")
    return Answer(question, reply, frames, "")


def content_of(frames: Frames, form: Form) -> list[Any]:
    """Content parts of a chat message with these frames, each at most :data:`MAX_PIXELS_PER_FRAME`
    pixels.

    Raises:
        VideoError: they cannot be encoded.
    """
    pictures = [fitted(pixels, MAX_PIXELS_PER_FRAME) for pixels in frames.pixels]
    if form == "mp4":
        return [{"type": "video_url", "video_url": {"url": data_url("video/mp4", _mp4(pictures, frames))}}]
    return [{"type": "image_url", "image_url": {"url": jpeg_url(picture, JPEG_QUALITY)}} for picture in pictures]


def _mp4(pictures: Sequence[Image.Image], frames: Frames) -> bytes:
    """Encode these pictures as a video that lasts about as long as the original."""
    rate = max(Fraction(len(pictures)) * frames.rate / frames.total, Fraction(1, 60)).limit_denominator(1000)
    with tempfile.TemporaryDirectory(prefix="vidbridge-") as folder:
        file = Path(folder) / "shown.mp4"
        encode(np.stack([np.asarray(picture) for picture in pictures]), rate, file, MP4_CRF)
        return file.read_bytes()
