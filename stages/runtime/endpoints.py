"""Where the judge is, or a model that is evaluated, and how it is spoken to: circumstance, from the environment. The key is nowhere
shown."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from stages.errors import VidbridgeError
from stages.runtime import paths

#: Who is asked; its variables are VIDBRIDGE_<role>_URL and VIDBRIDGE_<role>_KEY.
Role = Literal["JUDGE", "HELD_OUT_JUDGE", "WRITER"]
#: A model that is evaluated: its address is an argument, its other variables are named like those.
EVALUATED: Literal["ENDPOINT"] = "ENDPOINT"


class JudgeError(VidbridgeError, RuntimeError):
    """The judge cannot be used as it is set up; the message says which setting, and what to do."""


@dataclass(frozen=True)
class EndpointSettings:
    """``role``: whose variables say so; ``url`` up to and with ``/v1``; ``concurrency``: requests under way at once; ``timeout_s`` of one
    attempt; ``retries`` after it."""

    role: Role | Literal["ENDPOINT"]
    url: str
    key: str = field(repr=False)
    concurrency: int
    timeout_s: float
    retries: int
    cache: Path

    @property
    def url_name(self) -> str:
        """Where its address is given."""
        return "--endpoint" if self.role == EVALUATED else f"VIDBRIDGE_{self.role}_URL"


#: By whose variables it is: what in ``params.yaml`` needs an endpoint, and how to do without.
NEEDED_BY: dict[Role, tuple[str, str]] = {
    "JUDGE": ("judge.kind is 'openai'", "take `judge: {kind: rule, ...}`"),
    "HELD_OUT_JUDGE": ("held_out_judge.judge.kind is 'openai'", "set `held_out_judge: null`"),
    "WRITER": ("synthesize.writer is on", "set `synthesize.writer: null`"),
}


def endpoint_settings(environ: Mapping[str, str] | None = None, role: Role = "JUDGE") -> EndpointSettings:
    """Read what `.env.example` lists under "Judge". The others are where the judge is, unless they have an address of their own.

    Raises:
        JudgeError: one is missing or cannot be used; the key's value is in no message.
    """
    environ = os.environ if environ is None else environ
    own: Role = role if environ.get(f"VIDBRIDGE_{role}_URL", "").strip() else "JUDGE"
    url_name, key_name = f"VIDBRIDGE_{own}_URL", f"VIDBRIDGE_{own}_KEY"
    url = environ.get(url_name, "").strip().rstrip("/")
    if not url:
        why, without = NEEDED_BY[role]
        raise JudgeError(
            f"VIDBRIDGE_JUDGE_URL: not set, and {why}; set it to the endpoint, such as http://127.0.0.1:8000/v1 (vLLM), or {without}"
        )
    check_url(url, url_name, key_name)
    return EndpointSettings(
        role=own,
        url=url,
        key=_key(environ, key_name),
        concurrency=int(_number(environ, "VIDBRIDGE_JUDGE_CONCURRENCY", 32, whole=True, least=1)),
        timeout_s=_number(environ, "VIDBRIDGE_JUDGE_TIMEOUT_S", 60.0),
        retries=int(_number(environ, "VIDBRIDGE_JUDGE_RETRIES", 4, whole=True)),
        cache=Path(environ.get("VIDBRIDGE_JUDGE_CACHE") or paths.JUDGE_ANSWERS).expanduser(),
    )


def model_endpoint_settings(url: str, environ: Mapping[str, str]) -> EndpointSettings:
    """Where a model that is evaluated answers. A question with a video takes longer than a judge's.

    Raises:
        JudgeError: the address or a variable cannot be used.
    """
    url, key_name = url.strip().rstrip("/"), "VIDBRIDGE_ENDPOINT_KEY"
    check_url(url, "--endpoint", key_name)
    return EndpointSettings(
        role=EVALUATED,
        url=url,
        key=_key(environ, key_name),
        concurrency=int(_number(environ, "VIDBRIDGE_ENDPOINT_CONCURRENCY", 8, whole=True, least=1)),
        timeout_s=_number(environ, "VIDBRIDGE_ENDPOINT_TIMEOUT_S", 300.0),
        retries=int(_number(environ, "VIDBRIDGE_ENDPOINT_RETRIES", 4, whole=True)),
        cache=Path(),  # replies are kept in the evaluation's own folder
    )


def check_url(url: str, url_name: str, key_name: str) -> None:
    """Raises:
    JudgeError: it is no plain address of an endpoint.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    # Not shown when it holds a secret: everything behind the @ sign is the host, what stands before it is not ours to print.
    if not usable or "@" in url or parts.query or parts.fragment:
        raise JudgeError(
            f"{url_name}: no plain http:// or https:// address without user, password and query; write it like"
            f" http://127.0.0.1:8000/v1, and put the key into {key_name}"
        )


def _key(environ: Mapping[str, str], key_name: str) -> str:
    key = environ.get(key_name, "").strip()
    if not all("!" <= character <= "~" for character in key):
        # The HTTP library would name the value in its complaint.
        raise JudgeError(
            f"{key_name}: holds a space, a line break or a character beyond ASCII (value not shown); set it anew, without quotes"
        )
    return key


def _number(environ: Mapping[str, str], name: str, usual: float, whole: bool = False, least: float = 0) -> float:
    given = environ.get(name, "").strip()
    try:
        value = float(given) if given else usual
    except ValueError:
        value = -1.0
    if not (least <= value < 1e6) or (whole and value != int(value)) or (not whole and value == 0):
        what = "a whole number" if whole else "a number of seconds above 0"
        raise JudgeError(f"{name}: {given!r}: give {what}{f' of at least {least:g}' if least else ''}, or unset it ({usual:g})")
    return value
