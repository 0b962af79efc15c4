"""Digests depend on the parameters only, never on the process that computes them."""

from __future__ import annotations

import os
import subprocess
import sys

from stages.domain.core.digest import digest
from tests.support.checkout import ROOT

RECIPE = ROOT / "infra/recipes/tiny.yaml"
PROGRAM = """
import sys
from stages.domain.core.digest import digest
from stages.params import load_params

params = load_params(sys.argv[1])
print(digest(params), digest(params.synthesize))
"""


def test_parameters_have_one_digest_in_every_process() -> None:
    # Python orders sets differently in each process; a resumed synthesis finds its files by such a
    # digest.
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


def test_digests_are_those_of_the_first_release() -> None:
    # These digests seed draws of samples and replies: other values would change the held-out set.
    assert digest({"seed": 1, "id": "clip-00007/mcqa"}) == "965a0b735fd6ba67"
    assert digest({"share": 0.1, "names": ["ä", None, True], "nested": {"b": 2, "a": 1}}) == "1dcdfd0517d12a89"
