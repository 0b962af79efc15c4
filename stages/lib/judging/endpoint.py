"""Models behind an OpenAI-compatible endpoint (vLLM, or a hosted one): concurrent requests, cached
answers."""

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
from stages.lib.judging.questions import AskingJudge, CollectingJudge, in_rounds
from stages.params import OpenAIJudgeParams
from stages.runtime.endpoint.answer_cache import Cache, open_cache
from stages.runtime.endpoint.client import NoAnswer, complete, open_client
from stages.runtime.endpoint.settings import EndpointSettings

Result = TypeVar("Result")

#: Interval between checks of the cache while another process requests the same answer.
_POLL_S = 0.05
#: After this many failed requests in a row per slot, the rest of a batch is not sent: the endpoint
#: is down.
_GIVE_UP_AFTER = 2


class _Open(Record):
    """The parts of an endpoint's response that are read; other keys are ignored."""

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


class ModelSpec(NamedTuple):
    """Model and decoding settings: everything that decides an answer apart from the question.
    ``table``: its place in ``params.yaml``."""

    table: str
    model: str
    revision: str
    temperature: float
    max_tokens: int
    seed: int


class Endpoint:
    """Client that sends questions to one model.

    ``usage`` counts since the start of this process: questions, cache_hits, requests, retries,
    invalid, unavailable, and tokens (prompt_tokens, completion_tokens, and cached_tokens, the
    prompt tokens in the endpoint's own cache).
    """

    def __init__(self, spec: ModelSpec, place: EndpointSettings) -> None:
        self.name = f"{spec.model}@{spec.revision}"
        self.usage: Counter[str] = Counter()
        #: Reason of the last question without a usable answer.
        self.last_error = ""
        self._spec = spec
        self._place = place
        self._failed_in_a_row = 0

    @property
    def where(self) -> str:
        """Name of the environment variable with its address."""
        return f"VIDBRIDGE_{self._place.role}_URL"

    def ask(self, questions: Collection[Question]) -> dict[Question, Record]:
        """Answer each question, concurrently; a failed one gets a verdict ``invalid`` or
        ``unavailable``.

        Raises:
            JudgeError: the endpoint refuses such requests, or the cache cannot be used.
        """
        distinct = list(dict.fromkeys(questions))
        self._failed_in_a_row = 0
        return dict(zip(distinct, asyncio.run(self._ask(distinct)), strict=True))

    async def _ask(self, questions: Collection[Question]) -> list[Record]:
        slots = asyncio.Semaphore(self._place.concurrency)
        with open_cache(self._place.cache) as cache:
            async with open_client(self._place) as client:
                try:
                    async with asyncio.TaskGroup() as group:
                        tasks = [
                            group.create_task(self._resolve(question, cache, client, slots)) for question in questions
                        ]
                except ExceptionGroup as group_error:
                    # The first one cancelled the others and is the cause.
                    raise group_error.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _resolve(
        self, question: Question, cache: Cache, client: httpx.AsyncClient, slots: asyncio.Semaphore
    ) -> Record:
        body = self._body(question)
        key = self._key(body)
        self.usage["questions"] += 1
        while True:
            # The slot stays occupied during retries, so an overloaded endpoint gets fewer requests.
            async with slots:
                if (cached := self._cached(question, key, cache)) is not None:
                    return cached
                if cache.claim(key):
                    try:
                        # Another process may have stored its answer between the lookup and the
                        # claim.
                        if (cached := self._cached(question, key, cache)) is not None:
                            return cached
                        return await self._fetch(question, body, key, cache, client)
                    finally:
                        cache.release(key)
            await asyncio.sleep(_POLL_S)

    def _cached(self, question: Question, key: str, cache: Cache) -> Record | None:
        text = cache.get(key)
        answer = read_answer(question.form, text, question.text) if text is not None else None
        if answer is not None:
            self.usage["cache_hits"] += 1
        return answer

    async def _fetch(
        self, question: Question, body: dict[str, Any], key: str, cache: Cache, client: httpx.AsyncClient
    ) -> Record:
        if self._failed_in_a_row >= _GIVE_UP_AFTER * self._place.concurrency:
            return self._failed(
                "unavailable", f"not asked, since {self._failed_in_a_row} questions before it got no answer"
            )
        try:
            response = await complete(client, self._place, body, self.usage, self._spec.table)
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
        """Extract the model's text, and the reason to report if it is not the requested JSON."""
        try:
            completion = _Completion.model_validate_json(response.content)
        except ValidationError:
            return None, "the endpoint's answer is not a chat completion"
        if completion.usage is not None:
            self.usage["prompt_tokens"] += completion.usage.prompt_tokens
            self.usage["completion_tokens"] += completion.usage.completion_tokens
            details = completion.usage.prompt_tokens_details
            self.usage["cached_tokens"] += (details.cached_tokens or 0) if details is not None else 0
        if not completion.choices or completion.choices[0].message.content is None:
            return None, "the model wrote nothing"
        choice = completion.choices[0]
        if choice.finish_reason == "length":
            return None, f"cut off after {self._spec.table}.max_tokens ({self._spec.max_tokens}) tokens"
        return choice.message.content, "no single answer of the form that was asked for can be read"

    def _failed(self, outcome: str, reason: str) -> Verdict:
        self.usage[outcome] += 1
        return Verdict.model_validate({"outcome": outcome, "reason": reason, "judge": self.name})

    def _body(self, question: Question) -> dict[str, Any]:
        return {
            "model": self._spec.model,
            "messages": question.messages,
            # An endpoint that ignores this (transformers serve) has the prompt alone as guide;
            # stages/lib/judging/reading.py lists the forms of its answers that can be parsed.
            "response_format": question.response_format,
            "temperature": self._spec.temperature,
            "max_tokens": self._spec.max_tokens,
            "seed": self._spec.seed + question.draw,
        }

    def _key(self, body: dict[str, Any]) -> str:
        """Cache key of an answer: digest of the request body and the revision, without the
        address."""
        identity = json.dumps({**body, "revision": self._spec.revision}, sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()


class EndpointJudge(Endpoint, AskingJudge):
    """A language model as judge; ``score_many`` sends requests concurrently."""

    def __init__(self, params: OpenAIJudgeParams, place: EndpointSettings, table: str = "judge") -> None:
        self.max_unavailable = params.max_unavailable
        spec = ModelSpec(table, params.model, params.revision, params.temperature, params.max_tokens, params.seed)
        super().__init__(spec, place)

    @property
    def remedy(self) -> str:
        """Advice where too many replies have no verdict."""
        return f"Repair the endpoint at {self.where}"

    def answer(self, question: Question) -> Record:
        return self.ask([question])[question]

    def score_many(self, score: Callable[[Judge], Result]) -> Result:
        """Return the result of ``score``, in rounds of concurrent requests.

        Raises:
            JudgeError: the judge cannot be used with its configuration.
        """
        return in_rounds(self.ask, partial(CollectingJudge, self.name), score)
