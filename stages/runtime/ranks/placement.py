"""Number of processes and machines of a training, and its engine: read from the environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from stages.errors import MachineError
from stages.runtime.ranks.nodes import Nodes, nodes_of, whole_number


class PlacementError(MachineError, ValueError):
    """The environment requests processes or an engine that are not available or did not start."""


@dataclass(frozen=True)
class Placement:
    """Processes and engine of this training.

    Attributes:
        ranks: number of training processes, over all nodes.
        deepspeed: file of the DeepSpeed configuration, or None.
        zero_stage: ZeRO stage of that configuration; 0 without one.
        nodes: machines that train together; None: this one alone.
        fsdp: file of transformers' ``fsdp_config``, or None.
        sequence: number of processes that share the tokens of a supervised row.
    """

    ranks: int
    deepspeed: Path | None
    zero_stage: int
    nodes: Nodes | None = None
    fsdp: Path | None = None
    sequence: int = 1

    @property
    def engine(self) -> Path | None:
        """File of the engine that shards what the processes hold; None: each holds all."""
        return self.deepspeed or self.fsdp

    @property
    def ranks_here(self) -> int:
        """Number of training processes of each node."""
        return self.ranks if self.nodes is None else self.ranks // self.nodes.count


def placement(environ: Mapping[str, str] = os.environ) -> Placement:
    """Read VIDBRIDGE_RANKS (default: the number of GPUs, or 1; of each node), VIDBRIDGE_DEEPSPEED
    or VIDBRIDGE_FSDP (a JSON file; unset: none), VIDBRIDGE_SEQUENCE_RANKS and the nodes.

    Raises:
        PlacementError, NodesError: a variable has an invalid value.
    """
    gpus = torch.cuda.device_count()
    processes = "a number of processes"
    ranks = whole_number(environ, "VIDBRIDGE_RANKS", max(1, gpus), processes, 1, PlacementError)
    if gpus and ranks > gpus:
        raise PlacementError("VIDBRIDGE_RANKS", f"{ranks} processes for {gpus} GPUs", f"set at most {gpus}")
    nodes = nodes_of(environ)
    ranks *= 1 if nodes is None else nodes.count
    sequence = whole_number(environ, "VIDBRIDGE_SEQUENCE_RANKS", 1, processes, 1, PlacementError)
    if ranks % sequence:
        raise PlacementError(
            "VIDBRIDGE_SEQUENCE_RANKS",
            f"{sequence} processes that share a row, and {ranks} train (VIDBRIDGE_RANKS)",
            f"set a divisor of {ranks}",
        )
    config, fsdp = environ.get("VIDBRIDGE_DEEPSPEED", ""), environ.get("VIDBRIDGE_FSDP", "")
    if config and fsdp:
        raise PlacementError("VIDBRIDGE_DEEPSPEED, VIDBRIDGE_FSDP", "both are set", "unset one of them")
    deepspeed, zero_stage = _deepspeed_file(config) if config else (None, 0)
    return Placement(ranks, deepspeed, zero_stage, nodes, _fsdp_file(fsdp) if fsdp else None, sequence)


def _deepspeed_file(config: str) -> tuple[Path, int]:
    """File of a configuration of DeepSpeed, and its ZeRO stage.

    Raises:
        PlacementError: it cannot be read, or names no stage.
    """
    path, remedy = Path(config).resolve(), "name a file like infra/deepspeed/zero2.json, or unset it"
    try:
        return path, int(json.loads(path.read_text(encoding="utf-8"))["zero_optimization"]["stage"])
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlacementError("VIDBRIDGE_DEEPSPEED", f"{config}: {error}", remedy) from error
    except (KeyError, TypeError, ValueError) as error:
        raise PlacementError("VIDBRIDGE_DEEPSPEED", f"{config}: names no zero_optimization.stage", remedy) from error


def _fsdp_file(config: str) -> Path:
    """File of a configuration of FSDP2 from which whole models can be saved.

    Raises:
        PlacementError: it is another version's, or saves shards.
    """
    path, remedy = Path(config).resolve(), "name a file like infra/fsdp/full-shard.json, or unset it"
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        version, saved = int(given.get("version", 2)), str(given.get("state_dict_type", "FULL_STATE_DICT"))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise PlacementError("VIDBRIDGE_FSDP", f"{config}: {error}", remedy) from error
    if version != 2:
        raise PlacementError("VIDBRIDGE_FSDP", f"{config}: version {version}, and 2 alone is supported", remedy)
    if saved != "FULL_STATE_DICT":
        raise PlacementError(
            "VIDBRIDGE_FSDP", f"{config}: state_dict_type {saved} saves no model that can be opened", remedy
        )
    if given.get("cpu_offload"):
        raise PlacementError(
            "VIDBRIDGE_FSDP",
            f"{config}: cpu_offload pins memory, which was never tried here and cannot be without a GPU",
            "set it to false, or use infra/deepspeed/zero3-offload.json (VIDBRIDGE_DEEPSPEED)",
        )
    if given.get("cpu_ram_efficient_loading"):
        raise PlacementError(
            "VIDBRIDGE_FSDP",
            f"{config}: cpu_ram_efficient_loading leaves positions of patches, which no file holds, empty on all"
            " processes but the first",
            "set it to false",
        )
    return path
