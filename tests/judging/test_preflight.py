"""What is found in a second about the judge's endpoint, before the first stage starts."""

from __future__ import annotations

import pytest
from judge_server import KEY, JudgeServer

from flows.preflight import judge_problems


def test_a_run_is_told_what_keeps_its_judge_from_being_asked(server: JudgeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(url: str, key: str) -> str:
        monkeypatch.setenv("VIDBRIDGE_JUDGE_URL", url)
        monkeypatch.setenv("VIDBRIDGE_JUDGE_KEY", key)
        return " ".join(judge_problems())

    assert found(server.url, KEY) == found(f"{server.url}/", f"{KEY}\n") == ""
    assert found(server.url, "another").startswith(
        "VIDBRIDGE_JUDGE_KEY: the endpoint at VIDBRIDGE_JUDGE_URL does not accept it (401)"
    )
    assert found("", KEY).startswith("VIDBRIDGE_JUDGE_URL: not set")
    for url, key in (("http://127.0.0.1:1/v1", "k"), ("nowhere", "k"), (server.url, "se cret\r\nx"), (server.url, "secrét")):
        said = found(url, key)
        assert said.startswith("VIDBRIDGE_JUDGE_URL: no answer"), said
        assert "cret" not in said
