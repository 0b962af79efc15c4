"""Weights that the processes of a training share by FSDP2 (torch's ``fully_shard``): whether they
are apart now, and gathering them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def is_scattered(module: torch.nn.Module) -> bool:
    """Whether a pass through the module gathers weights, so that all processes have to make it."""
    return any(isinstance(weight, DTensor) for weight in module.parameters())


@contextmanager
def gathered(model: torch.nn.Module) -> Iterator[None]:
    """Within this context every process holds all weights, and passes through the model need no
    other process. All processes must enter it and leave it. For models that are not sharded by
    FSDP2 this does nothing.

    A rollout passes hundreds of times through the model: gathering each layer each time would cost
    more than the pass.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    # Otherwise the first pass of a training would set again what is restored below.
    model._get_fsdp_state()._lazy_init()
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    groups = [group for part in parts for group in part._get_fsdp_state()._fsdp_param_groups]
    resharding = [group.post_forward_mesh_info for group in groups]
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for group, own in zip(groups, resharding, strict=True):
            group.post_forward_mesh_info = own
        for part in parts:
            part.reshard()


def own_class(model: torch.nn.Module) -> type[Any]:
    """Class of a model before it was sharded: ``fully_shard`` derives one of its own."""
    kind: type[Any] = type(model)
    return kind.__mro__[kind._orig_cls_mro_index] if isinstance(model, FSDPModule) else kind


@contextmanager
def under_own_class(model: torch.nn.Module) -> Iterator[None]:
    """Within this context a model has the class that it had before it was sharded, from whose name
    transformers knows under which names its weights are saved."""
    sharded = type(model)
    model.__class__ = own_class(model)
    try:
        yield
    finally:
        model.__class__ = sharded


def load_whole(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], *, strict: bool = True) -> None:
    """Give a model, sharded or not, the weights of a whole one; every process has them. Unless
    ``strict``, its other weights stay."""
    options = StateDictOptions(full_state_dict=True, strict=strict)
    set_model_state_dict(model, dict(weights), options=options)
