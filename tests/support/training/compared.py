"""Comparison of two trainings by their outs: the logged numbers, and the weights."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file

#: Means over the micro-batches of a process, for reading only: how rows are dealt to micro-batches
#: decides them.
NOT_COMPARED = ("entropy", "kl", "clip_ratio", "cispo_clip_ratio")


def history(out: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith(NOT_COMPARED)} for row in rows]


def furthest(left: Path, right: Path) -> float:
    """The largest difference of a weight between two model folders."""
    mine, other = (load_file(folder / "model.safetensors") for folder in (left, right))
    shared = mine.keys() & other.keys()
    assert mine.keys() ^ other.keys() <= {"lm_head.weight"}
    return max(float((mine[name] - other[name]).abs().max()) for name in shared)
