"""Requests to vLLM, and the check that training sees the same tokens. vLLM itself needs a GPU and
is not run here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import ProcessorMixin
from transformers.video_utils import VideoMetadata
from trl import GRPOConfig
from trl.generation import vllm_generation

from stages.grpo.policy.engine import (
    EngineError,
    VideoEngine,
    engine_settings,
    never_sampled,
    rollout_engine,
    vllm_request,
)
from stages.grpo.trainer import VideoGRPOTrainer
from stages.lib.models.load import load_model, save_model
from stages.lib.models.processor import encode_prompts, modality_of
from tests.support.training.tiny import Paying, frames, tiny

SHOWN = {"even": (frames(1, 8, (48, 64)),), "odd": (frames(2, 7),), "two": (frames(3, 4), frames(4, 8, (64, 32)))}


def as_vllm_processes(processor: Any, request: Mapping[str, Any]) -> tuple[list[int], dict[str, Any]]:
    """Token ids and video fields as vLLM 0.31 makes them of a request
    (vllm/model_executor/models/qwen2_5_vl.py and qwen3_vl.py).

    Frames go through the model's own processor, told only what the request says. Each placeholder
    is replaced by as many as the video has merged patches; Qwen3-VL's by the time, a start, the
    patches and an end for each pair of frames.
    """
    videos = request["multi_modal_data"]["video"]
    told = [
        VideoMetadata(**{name: value for name, value in data.items() if name != "do_sample_frames"})
        for _, data in videos
    ]
    fields = processor(
        text=["<|vision_start|><|video_pad|><|vision_end|>" * len(videos)],
        videos=[pixels.copy() for pixels, _ in videos],
        video_metadata=told,
        **request["mm_processor_kwargs"],
    )
    tokenizer, merge = processor.tokenizer, processor.video_processor.merge_size**2
    replacements = []
    for (_, data), grid in zip(videos, fields["video_grid_thw"], strict=True):
        pairs, height, width = (int(size) for size in grid)
        patches = [processor.video_token_id] * (height * width // merge)
        if "Qwen3" not in type(processor).__name__:
            replacements.append(patches * pairs)
            continue
        indices = list(data["frames_indices"])
        indices += indices[-1:] * (len(indices) % 2)
        times = [(indices[2 * n] / data["fps"] + indices[2 * n + 1] / data["fps"]) / 2 for n in range(pairs)]
        start, end = (tokenizer.convert_tokens_to_ids(f"<|vision_{side}|>") for side in ("start", "end"))
        replacements.append(
            [
                t
                for time in times
                for t in [*tokenizer.encode(f"<{time:.1f} seconds>", add_special_tokens=False), start, *patches, end]
            ]
        )
    rest = iter(replacements)
    ids = [
        t
        for token in request["prompt_token_ids"]
        for t in (next(rest) if token == processor.video_token_id else [token])
    ]
    assert next(rest, None) is None
    return ids, fields


@pytest.mark.parametrize("name", list(SHOWN))
def test_a_request_leads_vllm_to_what_is_trained_on(family: str, name: str) -> None:
    _, processor = tiny(family)
    request = vllm_request(processor, "What happens first?", SHOWN[name])
    assert request["prompt_token_ids"].count(processor.video_token_id) == len(SHOWN[name])
    assert request["mm_processor_kwargs"] == {"do_sample_frames": False}
    for (pixels, told), shown in zip(request["multi_modal_data"]["video"], SHOWN[name], strict=True):
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, shown.pixels)
        height, width = pixels.shape[1:3]
        assert told == {
            "total_num_frames": shown.total,
            "fps": 8.0,
            "width": width,
            "height": height,
            "duration": shown.total / 8,
            "frames_indices": list(shown.indices),
            "do_sample_frames": False,
        }
    (trained,) = encode_prompts(processor, [("What happens first?", SHOWN[name])])
    ids, fields = as_vllm_processes(processor, request)
    assert ids == list(trained.ids)
    assert torch.equal(torch.as_tensor(fields["pixel_values_videos"]), trained.videos.pixels)
    assert torch.equal(torch.as_tensor(fields["video_grid_thw"]), trained.videos.grids)
    if family == "qwen2_5_vl":
        assert tuple(fields["second_per_grid_ts"]) == trained.videos.seconds


def test_placeholders_are_kept_from_being_sampled() -> None:
    _, processor = tiny("qwen2_5_vl")
    image, video = processor.image_token_id, processor.video_token_id  # type: ignore[attr-defined]
    assert never_sampled(processor, vllm=False) == {"suppress_tokens": [image, video]}
    assert never_sampled(processor, vllm=True) == {"logit_bias": {image: -100.0, video: -100.0}}


def test_what_cannot_generate_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [rollout_engine({}), rollout_engine({"VIDBRIDGE_ROLLOUT_ENGINE": "hf"})] == ["hf", "hf"]
    with pytest.raises(
        EngineError, match=r"VIDBRIDGE_ROLLOUT_ENGINE: 'server' is unknown; set hf, or vllm .*takes no videos"
    ):
        rollout_engine({"VIDBRIDGE_ROLLOUT_ENGINE": "server"})
    wanted = {"VIDBRIDGE_ROLLOUT_ENGINE": "vllm"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="needs a GPU"):
        rollout_engine(wanted)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("stages.grpo.policy.engine.find_spec", lambda name: None)
    with pytest.raises(EngineError, match="vllm is not installed; install"):
        rollout_engine(wanted)
    assert engine_settings("hf", {"VIDBRIDGE_VLLM_MEMORY": "x"}) == {}
    settings = engine_settings("vllm", {"VIDBRIDGE_VLLM_MEMORY": "0.4"})
    assert settings == {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.4}
    for wrong in ("0", "1", "x", "nan"):
        with pytest.raises(EngineError, match=f"VIDBRIDGE_VLLM_MEMORY: '{wrong}' is not a fraction"):
            engine_settings("vllm", {"VIDBRIDGE_VLLM_MEMORY": wrong})


class Engine:
    """Stands in for `vllm.LLM`: takes what TRL gives that one, reads requests by vLLM's rules, and
    draws with transformers."""

    def __init__(self, model: str, **settings: Any) -> None:
        self.net, self.processor = load_model(Path(model), "fp32")
        # What vLLM loads is not what is trained: without weights from the trainer it generates
        # nonsense.
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.zero_()
        runner = SimpleNamespace(model_runner=SimpleNamespace(model=self))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=runner))
        self.asked: list[Sequence[Mapping[str, Any]]] = []

    def load_weights(self, named: Sequence[tuple[str, torch.Tensor]]) -> None:
        for name, values in named:
            self.net.get_parameter(name).data.copy_(values)

    def reset_prefix_cache(self) -> None: ...

    def generate(self, prompts: Sequence[Mapping[str, Any]], *, sampling_params: Any, use_tqdm: bool) -> list[Any]:
        self.asked.append(prompts)
        return [self._answer(prompt, sampling_params) for prompt in prompts]

    @torch.no_grad()
    def _answer(self, request: Mapping[str, Any], wanted: Any) -> Any:
        ids, fields = as_vllm_processes(self.processor, request)
        shown = {
            name: torch.as_tensor(fields[name])
            for name in ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
        }
        row, drawn, logprobs = torch.tensor([ids]), [], []
        for _ in range(wanted.max_tokens):
            logits = self.net(input_ids=row, mm_token_type_ids=modality_of(row, self.processor), **shown).logits[0, -1]
            # Reported without the bias: a trained model gives placeholders next to nothing, this
            # random one a few per cent.
            logps = torch.log_softmax(logits / wanted.temperature, dim=-1)
            for token, bias in wanted.logit_bias.items():
                logits[token] += bias
            token = int(torch.multinomial(torch.softmax(logits / wanted.temperature, dim=-1), 1))
            drawn.append(token)
            logprobs.append({token: SimpleNamespace(logprob=float(logps[token]), rank=1)})
            if token == self.processor.tokenizer.eos_token_id:  # type: ignore[attr-defined]
                break
            row = torch.cat([row, torch.tensor([[token]])], dim=1)
        return SimpleNamespace(prompt_token_ids=ids, outputs=[SimpleNamespace(token_ids=drawn, logprobs=logprobs)])


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """TRL with the stand-in for vLLM; the variables that TRL sets for it go again."""
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "LLM", Engine, raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", SimpleNamespace, raising=False)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def trained(tmp_path: Path, blind: bool) -> tuple[Engine, ProcessorMixin, list[dict[str, float]]]:
    """GRPO on rollouts of the stand-in, two steps. `blind`: one, and its requests show other frames
    than are trained on."""
    save_model(*tiny("qwen2_5_vl"), tmp_path / "base")
    model, processor = load_model(tmp_path / "base", "fp32")
    videos = {"a": (frames(1, 4),), "b": (frames(2, 4),)}
    other = {"a": (frames(5, 4),), "b": (frames(6, 4),)}
    trainer = VideoGRPOTrainer(
        encode=lambda keys: encode_prompts(processor, [(f"number {key}?", videos[key]) for key in keys]),
        request=lambda key: vllm_request(processor, f"number {key}?", (other if blind else videos)[key]),
        model=model,
        rewards=Paying(lambda _, completions: [float(len(reply)) for reply in completions]),
        args=GRPOConfig(
            output_dir=str(tmp_path / "out"),
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=6,
            max_steps=1 if blind else 2,
            logging_steps=1,
            learning_rate=1e-3,
            activation_checkpointing=False,
            gradient_checkpointing=None,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            **engine_settings("vllm", {}),
        ),
        train_dataset=datasets.Dataset.from_dict({"prompt": ["a", "b"] * 4}),
        processing_class=processor,
    )
    trainer.train()
    return trainer.vllm_generation.llm._engine, processor, [row for row in trainer.state.log_history if "loss" in row]


def test_the_trainer_shows_the_engine_the_videos_it_trains_on(tmp_path: Path, engine: None) -> None:
    asked, processor, logs = trained(tmp_path, blind=False)
    assert [len(rows) for rows in asked.asked] == [4, 4]
    for rows in asked.asked:
        assert all(row["prompt_token_ids"].count(processor.video_token_id) == 1 for row in rows)  # type: ignore[attr-defined]
    # In the second step too: the engine has been given the weights that the first one made.
    for log in logs:
        assert log["sampling/sampling_logp_difference/max"] < 1e-4
        assert log["grad_norm"] > 0


def test_an_engine_that_saw_another_video_is_told_apart(tmp_path: Path, engine: None) -> None:
    *_, logs = trained(tmp_path, blind=True)
    assert min(log["sampling/sampling_logp_difference/max"] for log in logs) > 1e-2


def test_rollouts_from_other_tokens_are_refused() -> None:
    stand_in = SimpleNamespace(
        generate=lambda requests: [SimpleNamespace(prompt_token_ids=[1, 2, 2]) for _ in requests], version=7
    )
    asked = VideoEngine(stand_in)
    assert asked.version == 7
    asked.requests = [{}]
    with pytest.raises(EngineError, match="row 0 was generated from 3 tokens that are not the 2 trained on"):
        asked.generate([{"prompt_token_ids": [1, 2]}])
    with pytest.raises(EngineError, match="2 prompts but 1 requests"):
        asked.generate([{"prompt_token_ids": [1, 2]}] * 2)
