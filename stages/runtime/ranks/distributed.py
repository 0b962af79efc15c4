"""Distributed training: number of processes and machines, and an engine that shards weights or
not: DeepSpeed or FSDP2. All are circumstance and come from the environment.

A verb calls `launch` first. If more than one process is requested, it starts the verb again under
`torch.distributed.run`, or forks this process on a CPU (:mod:`stages.runtime.ranks.forking`). On
several machines the verb waits for the others first (:mod:`stages.runtime.ranks.nodes`).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from stages.runtime.machine import idle_cores
from stages.runtime.ranks.coming import come
from stages.runtime.ranks.forking import can_fork, die_with, fork_ranks
from stages.runtime.ranks.meeting import lead
from stages.runtime.ranks.nodes import Job, ending_children
from stages.runtime.ranks.placement import Placement, PlacementError, placement

#: Shards of a step that two processes may take without being told to: the sum of two gradients is
#: the same in either order, that of more is not, to the last bit.
SHARDS_OF_TWO = 2
#: Memory that a process of its own choice must find free; a step of `tiny` takes 1.5 GB.
RANK_BYTES = 2_000_000_000
_LOOPBACK = "127.0.0.1"


def launch(module: str, arguments: Sequence[str], *, shards: int = 1) -> int | None:
    """Run `python -m module arguments` on several processes if the environment requests it, or if
    it leaves the choice and two idle cores, with memory for a process each, share the two shards
    of a step.

    On a CPU the processes are forks of this one where that is possible, and return from here, too.

    Args:
        shards: batches of an optimiser step, each passed through the model at once.

    Returns:
        Exit status of the processes; None if this process should do the work itself (one process is
        enough, or it is already one of several).
    """
    current = placement()
    if "LOCAL_RANK" in os.environ:
        if current.nodes is not None:
            # The launcher of a lost node is killed with its machine at best.
            die_with(os.getppid())
        return None
    extra: dict[str, str] = {}
    if shards == SHARDS_OF_TWO and _is_free():
        idle = idle_cores(RANK_BYTES)
        if idle >= SHARDS_OF_TWO:
            print(
                f"{' '.join(arguments)}: two processes, one for each shard of a step, since {idle} cores are idle;"
                " VIDBRIDGE_RANKS sets another number, with the same result"
            )
            current = replace(current, ranks=SHARDS_OF_TWO)
            extra["VIDBRIDGE_RANKS"] = str(SHARDS_OF_TWO)
        else:
            print(
                f"{' '.join(arguments)}: one process takes both shards of a step in turn, since there are not two idle"
                " cores with memory for a process each"
            )
    if current.ranks == 1 and current.engine is None:
        return None
    extra |= rank_environment(current)
    if current.nodes is not None:
        nodes = current.nodes
        configs = {"VIDBRIDGE_DEEPSPEED": current.deepspeed, "VIDBRIDGE_FSDP": current.fsdp}
        files = {name: file for name, file in configs.items() if file is not None}
        job = Job(
            module,
            tuple(arguments),
            current.ranks_here,
            files,
            lambda port: _command(module, arguments, current, nodes.host, port),
        )
        with ending_children():
            return come(nodes, job, extra) if nodes.number else lead(nodes, job, extra, _free_port(nodes.host))
    port = _free_port()
    if current.deepspeed is None and not torch.cuda.is_available() and can_fork():
        return fork_ranks(current.ranks, port, extra)
    command = _command(module, arguments, current, _LOOPBACK, port)
    return subprocess.run(command, env={**os.environ, **extra}, check=False).returncode


def _command(module: str, arguments: Sequence[str], current: Placement, host: str, port: int) -> list[str]:
    """Command that starts this node's processes, which meet those of other nodes there.

    Not ``--standalone``, and no other rendezvous that chooses the nodes' numbers: torch then keeps
    the state of the rendezvous as a pickle in a store that listens on every address of the machine
    without a password, and the launcher unpickles it every few seconds. A static rendezvous has no
    such state.
    """
    count, number = (1, 0) if current.nodes is None else (current.nodes.count, current.nodes.number)
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--rdzv-backend=static",
        f"--nnodes={count}",
        f"--node-rank={number}",
        f"--master-addr={host}",
        f"--master-port={port}",
        f"--nproc-per-node={current.ranks_here}",
        "-m",
        module,
        *arguments,
    ]


def _is_free() -> bool:
    """Return whether the number of processes is left to us: no GPU, no engine and no number is
    set."""
    chosen = ("VIDBRIDGE_RANKS", "VIDBRIDGE_NODES", "VIDBRIDGE_DEEPSPEED", "VIDBRIDGE_FSDP", "VIDBRIDGE_SEQUENCE_RANKS")
    return not (any(os.environ.get(name) for name in chosen) or torch.cuda.is_available())


def _free_port(host: str = _LOOPBACK) -> int:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        return int(probe.getsockname()[1])


def rank_environment(current: Placement) -> dict[str, str]:
    """Environment variables of the training processes beside those that `torch.distributed.run`
    sets."""
    extra = {"OMP_NUM_THREADS": os.environ.get("VIDBRIDGE_THREADS") or os.environ.get("OMP_NUM_THREADS") or "1"}
    if current.deepspeed is not None:
        extra["ACCELERATE_USE_DEEPSPEED"] = "true"
        if not torch.cuda.is_available():
            extra["DS_ACCELERATOR"] = "cpu"
    return extra


def trainer_placement() -> dict[str, Any]:
    """Keyword arguments of a trainer's configuration for its devices and engine. Joins the process
    group if there is one.

    On a CPU `use_cpu=True` would make Accelerate silently ignore an engine, so the state is
    configured here first.

    Raises:
        PlacementError: an engine is requested in a process that no launcher started.
    """
    current = placement()
    gpu = torch.cuda.is_available()
    common: dict[str, Any] = {"dataloader_pin_memory": gpu}
    if current.engine is None:
        return {**common, "use_cpu": not gpu}
    if "LOCAL_RANK" not in os.environ:
        raise PlacementError(
            "VIDBRIDGE_FSDP" if current.deepspeed is None else "VIDBRIDGE_DEEPSPEED",
            "set, but no process group was launched",
            "start through the stage's own command, or unset it",
        )
    if current.fsdp is not None:
        return {**common, **_fsdp_settings(current.fsdp, gpu)}
    common["deepspeed"] = str(current.deepspeed)
    if gpu:
        return common
    import deepspeed.ops
    from accelerate import PartialState

    # DeepSpeed would compile C++ here, and fail where there is no compiler, for an operation that
    # only its inference uses.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    PartialState(backend="gloo")
    return {**common, "use_cpu": False, "accelerator_config": {"use_configured_state": True}}


def _fsdp_settings(config: Path, gpu: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {"fsdp": True, "fsdp_config": json.loads(config.read_text(encoding="utf-8"))}
    if gpu:
        return settings
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    # Accelerate 1.15 asks for a kind of device before it looks at the plugin, and ignores it on a
    # CPU without a word. Nothing that it does under FSDP2 needs a GPU.
    PartialState(backend="gloo")
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return {**settings, "use_cpu": False, "accelerator_config": {"use_configured_state": True}}


class TrainingEngine(NamedTuple):
    """Engine that runs a training.

    Attributes:
        name: full class name: of DeepSpeed's optimizer or FSDP2's class, which do the sharding;
            without them, of the wrapped model.
        stage: ZeRO stage; 0 without DeepSpeed.
    """

    name: str
    stage: int


def engine_of(trainer: Any) -> TrainingEngine:
    """Return the engine of a trainer whose training has started.

    Raises:
        PlacementError: the engine or the number of processes differs from the environment's.
            Training would otherwise continue unnoticed with another batch size, or with more memory
            than planned.
    """
    current = placement()
    processes = trainer.accelerator.num_processes
    if processes != current.ranks:
        raise PlacementError(
            "VIDBRIDGE_RANKS",
            f"{current.ranks} processes should train, {processes} do",
            "start through the stage's own command, which launches them",
        )
    engine = trainer.model_wrapped
    if current.fsdp is not None:
        from torch.distributed.fsdp import FSDPModule

        if not isinstance(engine, FSDPModule):
            raise PlacementError(
                "VIDBRIDGE_FSDP",
                f"set, but {_full_name(engine)} trains, which is not sharded",
                "unset it, or start through the stage's own command",
            )
        return TrainingEngine(f"{FSDPModule.__module__}.{FSDPModule.__qualname__}", 0)
    if current.deepspeed is None:
        return TrainingEngine(_full_name(engine), 0)
    from deepspeed import DeepSpeedEngine

    if not isinstance(engine, DeepSpeedEngine):
        raise PlacementError(
            "VIDBRIDGE_DEEPSPEED",
            f"set, but {_full_name(engine)} trains, not a DeepSpeed engine",
            "unset it, or start through the stage's own command",
        )
    requested, stage = current.zero_stage, int(engine.zero_optimization_stage())
    if stage != requested:
        raise PlacementError(
            "VIDBRIDGE_DEEPSPEED",
            f"{current.deepspeed} asks for ZeRO stage {requested}, the engine runs stage {stage}",
            "set a file whose stage this training can have, or unset it",
        )
    return TrainingEngine(_full_name(engine.optimizer), stage)


def _full_name(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def share(name: str, total: int, most: int, ranks: int) -> tuple[int, int]:
    """Divide a batch: the number that a device processes at once (at most `most`), and the number
    of accumulation rounds.

    Raises:
        ValueError: the total cannot be divided evenly.
    """
    if total % ranks:
        raise ValueError(
            f"{name}: {total} per optimiser step cannot be divided evenly among {ranks} processes; set a multiple of"
            f" {ranks}, or"
            " VIDBRIDGE_RANKS"
        )
    each = total // ranks
    held = min(most, each)
    if each % held:
        fit = [n for n in range(1, held + 1) if each % n == 0]
        raise ValueError(
            f"{name}: {each} per process and optimiser step is not a multiple of {held} per device; set one of"
            f" {', '.join(map(str, fit))}"
        )
    return held, each // held


def check_saving() -> None:
    """Check that models can be saved.

    Raises:
        PlacementError: ZeRO-3 is not configured to gather sharded weights on saving: every saved
            model folder would lack weights.
    """
    config = placement().deepspeed
    zero = json.loads(config.read_text(encoding="utf-8"))["zero_optimization"] if config is not None else {}
    gathers = "stage3_gather_16bit_weights_on_model_save"
    if zero.get("stage") == 3 and not zero.get(gathers):
        raise PlacementError(
            "VIDBRIDGE_DEEPSPEED",
            f"{config}: zero_optimization.{gathers} is not set, so no model could be saved",
            "set it to true",
        )
