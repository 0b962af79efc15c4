"""`vllm serve` of the engine's environment, on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flows.processes.prefect_server import free_port
from stages.lib.engine.process import engine_python
from tests.support.servers.engine.real import ENVIRON
from tests.support.servers.program import running

START_S = 300
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
    port = free_port()
    program = engine_python(ENVIRON).with_name("vllm")
    place = ("--host=127.0.0.1", f"--port={port}", f"--max-model-len={max_model_len}")
    kept = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONWARNINGS")}
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}
    on_cpu = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with running(
        [str(program), "serve", *arguments, *ON_CPU, *place],
        f"http://127.0.0.1:{port}/health",
        log,
        env=kept | quiet | on_cpu,
        start_s=START_S,
        folder=folder,
    ) as wait:
        wait()
        yield f"http://127.0.0.1:{port}/v1"
