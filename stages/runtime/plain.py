r"""The one place where text that others wrote is made fit to be printed, and where secrets are
taken out of what is printed.

Names of files and clips, annotations, replies, tags of the registry, authors of commits, answers of
endpoints and messages of other libraries are *foreign*: they may hold ``ESC ]0;…`` (sets a
terminal's title), ``\r`` (overwrites the line), bidirectional overrides (shows a name backwards) or
a URI with a password. Light: only the standard library.
"""

from __future__ import annotations

import logging
import os
import re
import traceback
from collections.abc import Sequence
from json import JSONDecodeError
from urllib.parse import unquote, urlsplit

#: What replaces a secret.
HIDDEN = "***"
#: A secret shorter than this is looked for in URIs only: as a plain word it would be found in half
#: of all messages.
_LEAST_CHARACTERS = 6

#: C0 and C1 controls, DEL; marks and overrides of direction; line and paragraph separators; halves
#: of surrogate pairs (names of files that are not UTF-8); a byte order mark; invisible tag
#: characters.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\U000e0000-\U000e007f]")

#: ``scheme://user:password@`` and ``https://token@``: up to the last @ of the host's part. Every
#: repetition that may be tried again from another start is bounded, so that a text made for it
#: takes no time that grows with its square.
_USERINFO = re.compile(r"(?P<scheme>[A-Za-z0-9+.-]{1,40}://)(?P<user>[^\s/?#@:\[\"'<>]*)(?P<secret>:[^\s/?#\"'<>]*)?@")
#: A password in which a slash or a question mark was left as it is, as drivers of databases accept
#: it. A port is none.
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
_SECRET_NAME = re.compile(r"(_KEY|_TOKEN|_PASSWORD|_SECRET|_AUTH_STRING|_ACCESS_KEY_ID|PGPASSWORD|_PASSPHRASE|_CREDENTIALS?)$")


def plain(text: object) -> str:
    """``text`` with every character that does something to a terminal written out (``\\x1b``); line
    breaks and tabs stay."""
    return _UNFIT.sub(lambda found: found[0] if found[0] in "\n\t" else _written_out(found[0]), str(text))


def one_line(text: object) -> str:
    """The same for a place that has one line: a name, a cell, a line of a log. Line breaks are
    written out too."""
    return _UNFIT.sub(lambda found: _written_out(found[0]), str(text))


def _written_out(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file's name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def redacted(text: object, secrets: Sequence[str] | None = None) -> str:
    """``text`` without the passwords, tokens and signatures of the URIs in it, and without what the
    environment holds of secrets.

    A user's name stays, so that one sees which account was meant. A path such as
    ``sqlite:////home/me@work/x.db`` holds none. ``secrets``: what :func:`known_secrets` found, for
    a caller with many texts.
    """
    told = str(text)
    if "://" in told:
        told = _LOOSE_USERINFO.sub(rf"\1{HIDDEN}@", _USERINFO.sub(_without_secret, told))
    if "=" in told:
        told = _QUERY.sub(rf"\g<name>{HIDDEN}", told)
    if "earer" in told or "uthorization" in told:
        told = _HEADER.sub(rf"\1 {HIDDEN}", told)
    for secret in known_secrets() if secrets is None else secrets:
        told = told.replace(secret, HIDDEN)
    return told


def fit(text: object) -> str:
    """Both, for a message of several lines: what an error says, as it is printed."""
    return plain(redacted(text))


def not_json(error: Exception) -> str:
    """Why one line is not JSON. The parser counts lines within what it was given, which is line 1
    of whatever line of a file."""
    if isinstance(error, JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    return "not JSON: nested too deep to be read" if isinstance(error, RecursionError) else f"not JSON: {one_line(error)}"


def _without_secret(found: re.Match[str]) -> str:
    if found["secret"] not in (None, ":", ":x-oauth-basic"):
        return f"{found['scheme']}{found['user']}:{HIDDEN}@"
    # ssh://git@host names an account; https://ghp_…@host is a key.
    named = found["scheme"].lower().endswith(("ssh://", "sftp://", "file://")) or not found["user"]
    return found[0] if named else f"{found['scheme']}{HIDDEN}@"


def known_secrets() -> list[str]:
    """Values of the environment that must not be printed, longest first; as they were given, and as
    a library may have decoded them."""
    found: set[str] = set()
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and not value.startswith("/"):
            # PREFECT_API_AUTH_STRING is `user:password`.
            found |= {value, value.partition(":")[2]} if name.endswith("_AUTH_STRING") else {value}
        elif "@" in value and _URI.fullmatch(value):
            password = _password(value)
            found |= {password, unquote(password)}
    return sorted((secret for secret in found if len(secret) >= _LEAST_CHARACTERS), key=lambda secret: (-len(secret), secret))


def _password(uri: str) -> str:
    """Between the first colon and the last @ of the host's part: as drivers of databases read it,
    slashes and all."""
    try:
        return urlsplit(uri).password or uri.split("://", 1)[1].rpartition("@")[0].partition(":")[2]
    except ValueError:
        return ""


def guard_logs() -> None:
    """From here on no log line of this process holds a secret or a control character, whichever
    library writes it.

    Libraries log the address that did not answer, and the traceback of what they were told.
    """
    made = logging.getLogRecordFactory()
    if getattr(made, "guards", False):
        return

    def guarded(*arguments: object, **named: object) -> logging.LogRecord:
        record = made(*arguments, **named)
        try:
            told = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit: logging itself complains of it, where it is written
            return record
        # Colours are a formatter's; a message has none of its own.
        if (fitted := fit(told)) != told:
            record.msg, record.args = fitted, ()
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = fit("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
        return record

    guarded.guards = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(guarded)
