"""Cost of generating replies, against transformers' ``generate``: part of ``make bench-eval``.

Groups of eight replies to prompts about videos, of short and of long prompts; and eight greedy
replies to questions about one video. transformers has one row a reply; the videos are encoded once
on both sides. Both draw the same tokens from the same seeds, which is checked. The model is the
recipe `tiny`'s architecture with a random start. CPU seconds count, in turn within one process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessor

from benchmarks.grpo.subject import Shape, build, tiny_params, video
from benchmarks.machine import cpu_s, keep
from stages.lib.inference.decode import Draw, Limits, SeededDraws, decode, greedy
from stages.lib.inference.vision_cache import encode_equal_videos_once
from stages.lib.models.load import freeze, use_threads
from stages.lib.models.processor import EncodedPrompt, encode_prompts, placeholder_ids, prompt_batch
from stages.runtime.machine import measured

#: Prompts of about 70 tokens, and of about 1,000.
SHORT, LONG = Shape(), Shape(frames=32, size=256)
PROMPTS, GROUP = SHORT.prompts, SHORT.rollouts
#: Fraction of the tokens that end a reply, where replies end by chance.
ENDING = 1 / 24


class Drawing(LogitsProcessor):
    """A draw in the form that transformers takes: the drawn token is the only one left."""

    def __init__(self, draw: Draw, rows: int) -> None:
        self._draw, self._rows = draw, range(rows)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        drawn = self._draw(scores, self._rows)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn[:, None], 0.0)


class Subject:
    """A model, and both ways to generate with it. ``passed``: tokens of prompts that the language
    model has read, padding included."""

    def __init__(self) -> None:
        self.model: Any
        self.model, self.processor = build(tiny_params())
        freeze(self.model, ["vision"])
        encode_equal_videos_once(self.model)
        self.model.eval()
        self.passed = 0
        self.model.base_model.language_model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _: Any, __: Any, inputs: dict[str, Any]) -> None:
        rows, tokens = inputs["inputs_embeds"].shape[:2]
        self.passed += rows * tokens if tokens > 1 else 0

    def ends(self, *, by_chance: bool) -> list[int]:
        words = len(self.processor.tokenizer)
        own = [int(self.processor.tokenizer.eos_token_id)]
        return own + list(range(words - int(words * ENDING), words)) if by_chance else own

    def theirs(self, rows: Sequence[EncodedPrompt], draw: Draw, tokens: int, *, by_chance: bool) -> list[list[int]]:
        inputs, ends = prompt_batch(self.processor, rows, "cpu"), self.ends(by_chance=by_chance)
        out = self.model.generate(
            **inputs,
            max_new_tokens=tokens,
            min_new_tokens=None if by_chance else tokens,
            suppress_tokens=placeholder_ids(self.processor),
            eos_token_id=ends,
            logits_processor=[Drawing(draw, len(rows))],
        )
        replies = out[:, inputs["input_ids"].shape[1] :].tolist()
        return [ids[: next((n + 1 for n, token in enumerate(ids) if token in ends), len(ids))] for ids in replies]

    def ours(self, rows: Sequence[EncodedPrompt], draw: Draw, tokens: int, *, by_chance: bool) -> list[list[int]]:
        ends, never = tuple(self.ends(by_chance=by_chance)), tuple(placeholder_ids(self.processor))
        limits = Limits(tokens, ends, never, min_new_tokens=0 if by_chance else tokens)
        return [reply.ids for reply in decode(self.model, self.processor, rows, draw, limits)]


def compared(
    subject: Subject, rows: Sequence[EncodedPrompt], tokens: int, runs: int, *, sampled: bool, by_chance: bool = False
) -> str:
    """Measure both ways in turn; the cells of a line of the table behind its name."""
    costs: dict[str, list[float]] = {"theirs": [], "ours": []}
    read: dict[str, int] = {}
    found: dict[str, list[list[int]]] = {}

    def reply(name: str, way: Callable[..., list[list[int]]], draw: Draw) -> None:
        found[name] = way(rows, draw, tokens, by_chance=by_chance)

    for _ in range(runs + 1):  # the first warms up
        for name, way in (("theirs", subject.theirs), ("ours", subject.ours)):
            draw = SeededDraws([f"{n}" for n in range(len(rows))], 1.0, torch.device("cpu")) if sampled else greedy
            subject.passed = 0
            costs[name].append(cpu_s(partial(reply, name, way, draw)))
            read[name] = subject.passed
        assert found["theirs"] == found["ours"], "both reply alike"
    length = statistics.mean(map(len, found["ours"]))
    theirs, ours = (statistics.median(costs[name][1:]) for name in ("theirs", "ours"))
    longest = max(len(row.ids) for row in rows)
    return (
        f"{longest} | {length:.0f} | {read['theirs']:,} | {read['ours']:,} | {theirs:.2f} | {ours:.2f}"
        f" | {ours / theirs:.2f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed/decoding.md"))
    arguments = parser.parse_args()
    use_threads()
    subject = Subject()
    lines = [
        measured("torch", "transformers"),
        "",
        f"| {PROMPTS} prompts x {GROUP} sampled replies | prompt tokens | reply tokens | prompt tokens read:"
        " transformers | ours | CPU s: transformers | ours | ours / transformers |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for shape in (SHORT, LONG):
        asked = [("what happens ?" + " then" * n, (video(shape, n),)) for n in range(PROMPTS)]
        rows = [prompt for prompt in encode_prompts(subject.processor, asked) for _ in range(GROUP)]
        name = f"{shape.frames} frames of {shape.size} px"
        for tokens in (24, 128):
            lines.append(f"| {name} | {compared(subject, rows, tokens, arguments.runs, sampled=True)}")
        ending = compared(subject, rows, 128, arguments.runs, sampled=True, by_chance=True)
        lines.append(f"| {name}, replies end by chance, at most 128 | {ending}")
    shown = video(LONG, 0)
    about = encode_prompts(subject.processor, [("what happens ?" + " then" * n, (shown,)) for n in range(PROMPTS)])
    lines.append(
        f"| {PROMPTS} questions about one video of {LONG.frames} frames of {LONG.size} px, greedy"
        f" | {compared(subject, about, 24, arguments.runs, sampled=False)}"
    )
    lines += ["", f"Median of {arguments.runs}, in turn; both sides gave the same tokens."]
    keep(lines, arguments.out)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
