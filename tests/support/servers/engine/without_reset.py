"""The real server, but for one of its resets after new weights.

Run by the engine's Python, as a script with the server's own options; ``LEFT_OUT`` in the
environment names vLLM's method.
"""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Any

from stages.lib.engine_server.options import options_of
from stages.lib.engine_server.server import VllmEngine, serve

LEFT_OUT = "STAND_IN_LEFT_OUT"


class WithoutReset(VllmEngine):
    def __init__(self, options: Namespace) -> None:
        super().__init__(options)

        async def nothing(*_: Any) -> bool:
            return True

        assert hasattr(self._llm, os.environ[LEFT_OUT])
        setattr(self._llm, os.environ[LEFT_OUT], nothing)


if __name__ == "__main__":
    serve(WithoutReset, options_of())
