"""Positions of tokens are those that the published weights were trained with, for any transformers.

``tests/data/positions.jsonl`` holds positions that `get_rope_index` of transformers itself gave,
each with its version: 5.2.0 where a temporal patch spans whole seconds, 4.49.0 (with which
Qwen2.5-VL came) elsewhere, since 5.2 cuts those seconds down to whole ones, which neither that nor
vLLM does. Rows are parts: a number of text tokens, or a video or an image with its grid and
seconds. Positions are runs of (difference to the token before, how many), an axis each.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin, Qwen2VLConfig

from stages.domain.core.frames import Frames
from stages.grpo.trainer import VideoGRPOTrainer
from stages.lib.models.load import ModelUnavailableError, load_model, load_pretrained, save_model
from stages.lib.models.positions import fault_of_rule
from stages.lib.models.processor import EncodedPrompt, encode_prompts, modality_of, prompt_batch, training_batch
from stages.lib.training.mixture import Example
from stages.runtime.paths import AFTER_LAST, POSITIONS
from tests.support.checkout import ROOT
from tests.support.training.tiny import FAMILIES, Paying, Seen, tiny
from tests.support.training.trainers import grpo, sft
from tests.support.training.video_trainer import config

GOLDEN = [json.loads(line) for line in (ROOT / "tests/data/positions.jsonl").read_text(encoding="utf-8").splitlines()]
TWO_WAYS = ("qwen2_vl", "qwen2_5_vl")


def clip(seed: int, count: int, rate: Fraction, side: int = 32) -> Frames:
    """`count` frames, one after the other at this rate."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return Frames(pixels, tuple(range(count)), count, rate)


#: From one temporal patch to twenty, from a frame in two seconds to thirty a second, two of them in
#: one prompt.
ASKED: list[tuple[str, list[Frames]]] = [
    ("What colour is number 0?", [clip(0, 16, Fraction(1, 2))]),
    ("What?", [clip(1, 2, Fraction(30))]),
    ("What colour is it then?", [clip(2, 40, Fraction(3)), clip(3, 8, Fraction(8), side=64)]),
    ("Which?", [clip(4, 24, Fraction(30000, 1001))]),
]


def encoded(processor: ProcessorMixin) -> list[EncodedPrompt]:
    return encode_prompts(processor, ASKED)


def tokens_of(case: dict[str, Any], model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The arguments of `get_rope_index` for a golden case."""
    config, rows, given = model.config, [], {"video": [], "image": []}
    seconds: list[float] = []
    for parts in case["rows"]:
        ids: list[int] = []
        for part in parts:
            if isinstance(part, int):
                ids += [7] * part
                continue
            kind, (time, height, width) = part[0], part[1]
            given[kind].append([time, height, width])
            seconds += part[2:] if part[2:] != [None] else []
            pad = config.video_token_id if kind == "video" else config.image_token_id
            alone = kind == "video" and case["family"] == "qwen3_vl"  # a frame is a grid, behind the text of its time
            for frame in range(time if alone else 1):
                before = [8, 9] if alone else []
                patches = height * width // 4 * (1 if alone else time)
                ids += [*before, config.vision_start_token_id, *[pad] * patches, config.vision_end_token_id]
                assert frame < time
        rows.append(ids)
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), 0)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        place = slice(longest - len(tokens), longest) if case["padding"] == "left" else slice(0, len(tokens))
        ids[row, place], mask[row, place] = torch.tensor(tokens), 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    for kind, grids in given.items():
        if grids:
            inputs[f"{kind}_grid_thw"] = torch.tensor(grids)
    if seconds:
        inputs["second_per_grid_ts"] = torch.tensor(seconds)
    return inputs


def unrolled(runs: Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.tensor([step for step, count in runs for _ in range(count)]).cumsum(0)


def test_positions_are_those_of_the_transformers_that_the_weights_were_trained_with(family: str) -> None:
    model, processor = tiny(family)
    cases = [case for case in GOLDEN if case["family"] == family]
    assert len(cases) >= 17
    for case in cases:
        model.config.vision_config.tokens_per_second = case["tokens_per_second"]
        inputs = tokens_of(case, model)
        kinds = modality_of(inputs["input_ids"], processor)
        positions, deltas = model.base_model.get_rope_index(mm_token_type_ids=kinds, **inputs)
        for row, mask in enumerate(inputs["attention_mask"].bool()):
            expected = torch.stack([unrolled(runs) for runs in case["positions"][row]])
            assert torch.equal(positions[:, row, mask], expected), case
            assert int(deltas[row] + mask.sum()) == case["next"][row], case
            assert not positions[:, row, ~mask].any()


@contextmanager
def shown_positions(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """Collects the positions [3, rows, tokens] with which the language model is called."""
    seen: list[torch.Tensor] = []

    def record(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["position_ids"][-3:].clone())  # generation puts those of plain text before

    hook = model.base_model.language_model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def by_hand(prompt: EncodedPrompt, replied: int, processor: Any, family: str, a_second: float) -> torch.Tensor:
    """Positions [3, tokens] of a prompt and of `replied` tokens behind it, token by token: the rule
    in the words of the papers."""
    grids, seconds = prompt.videos.grids.tolist(), prompt.videos.seconds or ()
    pads = [
        (t, h, w, seconds[number] if family == "qwen2_5_vl" else None)
        for number, (time, height, width) in enumerate(grids)
        for t in range(time)
        for h in range(height // 2)
        for w in range(width // 2)
    ]
    places: list[tuple[int, int, int]] = []
    base, last = 0, -1
    for number, token in enumerate([*prompt.ids, *[0] * replied]):
        if token != processor.video_token_id:
            last += 1
            places.append((last, last, last))
            continue
        if prompt.ids[number - 1] != processor.video_token_id:
            base = last + 1
        t, h, w, span = pads.pop(0)
        time = t if span is None else int(np.float32(t) * np.float32(span) * np.float32(a_second))
        if family == "qwen3_vl":
            time = 0
        places.append((base + time, base + h, base + w))
        last = max(last, *places[-1])
    assert not pads
    return torch.tensor(places).T


def test_sft_and_rollouts_are_shown_these_positions(family: str) -> None:
    model, processor = tiny(family)
    model.eval()
    prompts = encoded(processor)
    a_second = model.config.vision_config.tokens_per_second if family == "qwen2_5_vl" else 0
    batch = training_batch(processor, prompts, ["a red bar"] * len(prompts))
    with shown_positions(model) as seen, torch.no_grad():
        model(**batch)
    for row, prompt in enumerate(prompts):
        count = int(batch["attention_mask"][row].sum())
        expected = by_hand(prompt, count - len(prompt.ids), processor, family, a_second)
        assert torch.equal(seen[0][:, row, :count], expected), ASKED[row][0]

    with shown_positions(model) as seen:
        said = model.generate(
            **prompt_batch(processor, prompts, "cpu"), max_new_tokens=5, do_sample=False, eos_token_id=None
        )
    replied = said.shape[1] - max(len(prompt.ids) for prompt in prompts)
    assert (replied, len(seen)) == (5, 5)
    for row, prompt in enumerate(prompts):
        expected = by_hand(prompt, 4, processor, family, a_second)
        assert torch.equal(seen[0][:, row, -len(prompt.ids) :], expected[:, :-4])
        assert torch.equal(torch.cat([step[:, row] for step in seen[1:]], dim=1), expected[:, -4:])


def test_generation_and_a_whole_forward_pass_agree(family: str) -> None:
    """Logits of each step of a batched, cached generation, against one pass over prompt and reply
    alone."""
    model, processor = tiny(family)
    model.eval()
    prompts = encoded(processor)
    inputs = prompt_batch(processor, prompts, "cpu")
    out = model.generate(
        **inputs, max_new_tokens=6, do_sample=False, eos_token_id=None, output_logits=True, return_dict_in_generate=True
    )
    drawn = torch.stack(out.logits, dim=1)
    for row, prompt in enumerate(prompts):
        reply = out.sequences[row, inputs["input_ids"].shape[1] :].tolist()
        alone = prompt_batch(processor, [EncodedPrompt((*prompt.ids, *reply), prompt.videos)], "cpu")
        with torch.no_grad():
            logits = model(**alone).logits[0, len(prompt.ids) - 1 : -1]
        assert torch.allclose(drawn[row], logits, atol=2e-5), float((drawn[row] - logits).abs().max())


def test_plain_transformers_still_counts_otherwise(tmp_path: Path) -> None:
    """If this fails, transformers again counts positions as in training:
    `stages/lib/models/positions.py` can go."""
    for family in FAMILIES:
        save_model(*tiny(family), tmp_path / family)
        ours, processor = load_model(tmp_path / family, "fp32")
        plain = AutoModelForImageTextToText.from_pretrained(tmp_path / family)
        batch = training_batch(processor, encoded(processor), ["a red bar"] * len(ASKED))
        with torch.no_grad():
            same = torch.allclose(ours(**batch).logits, plain(**batch).logits, atol=1e-5)
        assert same == (family == "qwen3_vl"), family


def test_what_is_saved_says_its_rule(family: str, tmp_path: Path) -> None:
    model, processor = tiny(family)
    save_model(model, processor, tmp_path / "base")
    assert read_config(tmp_path / "base")[POSITIONS] == AFTER_LAST
    examples = [
        Example(f"s{i}", "caption", f"What colour is number {i}?", "a red bar", lambda: ASKED[0][1][0])
        for i in range(8)
    ]
    sft(
        tmp_path / "base",
        examples,
        tmp_path / "sft",
        Seen(),
        steps=1,
        warmup_steps=0,
        save_steps=1,
        tasks={"caption": 1},
    )
    grpo(
        tmp_path / "sft/out/final",
        examples,
        tmp_path / "grpo",
        Seen(),
        steps=1,
        warmup_steps=0,
        save_steps=1,
        max_completion_tokens=3,
        tasks={"caption": 1},
        beta=0.1,
    )
    for out in ("sft", "grpo"):
        assert read_config(tmp_path / out / "out/final")[POSITIONS] == AFTER_LAST


def test_seconds_keep_their_precision_under_deepspeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers casts every float of a batch to the weights' precision there; positions are
    products of the seconds."""
    model, processor = tiny("qwen2_5_vl")
    trainer = VideoGRPOTrainer(
        encode=lambda keys: encode_prompts(processor, [ASKED[int(key)] for key in keys]),
        model=model,
        rewards=Paying(lambda _, completions: [0.0 for _ in completions]),
        args=config(tmp_path, beta=0.0),
        train_dataset=datasets.Dataset.from_dict({"prompt": ["0", "1", "2", "3"]}),
        processing_class=processor,
    )
    batch = training_batch(processor, encoded(processor), ["a red bar"] * len(ASKED))
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    as_bf16 = SimpleNamespace(hf_ds_config=SimpleNamespace(dtype=lambda: torch.bfloat16), zero_stage=2)
    monkeypatch.setattr(type(trainer.accelerator.state), "deepspeed_plugin", as_bf16)
    cast = trainer._prepare_input(batch)
    assert cast["pixel_values_videos"].dtype == torch.bfloat16
    assert torch.equal(cast["second_per_grid_ts"], batch["second_per_grid_ts"])
    monkeypatch.setattr(
        model.base_model,
        "get_rope_index",
        lambda *_, second_per_grid_ts, **__: pytest.fail(str(second_per_grid_ts.dtype)),
    )
    with pytest.raises(pytest.fail.Exception, match=r"^torch\.float32$"):
        trainer._generate_single_turn(*trainer._tokenize_prompts(["0", "1"]), 1)


def read_config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def without_rule(folder: Path, **changes: Any) -> Path:
    """A saved model as version 0.1 left it, or as it was published."""
    config = {**read_config(folder), **changes}
    config.pop(POSITIONS)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "load",
    [lambda folder: load_model(folder, "fp32"), lambda folder: load_pretrained(str(folder), "main", "fp32", 4096)],
)
def test_weights_of_another_rule_are_not_mixed_up(
    load: Callable[[Path], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for family in TWO_WAYS:
        folder = tmp_path / family
        save_model(*tiny(family), folder)
        with caplog.at_level(logging.WARNING):
            load(folder)
            load(without_rule(folder, transformers_version="4.49.0"))
            assert not caplog.records, "published weights say nothing and are right"
        config = read_config(folder)
        (folder / "config.json").write_text(json.dumps(config | {"transformers_version": "5.23.0"}), encoding="utf-8")
        with caplog.at_level(logging.WARNING):
            load(folder)
        assert "set positions_behind_video to 'after_last' in config.json" in caplog.text
        caplog.clear()
        (folder / "vidbridge.json").write_text("{}", encoding="utf-8")
        with pytest.raises(ModelUnavailableError, match=r"VidBridge 0\.1 made it.*train it again"):
            load(folder)
    save_model(*tiny("qwen3_vl"), tmp_path / "qwen3_vl")
    load(without_rule(tmp_path / "qwen3_vl"))
    assert not caplog.records, "both rules are one"
    fault = fault_of_rule(Qwen2VLConfig(**{POSITIONS: "larger_side"}), "some model")
    assert fault is not None
    assert "positions_behind_video is 'larger_side'" in fault.problem
