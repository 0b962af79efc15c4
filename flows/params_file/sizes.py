"""What stages will write, before they run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from stages.params import Params, Precision, PretrainedModelParams, TrainingRow

#: Videos, samples, caches and the tracking store of a small recipe.
_BASE_GB = 1.0
_BYTES: dict[Precision, int] = {"bf16": 2, "fp32": 4}


def disk_need_gb(params: Params, stages: Iterable[str]) -> float:
    """A rough upper estimate, in GB, of what ``stages`` will write: each checkpoint
    once in place, once in DVC's cache, and the states in the scratch folder from which a row
    resumes: two of each row are kept, and one more is there while it is written.
    """
    sizes = [size for stage in stages if (size := model_gb(params, stage)) is not None]
    return (
        _BASE_GB
        + sum(weights + states for weights, states in sizes)
        + max((states / 2 for _, states in sizes), default=0)
    )


def model_gb(params: Params, stage: str) -> tuple[float, float] | None:
    """Size of a pretrained model's weights that a stage will write, in GB: in place and in DVC's
    cache, and of the two states that are kept meanwhile; None if it makes none, or a tiny model's.
    """
    if not isinstance(params.model, PretrainedModelParams):
        return None
    # A name that tells no size is taken for one of 7 billion parameters.
    billions = _billions(params.model.name) or 7.0
    table, _, name = stage.partition("@")
    if stage == "base":
        return billions * 2 * _BYTES[params.model.precision], 0.0
    rows: dict[str, TrainingRow] = {**params.sft} if table == "sft" else {**params.grpo} if table == "grpo" else {}
    if name not in rows:
        return None
    row = rows[name]
    checkpoints = -(-row.steps // row.save_steps) + 1
    return billions * 2 * checkpoints * _BYTES[_saved_precision(row)], billions * 2 * _state_bytes(row)


def tells_size(params: Params) -> bool:
    """Return whether the name of the pretrained model tells its size, so that `model_gb` is more
    than a guess.
    """
    return isinstance(params.model, PretrainedModelParams) and _billions(params.model.name) is not None


def _billions(name: str) -> float | None:
    """Billions of parameters, from a name such as ``Qwen2.5-VL-7B`` or ``SmolVLM2-500M``."""
    size = re.search(r"(\d+(?:\.\d+)?)([bBmM])\b", name)
    return None if size is None else float(size[1]) / (1 if size[2] in "bB" else 1000)


def _deepspeed() -> bool:
    return bool(os.environ.get("VIDBRIDGE_DEEPSPEED"))


def _saved_precision(row: TrainingRow) -> Precision:
    """Precision of a row's saved weights: without DeepSpeed trained weights are float32 masters,
    and saved so.
    """
    return row.precision if row.lora is not None or _deepspeed() else "fp32"


def _state_bytes(row: TrainingRow) -> int:
    """Bytes a parameter in one saved state beside the weights, which are links to a checkpoint's:
    Adam's two moments in float32, and the masters where DeepSpeed keeps them; nothing to speak of
    where adapters are trained.
    """
    if row.lora is not None:
        return 0
    return 12 if _deepspeed() else 8
