"""Losses and guards of a GRPO row, through the real trainer: each loss against its formula on the
log-probabilities of plain forward passes, and gradients against differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import datasets
import pytest
import torch

from stages.domain.rl.shaping import OverlongPenalty, overlong_paid
from stages.grpo.losses import HIGH, HIGH_TOKENS, SAMPLED, TIED
from stages.grpo.trainer import VideoGRPOTrainer
from stages.lib.models.processor import encode_prompts
from tests.support.training.tiny import Paying, tiny
from tests.support.training.video_trainer import (
    VIDEOS,
    config,
    gradients,
    plain_distributions,
    prompt_of,
    rows_of,
    without_rows_that_teach_nothing,
)

ROWS, GROUP = 8, 4
LIVE_AND_DEAD = [1.0, 0.0, 0.3, 0.5, 1.0, 1.0, 1.0, 1.0]


def trainer_of(tmp_path: Path, given: Sequence[float | None] = LIVE_AND_DEAD, **changes: Any) -> Any:
    """A trainer of two groups, whose loss is taken in two slices."""
    model, processor = tiny("qwen2_5_vl")
    values = {"beta": 0.0, "num_iterations": 2, "num_generations": GROUP, "loss_type": "dapo"}
    ours = {name: changes.pop(name) for name in ("overlong", "sampling_ratio_cap") if name in changes}
    trainer = VideoGRPOTrainer(
        encode=lambda keys: encode_prompts(processor, [("What?", VIDEOS[key]) for key in keys]),
        model=model,
        rewards=Paying(lambda _, replies: list(given)[: len(replies)]),
        args=config(tmp_path, **{**values, **changes}),
        train_dataset=datasets.Dataset.from_dict({"prompt": list(VIDEOS)}),
        processing_class=processor,
        **ours,
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    return trainer


def whole(trainer: Any) -> dict[str, Any]:
    """A generation, not shuffled and in one piece."""
    return dict(trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader()))))


@pytest.fixture(scope="module")
def generation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any]]:
    """A trainer and a generation of it, of replies that differ in length; since then the policy has
    moved, so that ratios are not 1."""
    trainer = trainer_of(tmp_path_factory.mktemp("generation"), top_entropy_quantile=0.25)
    drawn = Random(1)
    replies = [[drawn.randrange(20, 250) for _ in range(n)] for n in (2, 6, 3, 5, 6, 1, 4, 6)]
    trainer._generate_single_turn = lambda *_, **__: (replies, None)
    inputs = whole(trainer)
    of_sampling = [weights.detach().clone() for weights in trainer.model.parameters()]
    torch.manual_seed(1)
    with torch.no_grad():
        for weights in trainer.model.parameters():
            weights.add_(torch.randn_like(weights) * 0.03)
    trainer.of_sampling = of_sampling
    return trainer, inputs


def plain(trainer: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies of each row's tokens, each row alone with its own video, with
    gradients; 0 beyond a reply's end."""
    logps, entropies = (torch.zeros(inputs["completion_ids"].shape) for _ in range(2))
    for row in range(len(inputs["prompt_ids"])):
        prompt, length = prompt_of(inputs, row), int(inputs["completion_mask"][row].sum())
        if not length:
            continue
        reply = inputs["completion_ids"][row][:length]
        over_words = plain_distributions(
            trainer.model, trainer.processing_class, prompt, reply.tolist(), inputs["videos"][row]
        )[:-1]
        logps = logps.index_put((torch.tensor(row), torch.arange(length)), over_words.gather(1, reply[:, None])[:, 0])
        entropies = entropies.index_put(
            (torch.tensor(row), torch.arange(length)), -(over_words.exp() * over_words).sum(-1)
        )
    return logps, entropies


def clipped(ratio: torch.Tensor, adv: torch.Tensor, most: float | None = None) -> torch.Tensor:
    bounded = ratio if most is None else ratio.clamp(max=most)
    return -torch.minimum(bounded * adv, ratio.clamp(0.8, 1.2) * adv)


def soft(ratio: torch.Tensor, adv: torch.Tensor) -> torch.Tensor:
    warmth = torch.where(adv > 0, torch.tensor(1.0), torch.tensor(2.0))
    return -4 / warmth / (1 + torch.exp(-warmth * (ratio - 1))) * adv


def by_tokens(terms: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (terms * mask).sum() / mask.sum()


def by_replies(terms: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return ((terms * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


#: By name: settings of TRL, the term of a token from its ratio, advantage and log-probability, and
#: what the sum is divided by.
Term = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
LOSSES: dict[str, tuple[dict[str, Any], Term, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "dapo": ({}, lambda r, a, _: clipped(r, a), by_tokens),
    "delta": ({"delta": 1.3}, lambda r, a, _: clipped(r, a, 1.3), by_tokens),
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.1},
        lambda r, a, logp: -r.detach().clamp(max=1.1) * a * logp,
        by_tokens,
    ),
    "sapo": (
        {"loss_type": "sapo", "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 2.0},
        lambda r, a, _: soft(r, a),
        by_replies,
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_formula_on_plain_forward_passes(
    generation: tuple[Any, dict[str, Any]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, inputs = generation
    changes, term, divided = LOSSES[name]
    set_up(monkeypatch, trainer, top_entropy_quantile=1.0, **changes)
    logps, _ = plain(trainer, inputs)
    ratio, mask = torch.exp(logps - inputs["old_per_token_logps"]), inputs["completion_mask"]
    spread = ratio.detach()[mask.bool()]
    assert float(spread.min()) < 0.8, "ratios reach beyond every bound"
    assert float(spread.max()) > 1.3
    expected = divided(term(ratio, inputs["advantages"][:, None], logps), mask)
    formula = gradients_of(trainer, expected)
    # Each of two slices gives half of what the mean over replies is; those by tokens are summed.
    half = 0.5 if divided is by_replies else 1.0
    loss = trainer._compute_loss(trainer.model, inputs)
    assert loss.item() == pytest.approx(half * expected.item(), abs=1e-5)
    found = gradients(trainer, inputs)
    assert max(float((found[n] - half * formula[n]).abs().max()) for n in found) < 1e-5
    assert max(float(gradient.abs().max()) for gradient in formula.values()) > 1e-3


def set_up(monkeypatch: pytest.MonkeyPatch, trainer: Any, **changes: Any) -> None:
    """Give the trainer other settings, as its constructor does."""
    for name, value in changes.items():
        owner = trainer.args if name in ("delta", "sapo_temperature_pos", "sapo_temperature_neg") else trainer
        monkeypatch.setattr(owner, name, value)


def gradients_of(trainer: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    trainer.model.zero_grad()
    loss.backward()
    return {n: weight.grad.clone() for n, weight in trainer.model.named_parameters() if weight.grad is not None}


def test_delta_bounds_what_clipping_leaves() -> None:
    """Tokens of a reply with an advantage below 0 that have become more than `delta` times as
    likely."""
    ratio = torch.tensor([[0.5, 1.25, 1.4]], requires_grad=True)
    for advantage, slopes in ((-1.0, [0.0, 1.0, 0.0]), (1.0, [-1.0, 0.0, 0.0])):
        (slope,) = torch.autograd.grad(clipped(ratio, torch.tensor([[advantage]]), 1.3).sum(), ratio)
        assert slope[0].tolist() == slopes


@pytest.mark.parametrize("share", [1.0, 0.25], ids=["all", "top"])
def test_the_entropy_bonus_is_the_mean_of_the_generation(
    generation: tuple[Any, dict[str, Any]], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tokens are counted over the generation, not over what a device holds at once; rows
    without an advantage have an entropy too."""
    trainer, inputs = generation
    set_up(monkeypatch, trainer, top_entropy_quantile=share, entropy_coef=0.7)
    if share == 1:
        inputs = {name: value for name, value in inputs.items() if name != HIGH}
    _, entropies = plain(trainer, inputs)
    mask = inputs["completion_mask"] * inputs.get(HIGH, 1)
    of_bonus = gradients_of(trainer, -0.7 * by_tokens(entropies, mask))
    at_once = gradients(trainer, inputs)
    in_slices = [gradients(trainer, rows_of(inputs, rows)) for rows in (range(3), range(3, ROWS))]
    trainer.entropy_coef = 0.0
    without = gradients(trainer, inputs)
    assert max(float((at_once[n] - without[n] - of_bonus[n]).abs().max()) for n in at_once) < 1e-5
    assert max(float((at_once[n] - in_slices[0][n] - in_slices[1][n]).abs().max()) for n in at_once) < 1e-5
    assert max(float(gradient.abs().max()) for gradient in of_bonus.values()) > 1e-3


def test_the_highest_entropies_are_those_of_the_generation(
    generation: tuple[Any, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, inputs = generation
    moved = [weights.detach().clone() for weights in trainer.model.parameters()]
    load(trainer, trainer.of_sampling)
    with torch.no_grad():
        _, entropies = plain(trainer, inputs)
    load(trainer, moved)
    mask = inputs["completion_mask"].bool()
    bound = torch.quantile(entropies[mask], 0.75)
    assert torch.equal(inputs[HIGH], (entropies >= bound - TIED) & mask)
    # The four first tokens of a group come from one distribution, and share one entropy.
    assert torch.equal(inputs[HIGH][::GROUP, 0].repeat_interleave(GROUP), inputs[HIGH][:, 0])
    assert math.ceil(0.25 * int(mask.sum())) <= inputs[HIGH_TOKENS] == inputs[HIGH].sum() < 0.4 * mask.sum()
    at_once = gradients(trainer, inputs)
    logps, _ = plain(trainer, inputs)
    terms = clipped(torch.exp(logps - inputs["old_per_token_logps"]), inputs["advantages"][:, None]) * inputs[HIGH]
    # Divided by all tokens, as in the paper.
    formula = gradients_of(trainer, by_tokens(terms, inputs["completion_mask"]))
    assert max(float((at_once[n] - formula[n]).abs().max()) for n in at_once) < 1e-5
    in_slices = [gradients(trainer, rows_of(inputs, rows)) for rows in (range(3), range(3, ROWS))]
    assert max(float((at_once[n] - in_slices[0][n] - in_slices[1][n]).abs().max()) for n in at_once) < 1e-5
    set_up(monkeypatch, trainer, top_entropy_quantile=1.0)
    every = gradients(trainer, inputs)
    assert max(float((at_once[n] - every[n]).abs().max()) for n in at_once) > 1e-3


def load(trainer: Any, values: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        for weights, value in zip(trainer.model.parameters(), values, strict=True):
            weights.copy_(value)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"loss_type": "cispo", "epsilon_high": 5.0}, 4),
        ({"delta": 1.3}, 4),
        ({"top_entropy_quantile": 0.25}, 4),
        ({"entropy_coef": 0.1}, ROWS),
        ({"loss_type": "sapo"}, ROWS),
    ],
    ids=str,
)
def test_rows_without_an_advantage_are_left_out_only_where_they_teach_nothing(
    generation: tuple[Any, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], kept: int
) -> None:
    trainer, inputs = generation
    set_up(monkeypatch, trainer, **{"top_entropy_quantile": 1.0, **changes})
    rows, fewer, every = without_rows_that_teach_nothing(trainer, inputs, monkeypatch)
    assert rows == [kept, ROWS]
    assert max(float((fewer[name] - every[name]).abs().max()) for name in every) < 1e-5
    monkeypatch.setattr(trainer, "beta", 0.1)
    assert trainer._rows_without_advantage_teach


def test_truncated_replies_are_out_of_the_loss_and_in_the_mean_of_their_group(tmp_path: Path) -> None:
    """A group of truncated replies alone teaches nothing, and dynamic sampling may replace it. With
    the overlong penalty: only replies that end are paid for their length."""
    rule = OverlongPenalty(weight=0.5, margin_tokens=4)
    trainer = trainer_of(
        tmp_path, (1.0, 0.0, 0.3, 0.5, 0.1, 0.2, 0.3, 0.4), mask_truncated_completions=True, overlong=rule, beta=0.0
    )
    eos, word = trainer._tokenizer.eos_token_id, 9
    ended = [True, False, True, True, False, False, False, False]
    lengths = [2, 6, 6, 4, 6, 6, 6, 6]
    replies = [[word] * (n - 1) + [eos if end else word] for n, end in zip(lengths, ended, strict=True)]
    trainer._generate_single_turn = lambda *_, **__: (replies, None)
    inputs = whole(trainer)
    assert inputs["completion_mask"].any(dim=1).tolist() == ended
    assert inputs["num_items_in_batch"] == 2 + 6 + 4
    # (6 - 4 - tokens) / 4 from three tokens on; the second reply has none, and counts in the mean.
    paid = torch.tensor([1.0, 0.0, 0.3 - 0.5, 0.5 - 0.25])
    expected = (paid - paid.mean()) / (paid.std() + 1e-4)
    assert torch.allclose(inputs["advantages"][:4], expected * torch.tensor(ended[:4]), atol=1e-5)
    assert not inputs["advantages"][4:].any()
    ending = [row for row, end in enumerate(ended) if end]
    every, fewer = gradients(trainer, inputs), gradients(trainer, rows_of(inputs, ending))
    assert max(float((every[name] - fewer[name]).abs().max()) for name in fewer) < 1e-6
    assert any(gradient.any() for gradient in fewer.values())


def test_the_overlong_penalty_is_equation_13() -> None:
    rule = OverlongPenalty(weight=1.0, margin_tokens=4)
    assert [overlong_paid(tokens, 10, rule) for tokens in (1, 6, 7, 8, 10, 11)] == [0, 0, -0.25, -0.5, -1, -1]


def test_the_overlong_penalty_is_paid_in_tokens_and_never_to_what_has_no_verdict(tmp_path: Path) -> None:
    rule = OverlongPenalty(weight=0.5, margin_tokens=5)
    trainer = trainer_of(tmp_path, (1.0, 0.0, None, 0.5) * 2, overlong=rule)
    word = 9
    trainer._generate_single_turn = lambda *_, **__: ([[word] * n for n in (1, 2, 6, 6, 1, 2, 3, 6)], None)
    inputs = whole(trainer)
    paid = torch.tensor([1.0, 0.0 - 0.1, 0.5 - 0.5])
    expected = (paid - paid.mean()) / (paid.std() + 1e-4)
    assert torch.allclose(inputs["advantages"][[0, 1, 3]], expected, atol=1e-5)
    assert inputs["advantages"][2] == 0
    assert not inputs["completion_mask"][2].any(), "without a verdict there is no reward, and no penalty either"
    assert trainer.reward_func_names == ["task", "overlong"]


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_advantages_are_weighted_by_truncated_ratios_of_sampling(tmp_path: Path, loss_type: str) -> None:
    trainer = trainer_of(tmp_path, loss_type=loss_type, num_iterations=1, sampling_ratio_cap=2.0)
    inputs = whole(trainer)
    assert SAMPLED not in inputs, "rollouts of the present policy have no correction"
    with torch.no_grad():
        logps_BT, _ = trainer._passed(inputs, trainer.model)

    plain_gradients = gradients(trainer, inputs)
    for ratio, weight in ((1.0, 1.0), (0.5, 0.5), (1.5, 1.5), (7.0, 2.0)):
        weighted = gradients(trainer, {**inputs, SAMPLED: logps_BT - math.log(ratio)})
        for name, own in plain_gradients.items():
            torch.testing.assert_close(weighted[name], weight * own, rtol=1e-4, atol=1e-6)
    # Of each token by itself; one whose probability is not known has the weight 1.
    ratios_BT = torch.full_like(logps_BT, 1.0)
    ratios_BT[:, 0] = torch.nan
    ratios_BT[:, 1] = 0.25
    by_token = {**inputs, "advantages": inputs["advantages"][:, None].expand(ratios_BT.shape).clone()}
    by_token["advantages"][:, 1] *= 0.25
    weighted = gradients(trainer, {**inputs, SAMPLED: logps_BT - ratios_BT.log()})
    for name, own in gradients(trainer, by_token).items():
        torch.testing.assert_close(weighted[name], own, rtol=1e-4, atol=1e-6)
    metrics = trainer._metrics["train"]
    assert metrics["sampling/ratio/max"][:4] == pytest.approx([1.0, 0.5, 1.5, 7.0], rel=1e-4)
    assert metrics["sampling/logp_difference/mean"][1] == pytest.approx(math.log(2), rel=1e-4)
