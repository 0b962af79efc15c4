r"""Sanitising of foreign text before it is printed, and removal of secrets from output.

Names of files and clips, annotations, replies, tags of the registry, authors of commits, answers of
endpoints and messages of other libraries are *foreign*: they may hold ``ESC ]0;…`` (sets a
terminal's title), ``\r`` (overwrites the line), bidirectional overrides (displays a name backwards)
or a URI with a password. Light: only the standard library.
"""

from __future__ import annotations

import logging
import os
import re
import traceback
from collections.abc import Sequence
from json import JSONDecodeError
from urllib.parse import unquote, urlsplit

#: Replacement of a secret.
HIDDEN = "***"
#: Shorter secrets are removed from URIs only: as a plain word they would occur in half of all
#: messages.
_LEAST_CHARACTERS = 6

#: C0 and C1 controls, DEL; marks and overrides of direction; line and paragraph separators; halves
#: of surrogate pairs (names of files that are not UTF-8); a byte order mark; invisible tag
#: characters.
_UNFIT = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\U000e0000-\U000e007f]"
)

#: ``scheme://user:password@`` and ``https://token@``: up to the last @ of the host's part.
#: Repetitions that may be retried from another start are bounded, so that no text takes quadratic
#: time.
_USERINFO = re.compile(r"(?P<scheme>[A-Za-z0-9+.-]{1,40}://)(?P<user>[^\s/?#@:\[\"'<>]*)(?P<secret>:[^\s/?#\"'<>]*)?@")
#: A password with an unescaped slash or question mark, as database drivers accept it. A port does
#: not match.
_LOOSE_USERINFO = re.compile(r"([A-Za-z0-9+.-]{1,40}://[^\s/?#@:\[\"'<>]+:)(?!\d+(?:[/?#\s]|$))[^\s@\"'<>]{0,300}@")
#: ``?token=…``, ``&X-Amz-Signature=…``, ``;sig=…``: the value ends where the next one begins.
_QUERY = re.compile(
    r"(?P<name>[?&;#](?:[\w.-]{0,40}(?:token|passw(?:or)?d|passphrase|secret|signature|credential|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|account[_-]?key|shared[_-]?key)[\w.-]{0,40}|pwd|pass|key|sig|auth|authorization|sas|jwt|code|odbc_connect|x-(?:amz|goog)-[\w-]{1,40})=)"
    r"[^&;#\s\"'<>]+",
    re.IGNORECASE,
)
_HEADER = re.compile(r"(?i)\b(authorization\W{1,4}(?:bearer|basic)|bearer)\s+[\w.~+/=-]{6,}")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/].*")
#: Variables whose whole value is a secret.
_SECRET_NAME = re.compile(
    r"(_KEY|_TOKEN|_PASSWORD|_SECRET|_AUTH_STRING|_ACCESS_KEY_ID|PGPASSWORD|_PASSPHRASE|_CREDENTIALS?)$"
)


def plain(text: object) -> str:
    """Escape every character of ``text`` that controls a terminal (``\\x1b``), except line breaks
    and tabs."""
    return _UNFIT.sub(lambda match: match[0] if match[0] in "\n\t" else _written_out(match[0]), str(text))


def one_line(text: object) -> str:
    """Escape ``text`` as :func:`plain` does, for a name, a cell or a line of a log: line breaks and
    tabs too."""
    return _UNFIT.sub(lambda match: _written_out(match[0]), str(text))


def _written_out(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file's name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def redacted(text: object, secrets: Sequence[str] | None = None) -> str:
    """Remove from ``text`` the passwords, tokens and signatures of URIs, and the secrets of the
    environment.

    User names stay, so that the account can be seen. A path such as
    ``sqlite:////home/me@work/x.db`` holds no secret. ``secrets``: result of :func:`known_secrets`,
    for a caller with many texts.
    """
    output = str(text)
    if "://" in output:
        output = _LOOSE_USERINFO.sub(rf"\1{HIDDEN}@", _USERINFO.sub(_without_secret, output))
    if "=" in output:
        output = _QUERY.sub(rf"\g<name>{HIDDEN}", output)
    if "earer" in output or "uthorization" in output:
        output = _HEADER.sub(rf"\1 {HIDDEN}", output)
    for secret in known_secrets() if secrets is None else secrets:
        output = output.replace(secret, HIDDEN)
    return output


def fit(text: object) -> str:
    """Apply :func:`redacted` and :func:`plain`, for a message of several lines."""
    return plain(redacted(text))


def not_json(error: Exception) -> str:
    """Describe why a line is not JSON. The parser's own line number is left out: it is always 1,
    whatever the line of the file."""
    if isinstance(error, JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    return (
        "not JSON: nested too deep to be read" if isinstance(error, RecursionError) else f"not JSON: {one_line(error)}"
    )


def _without_secret(match: re.Match[str]) -> str:
    if match["secret"] not in (None, ":", ":x-oauth-basic"):
        return f"{match['scheme']}{match['user']}:{HIDDEN}@"
    # ssh://git@host names an account; https://ghp_…@host is a key.
    is_account = match["scheme"].lower().endswith(("ssh://", "sftp://", "file://")) or not match["user"]
    return match[0] if is_account else f"{match['scheme']}{HIDDEN}@"


def known_secrets() -> list[str]:
    """Values of the environment that must not be printed, longest first; as they are set, and as a
    library may have decoded them."""
    secrets: set[str] = set()
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and not value.startswith("/"):
            # PREFECT_API_AUTH_STRING is `user:password`.
            secrets |= {value, value.partition(":")[2]} if name.endswith("_AUTH_STRING") else {value}
        elif "@" in value and _URI.fullmatch(value):
            password = _password(value)
            secrets |= {password, unquote(password)}
    return sorted(
        (secret for secret in secrets if len(secret) >= _LEAST_CHARACTERS), key=lambda secret: (-len(secret), secret)
    )


def _password(uri: str) -> str:
    """Password of a URI: between the first colon and the last @ of the host's part, slashes
    included, as database drivers read it."""
    try:
        return urlsplit(uri).password or uri.split("://", 1)[1].rpartition("@")[0].partition(":")[2]
    except ValueError:
        return ""


def guard_logs() -> None:
    """Sanitise all further log lines of this process, from any library: no secrets and no control
    characters.

    Libraries log addresses that did not answer, and tracebacks with foreign text.
    """
    factory = logging.getLogRecordFactory()
    if getattr(factory, "guards", False):
        return

    def guarded(*arguments: object, **named: object) -> logging.LogRecord:
        record = factory(*arguments, **named)
        try:
            message = record.getMessage()
        except (
            TypeError,
            ValueError,
        ):  # arguments that do not fit: logging itself reports it when it writes the record
            return record
        # Colours are added by a formatter; a message has none of its own.
        if (fitted := fit(message)) != message:
            record.msg, record.args = fitted, ()
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = fit("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
        return record

    guarded.guards = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(guarded)
