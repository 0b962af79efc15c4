"""What a digest depends on: the parameters, and nothing of the process that computes it."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = "from stages.params import digest, load_params; print(digest(load_params()), digest(load_params().synthesize))"


def test_parameters_have_one_digest_in_every_process() -> None:
    # Python draws another order of sets in each process; what a killed synthesis finds again is named by such a digest.
    seen = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(4)
    }
    assert len(seen) == 1
