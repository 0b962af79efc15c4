"""A warm process for the stages of one run, where imports are a large part of their time
(:mod:`stages.runtime.warm`).
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.processes.environment import stage_environment, state
from flows.processes.stream import guarded
from stages.params import Params, TinyModelParams
from stages.runtime import warm


def saves_time(params: Params, stages: int) -> bool:
    """Return whether a warm process saves time. It does not for a model of billions of parameters;
    ranks of DeepSpeed, FSDP and other machines, and a single stage, import for themselves.
    """
    apart = any(os.environ.get(name) for name in ("VIDBRIDGE_DEEPSPEED", "VIDBRIDGE_FSDP", "VIDBRIDGE_NODES"))
    return sys.platform == "linux" and isinstance(params.model, TinyModelParams) and not apart and stages > 1


@contextmanager
def warmed(root: Path, params: Params, stages: int) -> Iterator[dict[str, str]]:
    """Keep a warm process for this block if it is worth it; yields the environment variables by
    which stages find it. One that a block around this one has exported is taken.
    """
    if started := os.environ.get(warm.VARIABLE):
        yield {warm.VARIABLE: started}
        return
    if not saves_time(params, stages):
        yield {}
        return
    # A socket's path must be short, which a project's folder may not be.
    with tempfile.TemporaryDirectory(prefix="vidbridge-") as folder, (state(root) / "warm.log").open("wb") as log:
        # More threads than one, even idle ones of a numerical library, would not survive the fork.
        env = stage_environment(root, {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"})
        with guarded([sys.executable, "-m", "stages.runtime.warm", folder], root, env, log):
            yield {warm.VARIABLE: folder}
