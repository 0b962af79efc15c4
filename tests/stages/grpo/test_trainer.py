"""The loss of the video trainer is that of a plain forward pass of each row with its own video, and
the stock trainer's is not."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import datasets
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel
from trl import GRPOTrainer

from stages.domain.core.frames import Frames
from stages.grpo.trainer import VideoGRPOTrainer
from stages.lib.inference.vision_cache import _KeptFeatures, equal_to, fingerprint
from stages.lib.models.load import freeze, load_model, save_model
from stages.lib.models.processor import EncodedPrompt, VideoFields, encode_prompts, placeholder_ids, split_videos
from stages.lib.training.lora import adapters
from stages.params import LoraParams
from tests.support.training.tiny import LORA, Paying, frames, tiny
from tests.support.training.video_trainer import (
    TOLERANCE,
    VIDEOS,
    config,
    gradients,
    plain_logps,
    prepared,
    prompt_of,
    rows_of,
    without_rows_that_teach_nothing,
    worst_errors,
)


def errors_of_a_step(
    trainer: GRPOTrainer, reference: PreTrainedModel, references: list[tuple[tuple[int, ...], VideoFields]]
) -> dict[str, float]:
    """:func:`worst_errors` of a step whose rows are all the prompts, shuffled."""
    slices, videos_of = prepared(trainer), dict(references)
    errors = worst_errors(trainer, slices, videos_of, reference)
    order = [prompt_of(inputs, row) for inputs in slices for row in range(len(inputs["prompt_ids"]))]
    assert set(order) == set(videos_of), "every prompt was answered"
    assert order != sorted(order, key=list(videos_of).index), "the rows were shuffled"
    return errors


def drift(model: PreTrainedModel) -> None:
    """Move the policy away from the reference, so that mixing the two up is seen. What is not
    trained stays."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.requires_grad:
                weights.add_(torch.randn_like(weights) * 0.02)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_logps_equal_a_plain_forward(family: str, tmp_path: Path, lora: dict[str, Any] | None) -> None:
    model, processor = tiny(family)
    save_model(model, processor, tmp_path / "model")
    model.config._name_or_path = str(tmp_path / "model")  # where TRL loads the reference from
    start = load_model(tmp_path / "model", "fp32")[0].eval()
    questions = {key: f"What colour is number {i}?" for i, key in enumerate(VIDEOS)}

    def encode(keys: Sequence[str]) -> list[EncodedPrompt]:
        return encode_prompts(processor, [(questions[key], VIDEOS[key]) for key in keys])

    trainer = VideoGRPOTrainer(
        encode=encode,
        model=model,
        rewards=Paying(lambda _, completions: [float(len(text)) for text in completions]),
        args=config(tmp_path),
        train_dataset=datasets.Dataset.from_dict({"prompt": list(VIDEOS)}),
        processing_class=processor,
        peft_config=None if lora is None else adapters(model, LoraParams.model_validate(lora)),
    )
    assert (trainer.ref_model is None) == (lora is not None), (
        "adapters taken out are the reference: no second model is held"
    )
    drift(trainer.model)
    encoded: list[int] = []
    model.model.visual.register_forward_hook(
        lambda _, __, kwargs, ___: encoded.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    errors = errors_of_a_step(trainer, start, [(prompt.ids, prompt.videos) for prompt in encode(list(VIDEOS))])
    assert max(errors.values()) < TOLERANCE, errors
    assert encoded[0] == 5, "eight rollouts, four prompts, five distinct videos: each is encoded once in a generation"
    assert lora is None or encoded == [5], (
        "beside adapters on the text the tower is frozen, and its features serve all passes"
    )
    (one,) = encode(["a"])
    policy, reference = (
        plain_logps(net, processor, one.ids, one.ids[:4], one.videos) for net in (trainer.model, start)
    )
    assert not torch.allclose(policy, reference, atol=1e-2)


def test_equal_videos_are_found() -> None:
    a, b = torch.rand(4, 6), torch.rand(4, 6)
    almost = a.flip(0)  # the same sum
    grids = [[1, 2, 2]] * 5 + [[1, 1, 2], [1, 4, 1]]
    assert equal_to([a, b, a.clone(), almost, b.clone(), a[:2], a.clone()], grids) == [0, 1, 0, 3, 1, 5, 6]


def write_video(path: Path, shown: Frames) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(4))
        stream.width, stream.height, stream.pix_fmt = shown.pixels.shape[2], shown.pixels.shape[1], "yuv420p"
        for picture in shown.pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())


def test_stock_trainer_computes_the_loss_without_the_video(tmp_path: Path) -> None:
    """If this fails, TRL has learned video: look whether our four overrides can go."""
    model, processor = tiny("qwen2_5_vl")
    save_model(model, processor, tmp_path / "model")
    model.config._name_or_path = str(tmp_path / "model")
    prompts = []
    for i in range(4):
        path = tmp_path / f"{i}.mp4"
        write_video(path, frames(i, size=(32, 32)))
        content = [
            {"type": "video", "video": str(path), "text": None},
            {"type": "text", "video": None, "text": f"What colour is number {i}?"},
        ]
        prompts.append([{"role": "user", "content": content}])
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [float(len(turn[0]["content"])) for turn in completions],
        # A sampled video token is another of its faults, kept out here to see the one that counts.
        args=config(tmp_path, generation_kwargs={"suppress_tokens": placeholder_ids(processor)}),
        train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
        processing_class=processor,
    )
    references = []
    for prompt in prompts:
        fields = processor.apply_chat_template([prompt], add_generation_prompt=True, tokenize=True, return_dict=True)
        references.append((tuple(fields["input_ids"][0]), split_videos(fields, [1])[0]))
    errors = errors_of_a_step(trainer, trainer.ref_model, references)
    assert errors["loss"] > 0.1, errors
    assert errors["old"] > 0.1, errors


def test_placeholders_are_never_sampled(tmp_path: Path) -> None:
    model, processor = tiny("qwen2_5_vl")
    head = model.get_output_embeddings().weight
    with torch.no_grad():  # untied from the input for this test: the video token towers over all others
        head[processor.video_token_id] *= 50
    trainer = VideoGRPOTrainer(
        encode=lambda keys: encode_prompts(processor, [("What?", VIDEOS[key]) for key in keys]),
        model=model,
        rewards=Paying(lambda _, completions: [0.0 for _ in completions]),
        args=config(tmp_path, beta=0.0, num_iterations=1),
        train_dataset=datasets.Dataset.from_dict({"prompt": list(VIDEOS)}),
        processing_class=processor,
    )
    trainer.model.train()
    trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    assert trainer._buffered_inputs is not None
    for inputs in trainer._buffered_inputs:
        assert not (inputs["completion_ids"] == processor.video_token_id).any()
        assert not (inputs["completion_ids"] == processor.image_token_id).any()


@pytest.mark.parametrize("scale", ["group", "none", "batch"])
def test_a_reward_of_none_teaches_nothing(tmp_path: Path, scale: str) -> None:
    model, processor = tiny("qwen2_5_vl")
    given: list[float | None] = [1.0, 0.0, None, 0.5, None, None, None, None]

    trainer = VideoGRPOTrainer(
        encode=lambda keys: encode_prompts(processor, [("What?", VIDEOS[key]) for key in keys]),
        model=model,
        rewards=Paying(lambda _, completions: given[: len(completions)]),
        args=config(tmp_path, beta=0.0, num_iterations=1, num_generations=4, scale_rewards=scale),
        train_dataset=datasets.Dataset.from_dict({"prompt": list(VIDEOS)}),
        processing_class=processor,
    )
    trainer.model.train()
    output = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    scored = torch.tensor([1.0, 0.0, 0.5])
    spread = 1.0 if scale == "none" else float(scored.std()) + 1e-4
    expected = torch.zeros(8)
    expected[[0, 1, 3]] = (scored - scored.mean()) / spread
    assert torch.allclose(output["advantages"], expected, atol=1e-4), output["advantages"]
    assert trainer._metrics["train"]["masked_rollouts"] == [5.0]
    assert trainer._metrics["train"]["reward"][-1] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("given", "kept"), [([1.0, 0.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0], 4), ([1.0] * 8, 1), ([0.0, 1.0] * 4, 8)]
)
def test_rows_without_an_advantage_are_left_out_and_change_no_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[float], kept: int
) -> None:
    model, processor = tiny("qwen2_5_vl")
    trainer = VideoGRPOTrainer(
        encode=lambda keys: encode_prompts(processor, [("What?", VIDEOS[key]) for key in keys]),
        model=model,
        rewards=Paying(lambda _, completions: given[: len(completions)]),
        args=config(
            tmp_path, beta=0.0, num_iterations=1, num_generations=4, gradient_accumulation_steps=2, loss_type="dapo"
        ),
        train_dataset=datasets.Dataset.from_dict({"prompt": list(VIDEOS)}),
        processing_class=processor,
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    inputs = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    rows, fewer, every = without_rows_that_teach_nothing(trainer, inputs, monkeypatch)
    assert rows == [kept, 8]
    assert fewer.keys() == every.keys()
    assert max(float((fewer[name] - every[name]).abs().max()) for name in every) < TOLERANCE
    assert any(gradient.any() for gradient in every.values()) == (len(set(given)) > 1)


def _frozen(family: str, tmp_path: Path, freezing: bool) -> tuple[VideoGRPOTrainer, list[int]]:
    """A trainer whose vision tower reports how many videos it is shown, call by call."""
    model, processor = tiny(family)
    if freezing:
        freeze(model, ["vision"])
    calls: list[int] = []
    stock = model.base_model.get_video_features

    def counting(pixels: torch.Tensor, grids: torch.Tensor, **kwargs: Any) -> Any:
        calls.append(len(grids))
        return stock(pixels, grids, **kwargs)

    model.base_model.get_video_features = counting
    trainer = VideoGRPOTrainer(
        encode=lambda keys: encode_prompts(processor, [("What?", VIDEOS[key]) for key in keys]),
        model=model,
        rewards=Paying(lambda _, completions: [float(n % 3) for n in range(len(completions))]),
        args=config(tmp_path, beta=0.0, num_iterations=1, num_generations=4, loss_type="dapo"),
        train_dataset=datasets.Dataset.from_dict({"prompt": list(VIDEOS)}),
        processing_class=processor,
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer, calls


def test_a_frozen_tower_sees_each_video_once(family: str, tmp_path: Path) -> None:
    trainer, calls = _frozen(family, tmp_path, freezing=True)
    batch = next(iter(trainer.get_train_dataloader()))
    inputs = trainer._generate_and_score_completions(batch)
    distinct = len({id(video) for row in batch for video in VIDEOS[row["prompt"]]})
    assert sum(calls) == distinct, "once for all rollouts"
    frozen = gradients(trainer, inputs)
    assert sum(calls) == distinct, "and the loss asks for none again"
    assert not any("visual" in name for name in frozen)
    assert any(gradient.any() for gradient in frozen.values())

    # The same rollouts through a tower that is trained: everything but the tower learns the same.
    plain, seen = _frozen(family, tmp_path / "plain", freezing=False)
    plain.model.load_state_dict(trainer.model.state_dict())
    whole = gradients(plain, inputs)
    assert sum(seen) == distinct
    assert frozen.keys() < whole.keys()
    assert max(float((frozen[name] - whole[name]).abs().max()) for name in frozen) < TOLERANCE


def test_kept_features_stay_within_their_bound() -> None:
    kept = _KeptFeatures(most_bytes=1000)
    for number in range(10):
        kept.keep(
            {(float(number), 0.0, 1, 1, 1): (torch.zeros(100), [])}, SimpleNamespace(last_hidden_state=torch.zeros(5))
        )
    assert sum((float(number), 0.0, 1, 1, 1) in kept for number in range(10)) == 2
    assert (9.0, 0.0, 1, 1, 1) in kept
    output = kept.keep({}, None)
    assert output.last_hidden_state is None


def test_fingerprints_tell_videos_apart() -> None:
    grid = torch.tensor([1, 2, 2])
    video = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    same, swapped = video.clone(), video[[1, 0, 2, 3]]
    assert fingerprint(video, grid) == fingerprint(same, grid)
    assert fingerprint(video, grid) != fingerprint(swapped, grid), "the same patches in another order"
    assert fingerprint(video, grid) != fingerprint(video, torch.tensor([2, 2, 1]))


@pytest.mark.parametrize(("loss", "factor"), [("dapo", 1.0), ("bnpo", 1.0), ("grpo", 4 / 8), ("dr_grpo", 4 / 8)])
def test_rollouts_without_a_reward_are_not_in_the_loss(tmp_path: Path, loss: str, factor: float) -> None:
    model, processor = tiny("qwen2_5_vl")
    save_model(model, processor, tmp_path / "model")
    model.config._name_or_path = str(tmp_path / "model")
    given: list[float | None] = [1.0, 0.0, None, 0.5, None, 1.0, None, None]
    told: list[tuple[int, int]] = []

    class Refused(Exception):
        pass

    def on_masked(masked: int, rollouts: int) -> None:
        told.append((masked, rollouts))
        if len(told) == 1:
            raise Refused

    trainer = VideoGRPOTrainer(
        encode=lambda keys: encode_prompts(processor, [("What?", VIDEOS[key]) for key in keys]),
        rewards=Paying(lambda _, completions: given[: len(completions)], on_masked=on_masked),
        model=model,
        # A KL term: without one, an advantage of 0 would be enough.
        args=config(tmp_path, num_iterations=1, num_generations=4, loss_type=loss),
        train_dataset=datasets.Dataset.from_dict({"prompt": list(VIDEOS)}),
        processing_class=processor,
    )
    drift(trainer.model)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    with pytest.raises(Refused):
        trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    inputs = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    assert told == [(4, 8)] * 2, "nothing of a step that was broken off is counted in the next"
    kept = [row for row, value in enumerate(given) if value is not None]
    assert not inputs["completion_mask"][[2, 4, 6, 7]].any()
    assert inputs["num_items_in_batch"] == inputs["completion_mask"][kept].sum() > 0
    # The only one of its group with a reward has nothing to be compared with.
    assert inputs["advantages"][5] == 0
    with_masked, without = gradients(trainer, inputs), gradients(trainer, rows_of(inputs, kept))
    assert any(gradient.any() for gradient in without.values())
    for name, gradient in without.items():
        # Where a loss divides by the number of rollouts, those that are masked stay in that number,
        # as truncated ones do.
        assert torch.allclose(with_masked[name], gradient * factor, atol=TOLERANCE), name
