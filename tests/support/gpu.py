"""Tests on the GPU of this machine: ``make test-gpu``.

Everything marked ``gpu``, and the tests of trainers, adapters and models, which train on the GPU
where there is one. On a CPU those are part of ``make test``, so nothing is run without a GPU. On a
machine that lacks packages, tests that need them are skipped.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

from tests.support.checkout import ROOT

FOLDERS = ("tests/stages/lib/training", "tests/stages/grpo", "tests/stages/lib/models")
#: No test of these runs without them.
NEEDED = ("pytest", "hypothesis", "torch", "transformers", "peft", "trl", "datasets", "pydantic")
MARK = "pytest.mark.gpu"


def selected() -> list[str]:
    """Folders, and the other files that have a test marked so."""
    files = (path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "tests/stages").rglob("test_*.py"))
             if MARK in path.read_text(encoding="utf-8"))  # fmt: skip
    return [*FOLDERS, *(file for file in files if not file.startswith(tuple(f"{folder}/" for folder in FOLDERS)))]


def main() -> int:
    if lacking := [name for name in NEEDED if find_spec(name) is None]:
        print(f"skipped: {', '.join(lacking)} not installed here, without which none of these tests runs")
        return 0
    import torch

    if not torch.cuda.is_available():
        print("skipped: torch sees no GPU here; make test runs the tests of trainers and models on the CPU")
        return 0
    import pytest

    plugins = ["-p", "tests.support.processes.collecting"]
    return int(pytest.main([*plugins, "-m", "not slow and not ops", "-rs", *sys.argv[1:], *selected()]))


if __name__ == "__main__":
    sys.exit(main())
