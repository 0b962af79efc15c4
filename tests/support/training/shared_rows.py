"""Run by a test as several processes: one packed row with videos, by each process alone and shared
by all; what differs, and what each keeps for the backward pass."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from trl.trainer.utils import add_fused_lm_head

from stages.lib.models.packing import LAYOUT, Continuation, packed_inputs
from stages.lib.models.processor import encode_prompts
from stages.runtime.ranks.distributed import launch
from stages.sft.long_rows import share_of, share_rows, shared_inputs
from tests.support.training.tiny import FAMILIES, frames, sft_row, tiny


def continuations(processor: Any) -> list[Continuation]:
    """A prompt with three replies; one about two videos, of which one has a single pair of frames;
    one with a reply."""
    shown = [(frames(1, 8),), (frames(3, 2, (48, 32)), frames(4, 6)), (frames(5, 4, (32, 64)),)]
    questions = ["What colour is number 0?", "4 5 seconds", "What colour is number 0 1 2 3 4?"]
    prompts = encode_prompts(processor, list(zip(questions, shown, strict=True)))
    drawn = torch.Generator().manual_seed(0)
    lengths = ((7, 3, 5), (4, 9), (6,))
    return [
        Continuation(prompt, [torch.randint(5, 200, (n,), generator=drawn).tolist() for n in of_prompt])
        for prompt, of_prompt in zip(prompts, lengths, strict=True)
    ]


def passed(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Log-probabilities of the scored tokens, gradients of their sum by name of weight, and bytes
    that the forward pass keeps for the backward pass."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logps = model(**inputs, fused_lm_head=True).log_probs
    logps.sum().backward()
    scored = logps.detach()[inputs["shift_labels"] != -100]
    return scored, {name: weight.grad.clone() for name, weight in model.named_parameters()}, sum(kept.values())


def of_all(values: torch.Tensor) -> torch.Tensor:
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, values)
    return torch.cat(parts)


def compared(family: str, rows: Sequence[str] = ("mixed", "long")) -> dict[str, Any]:
    told: dict[str, Any] = {}
    model, processor = tiny(family)
    model.train()
    share = share_of(model, sft_row(), packed=True)
    assert share is not None
    add_fused_lm_head(model)
    share_rows(model)
    for row in rows:
        if row == "mixed":
            given = continuations(processor)
        else:
            prompt = encode_prompts(processor, [("What colour is number 0?", (frames(1, 64, (64, 64)),))])[0]
            given = [Continuation(prompt, [[7, 8, 9, 10]])]
        inputs = packed_inputs(model.base_model, processor, given, "cpu")
        logps, gradients, kept_bytes = passed(model, dict(inputs))
        own = shared_inputs(inputs, share)
        own_logps, own_gradients, own_bytes = passed(model, own)
        for gradient in own_gradients.values():
            distributed.all_reduce(gradient)
        # By hand: a rank that scores nothing has the logits of one token that is not counted.
        largest = max(float(gradient.abs().max()) for gradient in gradients.values())
        told[row] = {
            "tokens": inputs[LAYOUT].tokens,
            "scored": len(logps),
            "logps": float((of_all(own_logps) - logps).abs().max()),
            "gradients": max(float((own_gradients[n] - gradients[n]).abs().max()) for n in gradients) / largest,
            "untouched": [name for name, gradient in gradients.items() if not gradient.any()],
            "kept_bytes": [kept_bytes, *of_all(torch.tensor([own_bytes])).tolist()],
        }
    return told


def main(home: Path, families: Sequence[str]) -> int:
    if (status := launch("tests.support.training.shared_rows", sys.argv[1:])) is not None:
        return status
    distributed.init_process_group("gloo")
    told = {family: compared(family) for family in families or FAMILIES}
    if os.environ["RANK"] == "0":
        (home / "told.json").write_text(json.dumps(told))
    distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
