"""`vllm serve` of the engine's environment, on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from stages.lib.engine.process import engine_python
from tests.support.servers.engine.real import ENVIRON

START_S, END_S = 300, 20
#: What a CPU needs beside the arguments under test.
ON_CPU = (
    "--enforce-eager",
    "--no-enable-chunked-prefill",
    "--skip-mm-profiling",
    "--max-num-batched-tokens=8192",
    "--max-num-seqs=8",
    "--disable-uvicorn-access-log",
    # As this project's own decoding counts: without the tokens that are never to be drawn.
    "--logprobs-mode=processed_logprobs",
)


@contextmanager
def serving(arguments: Sequence[str], folder: Path, log: Path, max_model_len: int) -> Iterator[str]:
    """Run ``vllm serve`` with these arguments in ``folder``; yields the address of its API."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    program = engine_python(ENVIRON).with_name("vllm")
    place = ("--host=127.0.0.1", f"--port={port}", f"--max-model-len={max_model_len}")
    kept = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONWARNINGS")}
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}
    on_cpu = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with log.open("wb") as output:
        server = subprocess.Popen(
            [str(program), "serve", *arguments, *ON_CPU, *place],
            env=kept | quiet | on_cpu,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(server, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            try:
                server.wait(END_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(END_S)
            # Its engine is a process of its own.
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


def _wait(server: subprocess.Popen[bytes], health: str, log: Path) -> None:
    until = time.monotonic() + START_S
    with httpx.Client(trust_env=False, timeout=5) as client:
        while server.poll() is None and time.monotonic() < until:
            try:
                if client.get(health).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
    raise AssertionError(f"vllm serve does not answer (exit status {server.poll()}): {log.read_text()[-4000:]}")
