"""Cost of evaluating a model on a benchmark: ``make bench-eval``.

Eight questions about one video, against asking one by one: how often the file is decoded and the
vision tower passed, and CPU seconds; and the replies a second in batches against one at a time. The
model is the recipe `tiny`'s architecture with a random start, the video ten seconds of 720p. Ratios
are taken in one process, the two sides in turn. Cost of scoring: ``make bench-score``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.machine import cpu_s, keep
from stages.base.tiny import build_tiny
from stages.domain.core.frames import Frames
from stages.lib.inference.generate import generate
from stages.lib.inference.policy import ModelPolicy
from stages.lib.models.load import use_threads
from stages.lib.video.encoder import encode
from stages.lib.video.reader import read_frames
from stages.params import TinyModelParams, load_params
from stages.runtime.machine import measured
from stages.tools.suites import frames as protocol
from stages.tools.suites.engines.local import LocalModel, prepare
from stages.tools.suites.engines.questions import Answer, Question
from stages.tools.suites.frames import load_at

QUESTIONS = 8
#: The issue's bound on the throughput of batches against batch size 1.
BOUND = 3.0
#: Questions for the throughput, each about a video of its own.
MANY = 64
REPLY_TOKENS = 48


def video(path: Path, seconds: int, width: int, height: int, seed: int) -> Path:
    """Write a video of a drifting texture: neither flat nor noise."""
    rng = np.random.default_rng(seed)
    whole = np.kron(
        rng.integers(0, 256, (height // 8 + 40, width // 8 + 40, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8)
    )
    frames = (whole[n : n + height, 2 * n : 2 * n + width] for n in range(0, 8 * seconds))
    encode(frames, Fraction(8), path, 20)
    return path


class Counted:
    """Counters of decoded files and of videos that went through the vision tower."""

    def __init__(self, model: Any) -> None:
        self.decodes = self.passes = 0

        def read(*arguments: Any, **named: Any) -> Any:
            self.decodes += 1
            return read_frames(*arguments, **named)

        def seen(_: Any, inputs: Sequence[Any], named: dict[str, Any]) -> None:
            self.passes += len(named.get("grid_thw", inputs[-1] if inputs else ()))

        patch.object(protocol, "read_frames", read).start()
        model.base_model.visual.register_forward_pre_hook(seen, with_kwargs=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluate", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed/evaluate.md"))
    arguments = parser.parse_args()
    params = load_params("infra/recipes/tiny.yaml")
    assert isinstance(params.model, TinyModelParams)
    use_threads()
    prompts = [f"what does the red bar do first ? number {number} of many" for number in range(QUESTIONS)]
    model, processor = build_tiny(params.model, prompts, [], 1)
    counted = Counted(model)
    with tempfile.TemporaryDirectory() as folder:
        file = video(Path(folder) / "long.mp4", 10, 1280, 720, 1)
        small = {f"v{n}": load_at(video(Path(folder) / f"{n}.mp4", 2, 64, 64, n), None, 8, None) for n in range(MANY)}

        def load(_: str) -> Frames:
            return load_at(file, Fraction(1), 16, None)

        def together() -> list[Answer]:
            # A new one each time: it keeps features.
            questions = [Question(f"{n}", "video", "long", prompt) for n, prompt in enumerate(prompts)]
            return answers_of(model, processor, questions, load, QUESTIONS)

        def one_by_one() -> list[str]:
            policy = ModelPolicy(model, processor)
            return [
                generate(policy, [(prompt, load("long"))], max_new_tokens=REPLY_TOKENS, batch_size=1)[0]
                for prompt in prompts
            ]

        stock = model.base_model.get_video_features
        costs: dict[str, list[float]] = {"together": [], "alone": []}
        counts: dict[str, tuple[int, int]] = {}
        for _ in range(arguments.runs + 1):  # the first warms up
            for name, work in (("alone", one_by_one), ("together", together)):
                counted.decodes = counted.passes = 0
                costs[name].append(cpu_s(work))
                counts[name] = (counted.decodes, counted.passes)
                model.base_model.get_video_features = stock
        speed: dict[int, list[float]] = {1: [], MANY: []}
        many = [Question(f"{n}", "video", f"v{n}", prompts[n % QUESTIONS]) for n in range(MANY)]
        for _ in range(arguments.runs):
            for size, taken in speed.items():
                taken.append(MANY / cpu_s(partial(answers_of, model, processor, many, small.__getitem__, size)))
                model.base_model.get_video_features = stock
    alone, together_s = (statistics.median(costs[name][1:]) for name in ("alone", "together"))
    slow, fast = (statistics.median(speed[size]) for size in (1, MANY))
    lines = [
        measured("torch", "transformers", "av"),
        "",
        f"| {QUESTIONS} questions about 16 frames of one video (10 s, 720p) | decodes | vision passes | CPU s |",
        "|---|--:|--:|--:|",
        f"| one by one | {counts['alone'][0]} | {counts['alone'][1]} | {alone:.2f} |",
        f"| as `vidbridge evaluate` asks | {counts['together'][0]} | {counts['together'][1]} | {together_s:.2f} |",
        "",
        f"CPU: {together_s / alone:.2f} of asking one by one (median of {arguments.runs}, in turn).",
        "",
        f"| {MANY} questions about {MANY} videos, replies of {REPLY_TOKENS} tokens | replies a CPU second | against"
        " size 1 | bound |",
        "|---|--:|--:|--:|",
        f"| batch size 1 | {slow:.1f} | 1.0 | |",
        f"| batch size {MANY} | {fast:.1f} | {fast / slow:.1f} | {BOUND:.0f} |",
        "",
        "Scoring 10,000 stored predictions: `scoring.md`.",
    ]
    keep(lines, arguments.out)
    print("\n".join(lines))
    return 0 if counts["together"] == (1, 1) and fast / slow >= BOUND else 1


def answers_of(
    model: Any, processor: Any, questions: Sequence[Question], load: Callable[[str], Frames], batch_size: int
) -> list[Answer]:
    answers: list[Answer] = []
    prepare(model)
    local = LocalModel(ModelPolicy(model, processor), REPLY_TOKENS, 7)
    local.answer(questions, set(questions), load, batch_size, answers.extend)
    assert len(answers) == len(questions)
    return answers


if __name__ == "__main__":
    sys.exit(main())
