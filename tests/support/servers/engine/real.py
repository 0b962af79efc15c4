"""The real engine, of this checkout unless the environment names another."""

from __future__ import annotations

import os

import pytest

from stages.lib.engine.errors import EngineUnavailable
from stages.lib.engine.process import ENVIRONMENT_VARIABLE, engine_python
from tests.support.checkout import ROOT

ENVIRON = {ENVIRONMENT_VARIABLE: os.environ.get(ENVIRONMENT_VARIABLE) or str(ROOT / ".tools/engine")}


def _missing() -> str | None:
    try:
        engine_python(ENVIRON)
    except EngineUnavailable as error:
        return str(error)
    return None


#: Marks of the tests that need it.
NEEDED = [
    pytest.mark.vllm,
    pytest.mark.skipif(_missing() is not None, reason=str(_missing())),
    # httpcore does not close a Unix socket that it could not connect.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
