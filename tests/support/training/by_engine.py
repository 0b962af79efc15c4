"""Run by a test on several processes: GRPO whose rollouts an engine draws."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from stages.runtime.ranks.distributed import launch
from tests.support.training.chosen import partly_dead
from tests.support.training.tiny import Seen, examples_of_colours
from tests.support.training.trainers import grpo


def main(home: Path, base: Path, row: str) -> int:
    if (status := launch("tests.support.training.by_engine", sys.argv[1:])) is not None:
        return status
    grpo(base, examples_of_colours(24), home, Seen(), reward=partly_dead, **json.loads(row))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
