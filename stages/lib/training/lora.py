"""Low-rank adapters (LoRA, arXiv 2106.09685): their layers, restoring them from a checkpoint, and
merging them into the weights.

PEFT inserts and runs the adapters. Merged weights are computed as a copy, since merging in place
and undoing it would leave rounding errors in the weights.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME, load_peft_weights, set_peft_model_state_dict
from transformers import PreTrainedModel

from stages.lib.models.sharded import is_scattered, load_whole
from stages.params import VISION_TARGET, LoraParams

log = logging.getLogger(__name__)

#: PEFT's prefix of a model's own names, its name of the frozen layer, and its name of the only
#: adapter.
_PREFIX = "base_model.model."
_FROZEN = "base_layer."
_ADAPTER = "default"
#: Above this share of the adapters' change lost to rounding, the saved model is hardly the trained
#: one.
_MOST_LOST = 0.5


class Merged(NamedTuple):
    """Weights under the model's own names. ``lost``: share of the adapters' change (Frobenius norm)
    lost to rounding."""

    weights: dict[str, torch.Tensor]
    lost: float


def adapters(model: PreTrainedModel, lora: LoraParams) -> LoraConfig:
    """Build the adapter configuration of this model, for a trainer that inserts them.

    A target is the end of a layer's name, in whole parts. It is searched in the language model; a
    target that begins with ``visual.`` is searched in the vision tower, where some layers have the
    same names (``gate_proj`` of Qwen2.5-VL).

    Raises:
        ValueError: a target is not a linear layer there.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    towers = {part: _names_in(model, getattr(model.base_model, tower), layers) for part, tower in _TOWERS.items()}
    chosen: list[str] = []
    for target in lora.targets:
        part = VISION_TARGET if target.startswith(VISION_TARGET) else ""
        end = target.removeprefix(part)
        matches = [full for own, full in towers[part].items() if f".{own}".endswith(f".{end}")]
        if not matches:
            available = sorted({part + _end(own) for part, names in towers.items() for own in names})
            raise ValueError(
                f"lora.targets: {target!r} is not a linear layer of this model; choose among {', '.join(available)}"
            )
        chosen += matches
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=sorted(set(chosen)),
        bias="none",
    )


#: Prefix of targets in a tower, and the tower's name in the backbones of all three families.
_TOWERS = {"": "language_model", VISION_TARGET: "visual"}


def _names_in(model: torch.nn.Module, tower: torch.nn.Module, layers: Mapping[str, torch.nn.Module]) -> dict[str, str]:
    """Map the layers of a tower, named relative to it, to their full names."""
    prefix = next(name for name, module in model.named_modules() if module is tower) + "."
    return {name.removeprefix(prefix): name for name in layers if name.startswith(prefix)}


def _end(name: str) -> str:
    """Last part of a name; the last two if the last is a number, as in ``mlp.0``."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


def load_adapters(model: PeftModel, folder: Path) -> None:
    """Restore the adapters that PEFT saved in a folder.

    Raises:
        ValueError: the adapters do not belong to this model.
    """
    # Otherwise PEFT would load a pickle (adapter_model.bin).
    if not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise ValueError(
            f"{folder}: holds no {SAFETENSORS_WEIGHTS_NAME}, and nothing else is read; remove it to start again"
        )
    saved = load_peft_weights(str(folder), device="cpu")
    if is_scattered(model):
        # PEFT would copy whole weights into parts. Its files leave out the adapter's name.
        named = {name.replace(".weight", f".{_ADAPTER}.weight"): weight for name, weight in saved.items()}
        own = {name for name, _ in model.named_parameters() if ".lora_" in name}
        wrong = sorted(named.keys() ^ own)
        if not wrong:
            load_whole(model, named, strict=False)
    else:
        result = set_peft_model_state_dict(model, saved)
        wrong = [*result.unexpected_keys, *(name for name in result.missing_keys if ".lora_" in name)]
    if wrong:
        raise ValueError(
            f"{folder}: holds adapters of another model or row ({wrong[0]} does not fit); remove it to start again"
        )


def merged(state: Mapping[str, torch.Tensor], scale: float) -> Merged:
    """Compute the weights W + scale * B A of a model with adapters; its other weights stay as they
    are.

    The sum is computed in float32 and rounded once, to W's own precision.

    Args:
        state: the whole state of a model wrapped by PEFT, gathered from all processes.
        scale: alpha / rank.
    """
    weights: dict[str, torch.Tensor] = {}
    lost = changed = 0.0
    for name, tensor in state.items():
        own = name.removeprefix(_PREFIX)
        if ".lora_" in own:
            continue
        layer, _, weight = own.rpartition(_FROZEN)
        if layer and weight == "weight":
            up, down = (state[f"{_PREFIX}{layer}lora_{side}.{_ADAPTER}.weight"].float() for side in "BA")
            change = scale * (up @ down)
            exact = tensor.float() + change
            tensor = exact.to(tensor.dtype)
            lost += float((exact - tensor.float()).square().sum(dtype=torch.float64))
            changed += float(change.square().sum(dtype=torch.float64))
            tensor = tensor.cpu()  # one by one, so that a GPU never holds two copies of all weights
        weights[layer + weight] = tensor
    return Merged(weights, (lost / changed) ** 0.5 if changed else 0.0)


def save_merged(model: PeftModel, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write configuration and weights of the merged model into ``folder``; ``state`` as in
    :func:`merged`."""
    lora = model.peft_config[_ADAPTER]
    weights, lost = merged(state, lora.lora_alpha / lora.r)
    if lost > _MOST_LOST:
        log.warning(
            "%s: rounding to the weights' precision lost %.0f%% of the adapters' change; raise learning_rate, or set"
            " precision: fp32",
            folder.name,
            100 * lost,
        )
    model.get_base_model().save_pretrained(folder, state_dict=weights)
