"""Foreign text is made fit for a terminal, and secrets are taken out, in whatever a message
repeats."""

from __future__ import annotations

import io
import logging
import os
import time

import pytest

from stages.runtime import plain
from stages.runtime.plain import HIDDEN, fit, guard_logs, one_line, redacted


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("postgresql+psycopg2://bob:CANARY@h:5432/db", "postgresql+psycopg2://bob:***@h:5432/db"),
        ("https://bob:CAN@RY@host/x", "https://bob:***@host/x"),
        ("postgresql://bob:CAN/ARY?x@host/db", "postgresql://bob:***@host/db"),
        ("https://ghp_CANARY@github.com/o/r.git", "https://***@github.com/o/r.git"),
        ("https://ghp_CANARY:x-oauth-basic@github.com/o/r", "https://***@github.com/o/r"),
        ("https://:CANARY@host", "https://:***@host"),
        ("ssh://bob:CANARY@h/x", "ssh://bob:***@h/x"),
        (
            "s3://bucket/key?X-Amz-Signature=CANARY&X-Amz-Date=CANARY",
            "s3://bucket/key?X-Amz-Signature=***&X-Amz-Date=***",
        ),
        ("https://h/x?token=CANARY&y=2", "https://h/x?token=***&y=2"),
        ("https://h/x?y=2;sig=CANARY#access_token=CANARY", "https://h/x?y=2;sig=***#access_token=***"),
        ("https://h/x?PassWord=CANARY", "https://h/x?PassWord=***"),
        (
            "fatal: unable to access 'https://bob:CANARY@h/r/': 403",
            "fatal: unable to access 'https://bob:***@h/r/': 403",
        ),
        ("a http://u:CANARY@h/1, then http://v:CANARY@h/2.", "a http://u:***@h/1, then http://v:***@h/2."),
        ("Authorization: Bearer CANARYCANARY", "Authorization: Bearer ***"),
        # No secret in these: they are left as they are.
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("ssh://git@github.com/o/r", "ssh://git@github.com/o/r"),
        ("http://127.0.0.1:8000/v1/models@champion", "http://127.0.0.1:8000/v1/models@champion"),
        ("http://[::1]:80/x@y", "http://[::1]:80/x@y"),
        ("models:/NAME@champion, bob@example.org", "models:/NAME@champion, bob@example.org"),
        ("grpo.general.max_new_tokens=5", "grpo.general.max_new_tokens=5"),
    ],
)
def test_a_uri_is_told_without_its_secrets(given: str, told: str) -> None:
    assert redacted(given) == told
    assert redacted(f"it says {given} twice: '{given}'") == f"it says {told} twice: '{told}'"


def test_what_the_environment_keeps_secret_is_never_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://bob:CAN%40RY77@h/db")
    monkeypatch.setenv("VIDBRIDGE_JUDGE_KEY", "sk-CANARY")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:CANARY-auth")
    monkeypatch.setenv("SSH_KEY", "/home/me/.ssh/id")
    said = redacted("password CAN@RY77 or CAN%40RY77 refused; key sk-CANARY; basic CANARY-auth; see /home/me/.ssh/id")
    assert said == f"password {HIDDEN} or {HIDDEN} refused; key {HIDDEN}; basic {HIDDEN}; see /home/me/.ssh/id"


def test_a_text_made_to_take_time_takes_none() -> None:
    began = time.process_time()
    for hostile in (
        "a" * 10**6 + "://",
        "://a:b" * 10**5,
        "?" + "token" * 10**5,
        "a://" * 10**5 + "@",
        "x://u:" + "a" * 10**6,
    ):
        redacted(hostile)
    assert time.process_time() - began < 10, "a second at most; a square would be hours"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("a\x1b]0;TITLE\x07b", r"a\x1b]0;TITLE\x07b"),
        ("\x9b31m\x85\x7f", r"\x9b31m\x85\x7f"),
        ("gpj.\u202e4pm", r"gpj.\u202e4pm"),
        ("a\u2066b\u2028c\ufeff", r"a\u2066b\u2028c\ufeff"),
        ("one\ntwo\r\tthree", r"one\ntwo\r\tthree"),
        ("caf\udce9.mp4", r"caf\xe9.mp4"),
        ("\U000e0041 \ud800", r"\U000e0041 \ud800"),
        ("é 你好 🙂 [red] :dog:", "é 你好 🙂 [red] :dog:"),
    ],
)
def test_characters_that_a_terminal_obeys_are_written_out(given: str, told: str) -> None:
    assert one_line(given) == told
    one_line(given).encode("utf-8")


def test_several_lines_stay_several() -> None:
    assert plain.plain("one\n\ttwo\r\x1b") == "one\n\ttwo\\r\\x1b"
    assert fit("http://u:CANARY@h\n\x1b") == "http://u:***@h\n\\x1b"


def test_log_lines_and_tracebacks_of_any_library_are_guarded() -> None:
    before = logging.getLogRecordFactory()
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    logger = logging.getLogger("some.library")
    logger.addHandler(handler)
    try:
        guard_logs()
        guard_logs()  # once is enough
        logger.warning("no answer from %s", "postgresql://bob:CANARY@h/db")
        try:
            raise OSError("https://bob:CANARY@h \x1b]0;T\x07")
        except OSError:
            logger.exception("while asking")
        logger.warning("100 %% of %d", 3)
    finally:
        logging.setLogRecordFactory(before)
        logger.removeHandler(handler)
    said = out.getvalue()
    assert "CANARY" not in said
    assert "\x1b" not in said
    assert "no answer from postgresql://bob:***@h/db" in said
    assert "OSError: https://bob:***@h" in said
    assert "100 % of 3" in said


def test_nothing_is_taken_from_an_environment_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////tmp/x.db")
    assert plain.known_secrets() == []
