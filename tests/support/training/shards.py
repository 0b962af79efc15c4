"""Run by a test on one process or two: supervised steps of two shards each."""

from __future__ import annotations

import sys
from pathlib import Path

from accelerate.state import AcceleratorState

from stages.runtime.ranks.distributed import launch
from tests.support.training.tiny import LORA, Seen, examples_of_colours
from tests.support.training.trainers import sft

ROWS = {"all": {}, "dropout": {"lora": LORA | {"dropout": 0.2}}}


def main(home: Path) -> int:
    if (status := launch("tests.support.training.shards", sys.argv[1:])) is not None:
        return status
    for name, changes in ROWS.items():
        AcceleratorState._reset_state()  # a verb trains once a process
        row = {"steps": 10, "samples_per_step": 8, "samples_per_device": 4, **changes}
        sft(home.parent / "base", examples_of_colours(24), home / name, Seen(), **row)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
