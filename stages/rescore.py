"""Score a model of the registry on the present evaluation, so that a champion of an earlier one can be compared. Not a stage of DVC.

Run as ``python -m stages rescore NAME MODEL_FOLDER OUT``; writes ``scores.json``'s table into the file OUT.
"""

from __future__ import annotations

import sys
from pathlib import Path

from stages.measuring import measure
from stages.params import load_params
from stages.rows import write_json


def main(*arguments: str) -> int:
    if len(arguments) != 3:
        print("usage: python -m stages rescore NAME MODEL_FOLDER OUT", file=sys.stderr)
        return 2
    name, folder, out = arguments
    table = measure(load_params(), name, Path(folder)).table
    write_json(Path(out), table)
    print(f"rescore: {name}: mean {table['mean']:.3f} over {len(table['tasks'])} tasks, format {table['format']:.3f}")
    return 0
