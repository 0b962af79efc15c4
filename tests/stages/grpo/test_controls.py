"""Controls on changed videos: they change no rollout, are measured correctly, and reward frame
order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from stages.domain.rl.shaping import TemporalContrast
from stages.grpo.controls import changed_item, contrast_of
from stages.grpo.train import train_grpo
from stages.lib.engine.wire import Reply
from stages.lib.inference.generate import rollouts
from stages.lib.training.mixture import Example
from tests.support.servers.engine.stand_in import HfEngine, served
from tests.support.training.tiny import LORA, Paying, Reward, Seen, grpo_row, length_reward, tasks_of

CONTRAST = {"weight": 0.3, "ratio": 1.0, "rollouts": 2, "min_share": 0.05}


def shares(_: Sequence[str], replies: Sequence[str]) -> list[float | None]:
    return [len(reply) / 100 for reply in replies]


def vowels(_: Sequence[str], replies: Sequence[str]) -> list[float | None]:
    return [float(sum(reply.count(vowel) for vowel in "aeiou")) for reply in replies]


def none_of_the_first_prompt(keys: Sequence[str], replies: Sequence[str]) -> list[float | None]:
    return [None if key == keys[0] else float(len(reply)) for key, reply in zip(keys, replies, strict=True)]


def train(
    folder: Path,
    examples: list[Example],
    home: Path,
    seen: Seen,
    objectives: dict[str, Reward] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    rewards = Paying(
        objectives or length_reward,
        shares=shares,
        control_gauges=lambda own, blank, shuffled: {"blank_video": (blank or 0.0) / own},
        tasks=tasks_of(examples),
    )
    return train_grpo(
        folder,
        examples,
        grpo_row(**changes),
        stage="grpo@bridge",
        rewards=rewards,
        seed=1,
        out=home / "out",
        scratch=home / "scratch",
        hooks=seen.hooks,
    )


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_controls_move_no_rollout(
    folder: Path, examples: list[Example], tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    with_them, without = Seen(), Seen()
    train(folder, examples, tmp_path / "a", with_them, steps=3, save_steps=3, controls_every=2, lora=lora)
    train(folder, examples, tmp_path / "b", without, steps=3, save_steps=3, lora=lora)
    mine, theirs = (load_file(tmp_path / name / "out/final/model.safetensors") for name in "ab")
    assert [name for name in mine if not np.array_equal(mine[name], theirs[name])] == []
    logged = dict(with_them.metrics)
    asked = [step for step, values in logged.items() if "control/blank_video" in values]
    assert asked == [1, 3], "before the first step and before the third"
    assert 0 < logged[1]["control/shuffled_video"] <= 8 * 6 / 100
    assert logged[1]["control/video"] == pytest.approx(logged[1]["reward"] / 100)
    assert logged[1]["gauge/blank_video"] == pytest.approx(
        logged[1]["control/blank_video"] / logged[1]["control/video"]
    )


def test_replies_to_the_shuffled_video_are_drawn_once(
    folder: Path, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def counting(*args: Any, count: int, **kwargs: Any) -> list[list[str]]:
        drawn.extend(f"{seed}/{n}" for seed in args[2] for n in range(count))
        return rollouts(*args, count=count, **kwargs)

    monkeypatch.setattr("stages.grpo.trainer.rollouts", counting)
    both, contrast, controls = Seen(), Seen(), Seen()
    rule = {"temporal_contrast": CONTRAST, "scale_rewards": "none"}
    train(folder, examples, tmp_path / "both", both, steps=3, save_steps=3, controls_every=2, **rule)
    assert len(drawn) == len(set(drawn)), "none is asked for again"
    views = [sum(f"/{view}/{step}/" in seed for seed in drawn) for view in ("shuffled", "blank") for step in range(3)]
    assert views == [8, 8, 8, 4, 0, 4], "four prompts: two replies each for the contrast, one for a gauge"
    train(folder, examples, tmp_path / "contrast", contrast, steps=3, save_steps=3, **rule)
    mine, theirs = (load_file(tmp_path / name / "out/final/model.safetensors") for name in ("both", "contrast"))
    assert all(np.array_equal(mine[name], theirs[name]) for name in mine), "controls move no rollout, and no bonus"
    train(
        folder,
        examples,
        tmp_path / "controls",
        controls,
        steps=1,
        warmup_steps=0,
        controls_every=2,
        scale_rewards="none",
    )
    expected, found = controls.metrics[0][1], both.metrics[0][1]
    for name in ("control/video", "control/shuffled_video", "control/blank_video", "gauge/blank_video"):
        assert found[name] == pytest.approx(expected[name]), "the gauges are those of a row without the contrast"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # an unclosed socket of httpcore
def test_an_engine_replies_to_changed_videos_too(
    folder: Path, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(HfEngine):
        groups = 0

        async def generate(self, *request: Any) -> tuple[list[int], list[Reply]]:
            self.groups += 1
            return await super().generate(*request)

    rule = {"temporal_contrast": CONTRAST, "scale_rewards": "none", "steps": 2, "save_steps": 2, "controls_every": 2}
    here, there, engine = Seen(), Seen(), Counting(folder)
    train(folder, examples, tmp_path / "here", here, **rule)
    with served(engine) as at:
        monkeypatch.setenv("VIDBRIDGE_ROLLOUT_ENGINE", at.address)
        train(folder, examples, tmp_path / "there", there, **rule)
    assert engine.groups == 2 * 4 + 2 * 4 + 4, "each step's prompts and their shuffled videos; black ones once"
    for (_, expected), (_, found) in zip(here.metrics, there.metrics, strict=True):
        # The loss has weights of sampling, too.
        kept = {name: value for name, value in found.items() if name.startswith(("reward", "control/", "gauge/"))}
        assert kept == pytest.approx({name: expected[name] for name in kept}, rel=1e-3, abs=2e-5)
        assert "rewards/temporal_contrast/mean" in kept


def test_contrast_is_a_reward_and_resumes(folder: Path, examples: list[Example], tmp_path: Path, seen: Seen) -> None:
    class Killed(Exception):
        pass

    class Dies(Seen):
        def on_checkpoint(self, checkpoint: Any, saved: Path) -> None:
            super().on_checkpoint(checkpoint, saved)
            if checkpoint.step == 2:
                raise Killed

    changes: dict[str, Any] = {"steps": 4, "temporal_contrast": CONTRAST, "scale_rewards": {"task_decay": 0.9}}
    train(folder, examples, tmp_path / "whole", seen, **changes)
    paid = [values["rewards/temporal_contrast/mean"] for _, values in seen.metrics]
    assert all(0 <= mean <= 1 for mean in paid)
    assert 0 < sum(paid) < len(paid), "some prompts are paid, some are not"
    for _, values in seen.metrics:
        expected = values["rewards/task/mean"] + 0.3 * values["rewards/temporal_contrast/mean"]
        assert values["reward"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(Killed):
        train(folder, examples, tmp_path / "cut", Dies(), **changes)
    assert train(folder, examples, tmp_path / "cut", Seen(), **changes)["resumed_from"] == 2
    mine, theirs = (load_file(tmp_path / name / "out/final/model.safetensors") for name in ("cut", "whole"))
    assert [name for name in mine if not np.allclose(mine[name], theirs[name], atol=1e-6)] == []


def test_each_part_is_normalised_before_they_are_added(
    folder: Path, examples: list[Example], tmp_path: Path, seen: Seen
) -> None:
    parts: dict[str, Reward] = {"length": none_of_the_first_prompt, "vowels": vowels}
    train(folder, examples, tmp_path / "a", seen, parts, steps=2, aggregation="normalise")
    assert {"rewards/length/mean", "rewards/vowels/mean"} <= dict(seen.metrics)[1].keys()

    def scaled(_: Sequence[str], replies: Sequence[str]) -> list[float | None]:
        return [1000 * (value or 0.0) for value in vowels(_, replies)]

    other = {**parts, "vowels": scaled}
    train(folder, examples, tmp_path / "b", Seen(), other, steps=2, aggregation="normalise")
    mine, theirs = (load_file(tmp_path / name / "out/final/model.safetensors") for name in "ab")
    apart = max(np.abs(mine[name].numpy() - theirs[name].numpy()).max() for name in mine)
    assert apart < 2e-4, (
        "the scale of a part does not matter (but for the constant that keeps a spread of 0 from dividing)"
    )
    train(folder, examples, tmp_path / "c", Seen(), other, steps=2)
    summed = load_file(tmp_path / "c/out/final/model.safetensors")
    assert max(np.abs(mine[name].numpy() - summed[name].numpy()).max() for name in mine) > 5 * apart


def test_contrast_by_prompt() -> None:
    rule = TemporalContrast.model_validate({**CONTRAST, "min_share": 0.5})
    other = {"a": [0.0, 0.2], "b": [1.0, 1.0]}
    paid = contrast_of(["a", "a", "b", "b", "a", "a"], [1.0, 0.0, 1.0, 1.0, None, 0.6], other, 2, rule)
    assert paid == [1.0, 0.0, 0.0, 0.0, None, 1.0]


def test_the_prompt_stays_and_the_video_changes(examples: list[Example]) -> None:
    item = changed_item({example.sample_id: example for example in examples}, "seed")
    example = examples[0]
    prompt, load = item("s0", "blank")
    assert callable(load)
    assert (prompt, load().pixels.any()) == (example.prompt, False)
    prompt, load = item("s0", "shuffled")
    assert callable(load)
    frames = load().pixels
    assert prompt == example.prompt
    assert sorted(map(hash, (frame.tobytes() for frame in frames))) == sorted(
        hash(frame.tobytes()) for frame in example.load().pixels
    )
    assert not np.array_equal(frames, example.load().pixels)
