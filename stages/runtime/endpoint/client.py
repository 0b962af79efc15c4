"""Requests to an OpenAI-compatible endpoint, with retries."""

from __future__ import annotations

import asyncio
import email.utils
import ssl
import time
from collections import Counter
from functools import cache
from random import Random
from typing import Any

import httpx

from stages.errors import Fault
from stages.runtime.endpoint.settings import EVALUATED, EndpointSettings, JudgeError

#: The first pause; each later one is twice as long, up to the longest, and each is shortened at
#: random by up to half.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
#: Longest ``Retry-After`` that is waited for.
LONGEST_WAIT_S = 300.0
_TRY_AGAIN = frozenset({408, 409, 425, 429})
_QUOTED_CHARACTERS = 300

#: Statuses that a retry does not change: what they say, and the remedy.
_FAULTS = {
    400: Fault(
        "the endpoint refuses such a request",
        "check {table}.model, {table}.max_tokens and that it offers response_format json_schema",
    ),
    401: Fault("the endpoint does not accept the key", "set {key}"),
    403: Fault("the key may not use this model", "check {key} and {table}.model"),
    404: Fault(
        "the address or the model does not exist",
        "{url} ends with /v1, and {table}.model is named as the endpoint names it",
    ),
}
#: The same for a model that is evaluated.
_MODEL_FAULTS = {
    **_FAULTS,
    400: Fault(
        "the endpoint refuses such a question",
        "check --endpoint-model, that it takes pictures (or --endpoint-video mp4), and how many",
    ),
    403: Fault("the key may not use this model", "check {key} and --endpoint-model"),
    404: Fault(
        "the address or the model does not exist",
        "{url} ends with /v1, and --endpoint-model is named as the endpoint names it",
    ),
}
_OTHER = Fault("it is not an OpenAI-compatible endpoint, or does not know such a request", "check {url}")
#: Statuses whose body is not quoted: it may repeat the key, or an unrecognisable part of it.
_NOT_QUOTED = frozenset({401, 403})

# Not the global generator: a training run saves and restores that one, and pauses must not change
# it.
_chance = Random()


class NoAnswer(Exception):
    """Every attempt failed temporarily; the message names the last failure."""


class Refused(JudgeError):
    """The endpoint refused the request with ``http_status``; a retry would not help."""

    def __init__(self, http_status: int, fault: Fault, variable: str) -> None:
        super().__init__(variable, *fault)
        self.args = (http_status, fault, variable)
        self.http_status = http_status


def open_client(settings: EndpointSettings) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        headers={"Authorization": f"Bearer {settings.key}"} if settings.key else {},
        timeout=settings.timeout_s,
        verify=_certificates(),
        limits=httpx.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency),
    )


@cache  # reading the certificates takes 20 ms, and a client serves one batch
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context()


async def complete(
    client: httpx.AsyncClient, settings: EndpointSettings, body: dict[str, Any], usage: Counter[str], table: str
) -> httpx.Response:
    """Send a request, and return the response of status 200 with any content. Counts ``requests``
    and ``retries`` in ``usage``.

    Args:
        table: table of ``params.yaml`` that names the model, for messages.

    Raises:
        NoAnswer: time-outs, broken connections, 429 or 5xx until the retries were used up.
        Refused: the endpoint refuses such requests.
    """
    for attempt in range(settings.retries + 1):
        usage["requests"] += 1
        requested_wait_s = 0.0
        try:
            # A limit of the whole exchange: the client's own limit restarts with every byte
            # received.
            async with asyncio.timeout(settings.timeout_s):
                response = await client.post(f"{settings.url}/chat/completions", json=body)
        except TimeoutError:
            reason = f"no answer within {settings.timeout_s:g} s"
        except (httpx.TransportError, httpx.DecodingError) as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        else:
            if response.status_code == 200:
                return response
            if response.status_code not in _TRY_AGAIN and response.status_code < 500:
                raise Refused(response.status_code, _refusal(response, settings, table), settings.url_name)
            reason = f"HTTP {response.status_code}"
            requested_wait_s = retry_after_s(response.headers.get("Retry-After", ""))
        if attempt == settings.retries or requested_wait_s > LONGEST_WAIT_S:
            break
        usage["retries"] += 1
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt) * _chance.uniform(0.5, 1.0)
        await asyncio.sleep(max(pause_s, requested_wait_s))
    wait = f", and asks to wait {requested_wait_s:.0f} s" if requested_wait_s > LONGEST_WAIT_S else ""
    raise NoAnswer(_without_key(f"{reason}{wait} (attempt {attempt + 1} of {settings.retries + 1})", settings))


def retry_after_s(value: str) -> float:
    """Parse a ``Retry-After`` header, a number or a date, into seconds; 0 if it cannot be
    parsed."""
    try:
        return max(0.0, float(value))
    except ValueError:
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except ValueError:
            return 0.0


def _refusal(response: httpx.Response, settings: EndpointSettings, table: str) -> Fault:
    status = response.status_code
    known = (_MODEL_FAULTS if settings.role == EVALUATED else _FAULTS).get(status, _OTHER)
    remedy = known.remedy.format(url=settings.url_name, key=f"VIDBRIDGE_{settings.role}_KEY", table=table)
    body = "" if status in _NOT_QUOTED else _without_key(" ".join(response.text.split()), settings)[:_QUOTED_CHARACTERS]
    quoted = f" (response: {body})" if body else ""
    return Fault(f"{settings.url} answers {status}: {known.problem}{quoted}", remedy)


def _without_key(text: str, settings: EndpointSettings) -> str:
    return text.replace(settings.key, "(key)") if settings.key else text
