"""A server of replies that no model draws, for its process: how it starts, ends and dies.

Runs as a script with the server's own options. The first token of a prompt says what happens:
``DIE`` kills the server while it answers, ``END`` ends the engine behind it, ``SLOW`` takes a
minute. ``NO_START`` in the environment ends it before it answers, ``DEAF`` keeps it from answering.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from time import sleep
from typing import ClassVar

from stages.lib.engine.wire import Question, Reply, Sampling, Video
from stages.lib.engine_server.app import Died
from stages.lib.engine_server.options import options_of
from stages.lib.engine_server.server import serve
from stages.lib.inference.seeds import seed_number

DIE, END, SLOW = 1, 2, 3
NO_START, DEAF = "STAND_IN_NO_START", "STAND_IN_DEAF"


class WithoutModel:
    """Replies of one token, which is the seed's number."""

    versions: ClassVar[dict[str, str]] = {"python": "3"}
    device = "none"

    def __init__(self, options: Namespace) -> None:
        if NO_START in os.environ:
            sys.exit(f"ValueError: {os.environ[NO_START]}")
        if DEAF in os.environ:
            sleep(60)
        self.model = str(options.model)
        # As vLLM has: a process that does not end by itself when this one is killed.
        self.worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])

    async def generate(
        self, question: Question, videos: Sequence[Video], seeds: Sequence[str | None], sampling: Sampling
    ) -> tuple[list[int], list[Reply]]:
        match question.prompt_ids[0]:
            case n if n == DIE:
                os.kill(os.getpid(), signal.SIGKILL)
            case n if n == END:
                raise Died("vLLM ended (out of memory)")
            case n if n == SLOW:
                await asyncio.sleep(60)
        return list(question.prompt_ids), [
            Reply([seed_number(seed or "")], [float(self.worker.pid)], "end") for seed in seeds
        ]

    async def load_weights(self, folder: Path) -> None: ...

    def close(self) -> None:
        self.worker.terminate()
        self.worker.wait()


if __name__ == "__main__":
    serve(WithoutModel, options_of())
