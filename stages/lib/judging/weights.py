"""Source, device and errors of models that judge in this process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants

from stages.params import LocalJudgeParams
from stages.runtime.endpoint.settings import JudgeError

if TYPE_CHECKING:
    import torch


def judge_device() -> torch.device:
    """This process's GPU if there is one, else the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def source_of(name: str) -> str:
    """A model's folder as an absolute path, or its name on the hub."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def unavailable(params: LocalJudgeParams, field: str, kind: str, reason: str) -> JudgeError:
    """Build the error of a judge's model that does not load."""
    return JudgeError(
        f"{field}.model",
        f"{params.model!r} at {field}.revision {params.revision!r} cannot be loaded as {kind} ({reason})",
        f"{where_to_look()}, or name another judge",
    )


def reason_of(error: Exception) -> str:
    """Reason why a model does not load, on one line."""
    message = " ".join(str(error).split())
    return "it needs code of its own, which is not run" if "trust_remote_code" in message else message


def where_to_look() -> str:
    """Advice on a model that is not there."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set: unset it once to download, or set HF_HOME to a cache that holds it"
    return "check the name and the revision, or download it on another machine and name the folder"
