"""A judge's endpoint for one test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stages.runtime.endpoint import client
from tests.support.judges.server import JudgeServer, judge_server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    # Pauses of milliseconds; tests of the pauses themselves set them.
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)
    with judge_server() as running:
        yield running
