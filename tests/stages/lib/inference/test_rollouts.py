"""Rollouts outside training: drawn from the model's distribution, by a generator a reply."""

from __future__ import annotations

import pytest
import torch

from stages.lib.inference.decode import SeededDraws
from stages.lib.inference.generate import rollouts
from stages.lib.inference.policy import ModelPolicy
from stages.lib.inference.vision_cache import encode_equal_videos_once
from tests.support.training.tiny import frames, tiny


def test_draws_follow_the_softmax_at_the_temperature() -> None:
    logits, temperature, rows = torch.tensor([2.0, 1.0, 0.0, -torch.inf]), 0.5, 4000
    draws = SeededDraws([f"7/{n}" for n in range(rows)], temperature, torch.device("cpu"))
    drawn = draws(logits.expand(rows, -1), range(rows))
    shares = drawn.bincount(minlength=4) / rows
    wanted = (logits / temperature).softmax(-1)
    # Five standard errors of a share near one half.
    assert torch.allclose(shares, wanted, atol=5 * 0.5 / rows**0.5)
    assert shares[3] == 0
    assert (draws(logits.expand(rows, -1), range(rows)) != drawn).any(), "the next token has draws of its own"


@pytest.mark.parametrize("shared", [False, True], ids=["plain", "equal videos once"])
def test_a_sample_more_changes_no_other_samples_rollouts(family: str, shared: bool) -> None:
    model, processor = tiny(family)
    if shared:
        model.requires_grad_(False)
        encode_equal_videos_once(model)
    items = [(f"What{' colour' * i}?", frames(i, count=4 + 2 * (i % 2))) for i in range(5)]
    seeds = [f"s{i}" for i in range(5)]

    def drawn(which: list[int], batch_size: int) -> dict[int, list[str]]:
        found = rollouts(
            *(ModelPolicy(model, processor), [items[i] for i in which], [seeds[i] for i in which]),
            **{"count": 3, "max_new_tokens": 6, "temperature": 1.0, "batch_size": batch_size},
        )
        return dict(zip(which, found, strict=True))

    whole = drawn([0, 1, 2, 3, 4], 4)
    assert all(len(set(replies)) == 3 for replies in whole.values()), "a random start hardly says the same twice"
    assert drawn([3, 1], 2) == {3: whole[3], 1: whole[1]}
    assert drawn([2], 1) == {2: whole[2]}
    torch.manual_seed(1)
    assert drawn([0, 1, 2, 3, 4], 4) == whole, "the global generator has no part in it"
