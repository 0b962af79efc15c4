"""The vision tower alone, and replies as in evaluation."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.gpu.subject import QUESTION, Subject
from benchmarks.gpu.timing import Row, timed, wait
from stages.lib.inference.generate import generate
from stages.lib.inference.policy import ModelPolicy
from stages.lib.models.load import device

_PROMPTS, _TOKENS, _RUNS = 8, 64, 3


def tower(subject: Subject) -> list[Row]:
    """The vision tower on one video, with transformers' attention (one call a window) and ours."""
    model, processor = subject.build()
    visual: Any = model.base_model.visual
    videos = subject.prompts(processor, 1)[0].videos
    pixels, grid = videos.pixels.to(device(), subject.dtype), videos.grids.to(device())
    rows = []
    for name, attention in (("transformers", "sdpa"), ("ours", visual.config._attn_implementation)):
        visual.config._attn_implementation = attention
        forward = 0.0

        def both() -> None:
            nonlocal forward
            began = time.perf_counter()
            found = visual(pixels, grid_thw=grid)
            wait()
            forward = time.perf_counter() - began
            features = getattr(found, "pooler_output", found)
            sum(part.float().square().mean() for part in features).backward()

        took = timed(both, repeats=_RUNS)
        rows.append(Row(name, {"ms forward": 1000 * forward, "ms and backward": 1000 * took.seconds}))
    return rows


def answers(subject: Subject) -> list[Row]:
    """Greedy replies to 8 prompts at a time, as in evaluation."""
    model, processor = subject.build()
    items = [(QUESTION, subject.video(number)) for number in range(_PROMPTS)]
    tokens = 4 if subject.dry else _TOKENS
    took = timed(lambda: generate(ModelPolicy(model, processor), items, max_new_tokens=tokens, batch_size=_PROMPTS))
    name = f"{_PROMPTS} replies of up to {tokens} tokens"
    return [Row(name, took.values() | {"tokens/s": _PROMPTS * tokens / took.seconds})]
