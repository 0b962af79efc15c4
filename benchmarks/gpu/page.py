"""Page of a run: what was measured where, and what was left out."""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.gpu.parts import Part, explained
from benchmarks.gpu.schedule import Outcome
from benchmarks.gpu.sizes import DRY, FULL

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "datasets", "pydantic", "deepspeed")
_LOCK = Path(__file__).parents[2] / "uv.lock"

_DEFINITIONS = """\
Models are Qwen2.5-VL of the published sizes with random weights, videos are noise: nothing here says
how well a model learns. *peak GiB*: most memory of tensors at once. *busy %*: union of the times of
kernels and copies, from torch.profiler in a run or window of its own, divided by the wall seconds of
the same work without the profiler. *tokens/s (EasyR1)*: prompt and reply tokens of all rollouts of a
step (a prompt counts once for each of its rollouts), by the wall seconds of the step, for one GPU.
No engine makes rollouts here: they are the trainer's own decoding."""


def header(machine: Mapping[str, str | None], parts: Sequence[Part], *, dry: bool) -> list[str]:
    """Date, card, versions, and definitions of the columns."""
    card = f"{machine['card']}, CUDA {machine['cuda']}" if machine["card"] else f"no GPU ({platform.machine()})"
    lines = [f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {card}, Python {platform.python_version()}, {_versions()}."]
    if dry:
        lines += [
            "",
            "**Dry run**: the same code at tiny size, to see that it runs. None of its numbers means anything.",
        ]
    if missing := sorted({name for part in parts for name in part.lacks()}):
        lines += ["", f"Not here, so that parts are left out: {', '.join(missing)}."]
    return [*lines, "", f"A step by phases: {DRY if dry else FULL}.", "", _DEFINITIONS, ""]


def _versions() -> str:
    """Installed versions, and the locked ones where they differ."""
    lock = tomllib.loads(_LOCK.read_text(encoding="utf-8")) if _LOCK.exists() else {}
    locked = {package["name"]: package.get("version", "") for package in lock.get("package", ())}
    said = []
    for name in _PACKAGES:
        try:
            here = version(name)
        except PackageNotFoundError:
            continue
        other = locked.get(name, here)
        said.append(f"{name} {here}" + (f" (locked: {other})" if here.split("+")[0] != other.split("+")[0] else ""))
    return ", ".join(said)


def table(outcome: Outcome) -> list[str]:
    """Section of a part that was measured."""
    columns = list(dict.fromkeys(name for _, values in outcome.rows for name in values))
    lines = [
        f"### {outcome.part.name} ({outcome.seconds:.0f} s)",
        "",
        explained(outcome.part.work),
        "",
        f"| | {' | '.join(columns)} |",
        f"|---{'|---:' * len(columns)}|",
    ]
    for what, values in outcome.rows:
        cells = (f"{values[name]:.4g}" if name in values else "" for name in columns)
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return [*lines, ""]


def page(head: Sequence[str], found: Sequence[Outcome], waiting: Sequence[Part]) -> str:
    """The page so far; ``waiting``: parts of which nothing is known yet."""
    lines = list(head)
    for outcome in found:
        if outcome.rows:
            lines += table(outcome)
    left = [f"- {outcome.part.name}: {outcome.why}" for outcome in found if outcome.why]
    left += [f"- {part.name}: not reached" for part in waiting]
    if left:
        lines += ["### Not measured", "", *left, ""]
    return "\n".join(lines)
