"""What a digest depends on: the parameters, and nothing of the process that computes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

RECIPE = Path(__file__).parents[2] / "infra/recipes/tiny.yaml"
PROGRAM = "import sys; from stages.params import digest, load_params as load; p = load(sys.argv[1]); print(digest(p), digest(p.synthesize))"


def test_parameters_have_one_digest_in_every_process() -> None:
    # Python draws another order of sets in each process; what a killed synthesis finds again is named by such a digest.
    seen = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(RECIPE)],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(4)
    }
    assert len(seen) == 1
