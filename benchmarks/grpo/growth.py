"""How the cost of GRPO on video grows: ``make bench-growth``.

The loss alone, forward and backward, with a prompt once for its group against one row a reply, on
the model of recipe `tiny` and on one of width 1,024, where matrix products dominate; then both
ways, and a whole step of our trainer, against the number of replies, of frames, and of a reply's
tokens. Beside each measured growth stands the arithmetic's: the exponent between neighbouring rows,
log(cost ratio) / log(size ratio), of CPU seconds and of the multiplications of the text model.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.grpo.loss_phase import Measured, measured
from benchmarks.grpo.subject import Shape, tiny_params
from benchmarks.grpo.trainers import ours
from benchmarks.machine import keep
from stages.lib.models.load import use_threads
from stages.params import TinyModelParams
from stages.runtime.machine import measured as machine

#: Prompts of 1,761 and of 1,057 tokens.
LOSSES = {
    "tiny": [
        Shape(prompts=1, tokens=300, frames=54, size=256),
        Shape(prompts=1, tokens=48, frames=32, size=256),
        Shape(prompts=8),
    ],
    "width 1,024": [Shape(prompts=1, tokens=300, frames=54, size=256)],
}
START = Shape(prompts=2, rollouts=8, tokens=32, frames=16, size=128)
AXES: dict[str, Sequence[int]] = {
    "rollouts": (1, 2, 4, 8, 16),
    "frames": (8, 16, 32, 64),
    "tokens": (16, 32, 64, 128),
}
NAMES = {"rollouts": "replies to a prompt", "frames": "frames", "tokens": "tokens of a reply"}
MOST = replace(START, rollouts=16, frames=64)


@dataclass(frozen=True)
class Row:
    value: int
    loss: Measured
    #: CPU seconds of a whole step; None where a group has one reply, which GRPO cannot train on.
    step: float | None


def wide(tiny: TinyModelParams) -> TinyModelParams:
    text = {"width": 1024, "layers": 2, "heads": 8, "kv_heads": 2, "mlp_width": 2816}
    return tiny.model_copy(update={"text": tiny.text.model_copy(update=text)})


def step_of(shape: Shape, steps: int) -> float | None:
    if shape.rollouts == 1:
        return None
    with tempfile.TemporaryDirectory() as folder:
        return ours(Path(folder), shape, steps, 2 * shape.prompts).step


def exponent(earlier: float, later: float, sizes: tuple[int, int]) -> str:
    return f"{math.log(later / earlier) / math.log(sizes[1] / sizes[0]):.2f}"


def growth_table(axis: str, rows: Sequence[Row]) -> list[str]:
    lines = [
        f"| {NAMES[axis]} | tokens of the prompt | loss, one row a reply: s, MiB | prompt once: s, MiB | ratio"
        " | of the arithmetic | exponent | of the arithmetic | whole step, s | exponent |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    before: Row | None = None
    for row in rows:
        loss = row.loss
        exponents = ["", "", ""]
        if before is not None:
            sizes = (before.value, row.value)
            exponents[0] = exponent(before.loss.shared.seconds, loss.shared.seconds, sizes)
            exponents[1] = exponent(before.loss.multiplications, loss.multiplications, sizes)
            exponents[2] = exponent(before.step, row.step, sizes) if before.step and row.step else ""
        lines.append(
            f"| {row.value} | {loss.prompt} | {loss.padded.seconds:.3f}, {loss.padded.mib:.0f}"
            f" | {loss.shared.seconds:.3f}, {loss.shared.mib:.0f} | {loss.shared.seconds / loss.padded.seconds:.2f}"
            f" | {loss.arithmetic:.2f} | {exponents[0]} | {exponents[1]}"
            f" | {'' if row.step is None else f'{row.step:.2f}'} | {exponents[2]} |"
        )
        before = row
    return lines


def loss_line(model: str, shape: Shape, loss: Measured) -> str:
    return (
        f"| {model} | {shape.prompts} x {loss.prompt} | {shape.rollouts} x {shape.tokens} | {loss.padded.seconds:.2f}"
        f" | {loss.shared.seconds:.2f} | **{loss.shared.seconds / loss.padded.seconds:.2f}** | {loss.arithmetic:.2f}"
        f" | {loss.padded.mib:.0f} | {loss.shared.mib:.0f} |"
    )


def plot(rows: dict[str, list[Row]], out: Path) -> None:
    """Draw the seconds of both ways, and of a whole step, against each axis."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "growth", "font.family": "sans-serif"}):
        drawing = Figure(figsize=(10, 3.6), layout="constrained")
        for axis, panel in zip(rows, drawing.subplots(1, len(rows), sharey=True), strict=True):
            values = [row.value for row in rows[axis]]
            panel.plot(values, [row.loss.padded.seconds for row in rows[axis]], "s--", label="loss, one row a reply")
            panel.plot(values, [row.loss.shared.seconds for row in rows[axis]], "o-", label="loss, prompt once")
            steps = [(row.value, row.step) for row in rows[axis] if row.step is not None]
            panel.plot([value for value, _ in steps], [step for _, step in steps], "^:", label="whole step")
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(values, [str(value) for value in values])
            panel.set_xlabel(NAMES[axis])
            panel.grid(alpha=0.25)
        drawing.axes[0].set_ylabel("CPU seconds")
        drawing.axes[0].legend(frameon=False, fontsize=8)
        drawing.savefig(out, format="svg", metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.grpo.growth", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--steps", type=int, default=5, help="optimiser steps of each training (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed/growth.md"))
    arguments = parser.parse_args()
    use_threads()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    tiny = tiny_params()
    models = {"tiny": tiny, "width 1,024": wide(tiny)}
    lines = [
        machine("torch", "transformers", "trl"),
        "",
        "Loss of a step, forward and backward. One row a reply: as TRL computes it. CPU seconds are the least of three;"
        " MiB is what a process grew by.",
        "",
        "| model | prompts x tokens | replies x tokens | one row a reply, s | prompt once, s | ratio | of the"
        " arithmetic | one row a reply, MiB | prompt once, MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, shapes in LOSSES.items():
        for shape in shapes:
            lines.append(loss_line(name, shape, measured(models[name], shape)))
            print(lines[-1], flush=True)
    shapes_of = {axis: [replace(START, **{axis: value}) for value in values] for axis, values in AXES.items()}
    # Trainings start threads, which copies of this process would lack.
    losses = {axis: [measured(tiny, shape) for shape in shapes] for axis, shapes in shapes_of.items()}
    most = measured(tiny, MOST)
    rows: dict[str, list[Row]] = {}
    for axis, values in AXES.items():
        steps = [step_of(shape, arguments.steps) for shape in shapes_of[axis]]
        rows[axis] = [Row(*row) for row in zip(values, losses[axis], steps, strict=True)]
        lines += ["", f"Growth from {START}, one number changed.", "", *growth_table(axis, rows[axis])]
        print("\n".join(lines[-len(values) - 2 :]), flush=True)
    lines += [
        "",
        f"{MOST}: one row a reply {most.padded.seconds:.2f} s and {most.padded.mib:.0f} MiB, prompt once"
        f" {most.shared.seconds:.2f} s and {most.shared.mib:.0f} MiB.",
    ]
    plot(rows, arguments.out.with_suffix(".svg"))
    keep(lines, arguments.out)
    print(lines[-1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
