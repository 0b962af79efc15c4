import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "domain"))

sys.path.insert(0, str(Path(__file__).parent))

from judge_server import JudgeServer, judge_server

from stages.runtime import http as client


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    # Pauses of milliseconds; tests of the pauses themselves set them.
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)
    with judge_server() as running:
        yield running
