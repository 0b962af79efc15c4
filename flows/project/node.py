"""``vidbridge node``: the stages that train on this machine, too, where another one runs the
pipeline (:mod:`stages.runtime.ranks.nodes`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from flows.errors import UsageError
from flows.processes.environment import stage_environment
from flows.processes.stream import stream
from stages.params import load_params
from stages.runtime import paths
from stages.runtime.ranks.coming import follow
from stages.runtime.ranks.nodes import nodes_of


def take_part(root: Path) -> None:
    """Take part in the trainings of the first node, until Ctrl-C.

    Raises:
        UsageError: this machine is the first node, or trains alone.
        NodesError: the first node trains a row that this project does not have.
    """
    nodes = nodes_of(os.environ)
    if nodes is None:
        raise UsageError("VIDBRIDGE_NODES", "is 1 or not set: this machine trains alone", "set the number of machines")
    if nodes.number == 0:
        raise UsageError(
            "VIDBRIDGE_NODE", "0 is the first node, which runs `vidbridge run`", "set this one's number, from 1"
        )

    def known(arguments: Sequence[str]) -> bool:
        params = load_params(root / paths.PARAMS_FILE)
        rows = {"sft": list(params.sft), "grpo": list(params.grpo)}
        return len(arguments) == 2 and arguments[1] in rows.get(arguments[0], [])

    def run(arguments: Sequence[str]) -> int:
        return stream([sys.executable, "-m", "stages", *arguments], root, stage_environment(root), typer.echo)

    follow(nodes, run, known)
