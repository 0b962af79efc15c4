"""Endpoint settings of judges, of the writer and of evaluated models, from the environment. They
are circumstance. The key is never printed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from stages.errors import EndpointError
from stages.runtime import paths

#: Role of an endpoint; its variables are VIDBRIDGE_<role>_URL and VIDBRIDGE_<role>_KEY. ``JUDGE``,
#: ``HELD_OUT_JUDGE``, ``WRITER``, and for the judge of a task ``JUDGE_<TASK>``.
Role = str
#: Role of a model that is evaluated: its address is an argument, its other variables are named like
#: those above.
EVALUATED: Literal["ENDPOINT"] = "ENDPOINT"


class JudgeError(EndpointError, RuntimeError):
    """The judge cannot be used with its present settings; the message names the setting and a
    remedy."""


@dataclass(frozen=True)
class EndpointSettings:
    """Address of an endpoint and limits of its requests.

    Attributes:
        role: role whose variables hold the settings.
        url: address up to and including ``/v1``.
        key: API key; empty: none.
        concurrency: largest number of requests at once.
        timeout_s: time limit of one attempt.
        retries: further attempts after the first.
        cache: folder of cached answers.
    """

    role: Role
    url: str
    key: str = field(repr=False)
    concurrency: int
    timeout_s: float
    retries: int
    cache: Path

    @property
    def url_name(self) -> str:
        """Name of the setting that holds the address."""
        return "--endpoint" if self.role == EVALUATED else f"VIDBRIDGE_{self.role}_URL"


def roles_for(role: Role) -> tuple[Role, ...]:
    """Roles whose address serves a role, its own first.

    The judge of a task is asked where the judge of all others is, and all are asked at the judge's
    address, unless they have their own.
    """
    general = next((each for each in ("HELD_OUT_JUDGE", "JUDGE") if role.startswith(f"{each}_")), role)
    return tuple(dict.fromkeys((role, general, "JUDGE")))


def own_role(role: Role, environ: Mapping[str, str]) -> Role:
    """First of :func:`roles_for` with an address; JUDGE if none has one."""
    return next((each for each in roles_for(role) if environ.get(f"VIDBRIDGE_{each}_URL", "").strip()), "JUDGE")


def needed_by(role: Role, field: str) -> tuple[str, str]:
    """The setting of ``params.yaml`` that needs an endpoint, and a remedy without one."""
    if role == "WRITER":
        return "synthesize.writer is on", "set `synthesize.writer: null`"
    if role.startswith("HELD_OUT_JUDGE"):
        return f"{field}.kind is 'openai'", "set `held_out_judge: null`"
    return f"{field}.kind is 'openai'", "take `judge: {kind: rule, ...}`"


def endpoint_settings(
    environ: Mapping[str, str] | None = None, role: Role = "JUDGE", field: str = "judge"
) -> EndpointSettings:
    """Read the variables that `.env.example` lists under "Judge". Other roles use the judge's
    endpoint unless they have their own address.

    Args:
        field: the table of ``params.yaml`` that needs it, for messages.

    Raises:
        JudgeError: a variable is missing or invalid; messages never contain the key.
    """
    environ = os.environ if environ is None else environ
    own = own_role(role, environ)
    url_name, key_name = f"VIDBRIDGE_{own}_URL", f"VIDBRIDGE_{own}_KEY"
    url = environ.get(url_name, "").strip().rstrip("/")
    if not url:
        why, without = needed_by(role, field)
        raise JudgeError(
            "VIDBRIDGE_JUDGE_URL",
            f"not set, and {why}",
            f"set it to the endpoint, such as http://127.0.0.1:8000/v1 (vLLM), or {without}",
        )
    check_url(url, url_name, key_name)
    return EndpointSettings(
        role=own,
        url=url,
        key=_key(environ, key_name),
        concurrency=int(_number(environ, "VIDBRIDGE_JUDGE_CONCURRENCY", 32, whole=True, least=1)),
        timeout_s=_number(environ, "VIDBRIDGE_JUDGE_TIMEOUT_S", 60.0),
        retries=int(_number(environ, "VIDBRIDGE_JUDGE_RETRIES", 4, whole=True)),
        cache=answers_folder(environ),
    )


def answers_folder(environ: Mapping[str, str]) -> Path:
    """Folder of the answers of judges and of the writer, and of measurements by local judges."""
    return Path(environ.get("VIDBRIDGE_JUDGE_CACHE") or paths.JUDGE_ANSWERS).expanduser()


def model_endpoint_settings(url: str, environ: Mapping[str, str]) -> EndpointSettings:
    """Read the endpoint settings of a model that is evaluated. Its time limit is longer, since
    requests contain videos.

    Raises:
        JudgeError: the address or a variable is invalid.
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
    """Check the address of an endpoint.

    Raises:
        JudgeError: it is not a plain http or https address.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    # The value is not printed, since it may hold a secret: the part before an @ sign is user and
    # password.
    if not usable or "@" in url or parts.query or parts.fragment:
        raise JudgeError(
            url_name,
            "not a plain http:// or https:// address without user, password and query",
            f"write it like http://127.0.0.1:8000/v1, and put the key into {key_name}",
        )


def _key(environ: Mapping[str, str], key_name: str) -> str:
    key = environ.get(key_name, "").strip()
    if not all("!" <= character <= "~" for character in key):
        # The HTTP library would print the value in its error.
        raise JudgeError(
            key_name,
            "holds a space, a line break or a character beyond ASCII (value not shown)",
            "set it again, without quotes",
        )
    return key


def _number(environ: Mapping[str, str], name: str, usual: float, whole: bool = False, least: float = 0) -> float:
    text = environ.get(name, "").strip()
    try:
        value = float(text) if text else usual
    except ValueError:
        value = -1.0
    if not (least <= value < 1e6) or (whole and value != int(value)) or (not whole and value == 0):
        kind = "a whole number" if whole else "a number of seconds above 0"
        raise JudgeError(
            name,
            f"{text!r} is not valid",
            f"set {kind}{f' >= {least:g}' if least else ''}, or unset it ({usual:g})",
        )
    return value
