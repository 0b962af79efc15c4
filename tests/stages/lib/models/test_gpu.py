"""Models on a GPU against the CPU: where there is one (`make test-gpu`)."""

from __future__ import annotations

import pytest
import torch

from stages.lib.inference.generate import generate
from stages.lib.inference.policy import ModelPolicy
from stages.lib.models.processor import encode_prompts, training_batch
from tests.support.training.tiny import FAMILIES, frames, tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_and_greedy_replies_are_those_of_the_cpu(family: str) -> None:
    model, processor = tiny(family)
    items = [(f"What colour is number {number}?", frames(number)) for number in range(4)]
    prompts = encode_prompts(processor, [(text, (video,)) for text, video in items])
    batch = training_batch(processor, prompts, ["<think>red</think><answer>a red bar</answer>"] * len(items))
    seen = batch["attention_mask"].bool()
    found, replies = [], []
    for device in ("cpu", "cuda"):
        model.to(torch.device(device))  # type: ignore[arg-type]
        with torch.no_grad():
            inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
            found.append(model(**inputs).logits.log_softmax(-1).cpu()[seen])
        replies.append(generate(ModelPolicy(model, processor), items, max_new_tokens=8, batch_size=4))
    torch.testing.assert_close(found[1], found[0], atol=1e-3, rtol=0)
    assert replies[0] == replies[1]
