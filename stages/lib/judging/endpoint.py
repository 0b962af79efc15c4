"""Models behind an OpenAI-compatible endpoint (vLLM, or a hosted one): many questions at once, each asked once."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple, TypeVar

import httpx
from pydantic import ConfigDict, ValidationError

from stages.domain.core.records import Record, Verdict
from stages.domain.tasks.rewards import Judge
from stages.lib.judging.prompts import Question, read_answer
from stages.lib.judging.questions import AskingJudge, NotingJudge, in_rounds
from stages.params import OpenAIJudgeParams
from stages.runtime.answer_cache import Cache, open_cache
from stages.runtime.endpoints import EndpointSettings
from stages.runtime.http import NoAnswer, complete, open_client

Result = TypeVar("Result")

#: How often to look whether another process, which asks the same, has its answer.
_POLL_S = 0.05
#: After so many unanswered questions in a row for each slot, the rest of a batch is not asked: the endpoint is down.
_GIVE_UP_AFTER = 2


class _Open(Record):
    """The part of an endpoint's answer that is read; it may hold more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _Message(_Open):
    content: str | None = None


class _Choice(_Open):
    message: _Message
    finish_reason: str | None = None


class _CachedTokens(_Open):
    cached_tokens: int | None = None


class _Tokens(_Open):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _CachedTokens | None = None


class _Completion(_Open):
    choices: tuple[_Choice, ...]
    usage: _Tokens | None = None


class Speaker(NamedTuple):
    """Who is asked: all that decides an answer apart from the question. ``table``: where in ``params.yaml`` it stands."""

    table: str
    model: str
    revision: str
    temperature: float
    max_tokens: int
    seed: int


class Endpoint:
    """Asks one model any questions.

    ``usage`` counts since the start of this process: questions, cache_hits, requests, retries, invalid, unavailable, and tokens
    (prompt_tokens, completion_tokens, and cached_tokens, those of the prompt that the endpoint had seen before).
    """

    def __init__(self, speaker: Speaker, place: EndpointSettings) -> None:
        self.name = f"{speaker.model}@{speaker.revision}"
        self.usage: Counter[str] = Counter()
        #: Why the last question that got no readable answer got none.
        self.last_error = ""
        self._speaker = speaker
        self._place = place
        self._failed_in_a_row = 0

    @property
    def where(self) -> str:
        """The variable that names its address."""
        return f"VIDBRIDGE_{self._place.role}_URL"

    def ask(self, questions: Collection[Question]) -> dict[Question, Record]:
        """An answer, or a verdict ``invalid`` or ``unavailable``, for each question; they are asked side by side.

        Raises:
            JudgeError: the endpoint refuses such requests, or the cache cannot be used.
        """
        wanted = list(dict.fromkeys(questions))
        self._failed_in_a_row = 0
        return dict(zip(wanted, asyncio.run(self._ask(wanted)), strict=True))

    async def _ask(self, questions: Collection[Question]) -> list[Record]:
        slots = asyncio.Semaphore(self._place.concurrency)
        with open_cache(self._place.cache) as cache:
            async with open_client(self._place) as client:
                try:
                    async with asyncio.TaskGroup() as group:
                        tasks = [group.create_task(self._settle(question, cache, client, slots)) for question in questions]
                except ExceptionGroup as several:
                    # The first has ended the others, and says it all.
                    raise several.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _settle(self, question: Question, cache: Cache, client: httpx.AsyncClient, slots: asyncio.Semaphore) -> Record:
        body = self._body(question)
        key = self._key(body)
        self.usage["questions"] += 1
        while True:
            # The slot is kept through retries, so that an endpoint that is overloaded is asked less.
            async with slots:
                if (known := self._known(question, key, cache)) is not None:
                    return known
                if cache.claim(key):
                    try:
                        # Between the look and the claim another process may have had its answer.
                        if (known := self._known(question, key, cache)) is not None:
                            return known
                        return await self._fetch(question, body, key, cache, client)
                    finally:
                        cache.release(key)
            await asyncio.sleep(_POLL_S)

    def _known(self, question: Question, key: str, cache: Cache) -> Record | None:
        text = cache.get(key)
        answer = read_answer(question.form, text, question.text) if text is not None else None
        if answer is not None:
            self.usage["cache_hits"] += 1
        return answer

    async def _fetch(self, question: Question, body: dict[str, Any], key: str, cache: Cache, client: httpx.AsyncClient) -> Record:
        if self._failed_in_a_row >= _GIVE_UP_AFTER * self._place.concurrency:
            return self._failed("unavailable", f"not asked, since {self._failed_in_a_row} questions before it got no answer")
        try:
            response = await complete(client, self._place, body, self.usage, self._speaker.table)
        except NoAnswer as error:
            self._failed_in_a_row += 1
            self.last_error = str(error)
            return self._failed("unavailable", str(error))
        self._failed_in_a_row = 0
        text, why = self._content(response)
        answer = read_answer(question.form, text, question.text) if text is not None else None
        if text is None or answer is None:
            self.last_error = f"unreadable answer: {why}"
            return self._failed("invalid", why)
        cache.put(key, text)
        return answer

    def _content(self, response: httpx.Response) -> tuple[str | None, str]:
        """What the model wrote, and what to say if that turns out not to be the JSON asked for."""
        try:
            completion = _Completion.model_validate_json(response.content)
        except ValidationError:
            return None, "the endpoint's answer is no chat completion"
        if completion.usage is not None:
            self.usage["prompt_tokens"] += completion.usage.prompt_tokens
            self.usage["completion_tokens"] += completion.usage.completion_tokens
            details = completion.usage.prompt_tokens_details
            self.usage["cached_tokens"] += (details.cached_tokens or 0) if details is not None else 0
        if not completion.choices or completion.choices[0].message.content is None:
            return None, "the model wrote nothing"
        choice = completion.choices[0]
        if choice.finish_reason == "length":
            return None, f"cut off after {self._speaker.table}.max_tokens ({self._speaker.max_tokens}) tokens"
        return choice.message.content, "no single answer of the form that was asked for can be read"

    def _failed(self, outcome: str, reason: str) -> Verdict:
        self.usage[outcome] += 1
        return Verdict.model_validate({"outcome": outcome, "reason": reason, "judge": self.name})

    def _body(self, question: Question) -> dict[str, Any]:
        return {
            "model": self._speaker.model,
            "messages": question.messages,
            # An endpoint that leaves this out of account (transformers serve) is bound by the prompt alone; how much of what it then
            # writes can be read, stages/lib/judging/reading.py says.
            "response_format": question.response_format,
            "temperature": self._speaker.temperature,
            "max_tokens": self._speaker.max_tokens,
            "seed": self._speaker.seed + question.draw,
        }

    def _key(self, body: dict[str, Any]) -> str:
        """What the answer depends on: all that is sent, and the revision. Not where it is sent."""
        identity = json.dumps({**body, "revision": self._speaker.revision}, sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()


class EndpointJudge(Endpoint, AskingJudge):
    """A judge that is a language model; ``score_many`` asks side by side."""

    def __init__(self, params: OpenAIJudgeParams, place: EndpointSettings) -> None:
        self.max_unavailable = params.max_unavailable
        speaker = Speaker("judge", params.model, params.revision, params.temperature, params.max_tokens, params.seed)
        super().__init__(speaker, place)

    def answer(self, question: Question) -> Record:
        return self.ask([question])[question]

    def score_many(self, score: Callable[[Judge], Result]) -> Result:
        """
        Raises:
            JudgeError: the judge cannot be used as it is set up.
        """
        return in_rounds(self.ask, partial(NotingJudge, self.name), score)
