"""Where training runs: how many processes, DeepSpeed or not. All of it is circumstance and comes from the environment.

A verb calls `launch` first; it starts the verb again under `torch.distributed.run` when more than one process is wanted.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from stages.errors import VidbridgeError


class PlacementError(VidbridgeError, ValueError):
    """The environment asks for processes or an engine that cannot be had, or that did not come to be."""


@dataclass(frozen=True)
class Placement:
    """Where this run takes place.

    Attributes:
        ranks: training processes in all.
        deepspeed: a DeepSpeed configuration, or None.
        zero_stage: the ZeRO stage that configuration asks for; 0 without one.
    """

    ranks: int
    deepspeed: Path | None
    zero_stage: int


def placement(environ: Mapping[str, str] = os.environ) -> Placement:
    """Read VIDBRIDGE_RANKS (default: the number of GPUs, or 1) and VIDBRIDGE_DEEPSPEED (a JSON file; unset: none).

    Raises:
        PlacementError: a value that cannot be used.
    """
    given = environ.get("VIDBRIDGE_RANKS", "")
    if given and not (given.isdigit() and int(given) > 0):
        raise PlacementError(f"VIDBRIDGE_RANKS: {given!r} is no number of processes; give a whole number above 0, or unset it")
    gpus = torch.cuda.device_count()
    ranks = int(given) if given else max(1, gpus)
    if gpus and ranks > gpus:
        raise PlacementError(f"VIDBRIDGE_RANKS: {ranks} processes for {gpus} GPUs; give at most {gpus}")
    config = environ.get("VIDBRIDGE_DEEPSPEED", "")
    if not config:
        return Placement(ranks, None, 0)
    path = Path(config).resolve()
    try:
        stage = int(json.loads(path.read_text(encoding="utf-8"))["zero_optimization"]["stage"])
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlacementError(
            f"VIDBRIDGE_DEEPSPEED: {config}: {error}; name a file like infra/deepspeed/zero2.json, or unset it"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise PlacementError(
            f"VIDBRIDGE_DEEPSPEED: {config}: names no zero_optimization.stage; name a file like infra/deepspeed/zero2.json, or"
            " unset it"
        ) from error
    return Placement(ranks, path, stage)


def launch(module: str, arguments: Sequence[str]) -> int | None:
    """Run `python -m module arguments` on several processes if the environment asks for it.

    Returns:
        The exit status of the processes; None when this process should do the work itself (one process is enough, or it is
        already one of several).
    """
    where = placement()
    if "LOCAL_RANK" in os.environ or (where.ranks == 1 and where.deepspeed is None):
        return None
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *_meeting(),
        "--nproc_per_node",
        str(where.ranks),
        "-m",
        module,
        *arguments,
    ]
    return subprocess.run(command, env={**os.environ, **rank_environment(where)}, check=False).returncode


def _meeting() -> list[str]:
    """How the processes of this machine find each other.

    Not ``--standalone``: torch then keeps the state of the meeting as a pickle in a store that listens on every address of the machine
    and asks nobody for a password, and the launcher unpickles what lies there every few seconds. A static meeting has no such state.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return ["--rdzv-backend=static", "--nnodes=1", "--node-rank=0", "--master-addr=127.0.0.1", f"--master-port={port}"]


def rank_environment(where: Placement) -> dict[str, str]:
    """What the processes need in their environment beside what `torch.distributed.run` sets."""
    extra = {"OMP_NUM_THREADS": os.environ.get("VIDBRIDGE_THREADS") or os.environ.get("OMP_NUM_THREADS") or "1"}
    if where.deepspeed is not None:
        extra["ACCELERATE_USE_DEEPSPEED"] = "true"
        if not torch.cuda.is_available():
            extra["DS_ACCELERATOR"] = "cpu"
    return extra


def trainer_placement() -> dict[str, Any]:
    """The keyword arguments of a trainer's configuration that say where it runs. Joins the process group if there is one.

    On a CPU `use_cpu=True` would make Accelerate ignore DeepSpeed without a word, so the state is configured here, first.

    Raises:
        PlacementError: DeepSpeed is asked for in a process that no launcher started.
    """
    where = placement()
    gpu = torch.cuda.is_available()
    common: dict[str, Any] = {"dataloader_pin_memory": gpu}
    if where.deepspeed is None:
        return {**common, "use_cpu": not gpu}
    if "LOCAL_RANK" not in os.environ:
        raise PlacementError(
            "VIDBRIDGE_DEEPSPEED: set, but no process group was launched; start through the stage's own command, or unset it"
        )
    common["deepspeed"] = str(where.deepspeed)
    if gpu:
        return common
    import deepspeed.ops
    from accelerate import PartialState

    # DeepSpeed would compile C++ here, and fail where there is no compiler, for an operation that only its inference uses.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    PartialState(backend="gloo")
    return {**common, "use_cpu": False, "accelerator_config": {"use_configured_state": True}}


class TrainingEngine(NamedTuple):
    """What really trains.

    Attributes:
        name: full name of the class: of DeepSpeed its optimizer, which is the one that shards; else of the model as it is wrapped.
        stage: ZeRO stage; 0 without DeepSpeed.
    """

    name: str
    stage: int


def engine_of(trainer: Any) -> TrainingEngine:
    """The engine of a trainer whose training has begun.

    Raises:
        PlacementError: it is not the engine or not the number of processes that the environment asks for. Training would go on,
            with another batch or without the memory that was counted on, and nobody would notice.
    """
    where = placement()
    processes = trainer.accelerator.num_processes
    if processes != where.ranks:
        raise PlacementError(
            f"VIDBRIDGE_RANKS: {where.ranks} processes should train, {processes} do; start through the stage's own command, which"
            " launches them"
        )
    engine = trainer.model_wrapped
    if where.deepspeed is None:
        return TrainingEngine(_full_name(engine), 0)
    from deepspeed import DeepSpeedEngine

    if not isinstance(engine, DeepSpeedEngine):
        raise PlacementError(
            f"VIDBRIDGE_DEEPSPEED: set, but {_full_name(engine)} trains, not a DeepSpeed engine; unset it, or start through the"
            " stage's own command"
        )
    asked, stage = where.zero_stage, int(engine.zero_optimization_stage())
    if stage != asked:
        raise PlacementError(f"VIDBRIDGE_DEEPSPEED: {where.deepspeed} asks for ZeRO stage {asked}, the engine runs stage {stage}")
    return TrainingEngine(_full_name(engine.optimizer), stage)


def _full_name(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def share(name: str, total: int, most: int, ranks: int) -> tuple[int, int]:
    """How many of `total` a device holds at once (at most `most`), and over how many rounds gradients accumulate.

    Raises:
        ValueError: the total cannot be dealt evenly.
    """
    if total % ranks:
        raise ValueError(
            f"{name}: {total} an optimiser step cannot be dealt evenly to {ranks} processes; choose a multiple of {ranks}, or set"
            " VIDBRIDGE_RANKS"
        )
    each = total // ranks
    held = min(most, each)
    if each % held:
        fit = [n for n in range(1, held + 1) if each % n == 0]
        raise ValueError(
            f"{name}: {each} a process an optimiser step is no multiple of {held} a device; choose one of {', '.join(map(str, fit))}"
        )
    return held, each // held


def check_saving() -> None:
    """
    Raises:
        PlacementError: ZeRO-3 that is not told to gather what it has scattered: every saved model folder would be without weights.
    """
    config = placement().deepspeed
    zero = json.loads(config.read_text(encoding="utf-8"))["zero_optimization"] if config is not None else {}
    gathers = "stage3_gather_16bit_weights_on_model_save"
    if zero.get("stage") == 3 and not zero.get(gathers):
        raise PlacementError(
            f"VIDBRIDGE_DEEPSPEED: {config}: zero_optimization.{gathers} is not set, so no model could be saved; set it to true"
        )
