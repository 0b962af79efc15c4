"""Parts of the benchmark, the most valuable first, and what each needs. Importing this imports
neither torch nor a part's own code, which may not be importable where something is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from benchmarks.gpu.timing import Row

_TRL = ("trl", "datasets", "peft", "pydantic")


@dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes:
        work: module below `benchmarks.gpu` and function that measures it.
        size, trained: of its subject; a part without a size takes none.
        needs: packages that it imports beside torch and transformers.
        estimate_s: seconds that it is foreseen to take on one H100; a part that does not fit into
            what is left of the budget is not begun.
        alone: it has a process to itself.
    """

    work: str
    estimate_s: int
    size: Literal["3b", "7b"] | None = None
    trained: Literal["lora", "full", "offload"] | None = None
    needs: tuple[str, ...] = ()
    alone: bool = False

    @property
    def name(self) -> str:
        title, kinds = (
            TITLES[self.work],
            {"lora": "LoRA", "full": "all weights", "offload": "all weights, DeepSpeed with offload", None: ""},
        )
        return ", ".join(filter(None, [f"{title} {(self.size or '').upper()}".strip(), kinds[self.trained]]))

    def lacks(self) -> list[str]:
        """Packages that it needs and that are not here."""
        return [name for name in self.needs if find_spec(name) is None]

    def run(self, *, dry: bool) -> list[Row]:
        """Measure it in this process."""
        module, function = self.work.split(".")
        measure = getattr(import_module(f"benchmarks.gpu.{module}"), function)
        if self.size is None:
            arguments: list[object] = []
        else:
            from benchmarks.gpu.subject import Subject

            arguments = [Subject(self.size, self.trained, dry)]
        found: list[Row] = measure(*arguments)
        return found


TITLES = {
    "equality.families": "CPU and GPU",
    "equality.log_probabilities": "log-probabilities",
    "phases.phases": "step by phases",
    "phases.decode_step": "decoding",
    "phases.rollouts": "rollouts",
    "trainers.against_trl": "GRPO beside TRL",
    "trainers.ours": "GRPO",
    "trainers.offloaded": "GRPO",
    "trainers.sft": "SFT",
    "inference.tower": "vision tower",
    "inference.answers": "replies",
}

PARTS: Sequence[Part] = (
    Part("equality.families", 20, needs=("pydantic",)),
    Part("equality.log_probabilities", 15, "7b"),
    Part("phases.phases", 55, "7b", "lora", ("peft",)),
    Part("trainers.against_trl", 75, "3b", "lora", _TRL),
    Part("phases.decode_step", 20, "7b"),
    Part("phases.phases", 50, "3b", "full"),
    Part("equality.log_probabilities", 12, "3b"),
    Part("trainers.offloaded", 70, "3b", "offload", (*_TRL, "deepspeed"), alone=True),
    Part("trainers.sft", 25, "3b", "full", _TRL),
    Part("phases.phases", 45, "3b", "lora", ("peft",)),
    Part("inference.tower", 8, "3b"),
    Part("phases.rollouts", 25, "3b"),
    Part("trainers.ours", 45, "3b", "full", _TRL),
    Part("phases.decode_step", 20, "3b"),
    Part("trainers.against_trl", 90, "7b", "lora", _TRL),
    Part("inference.answers", 15, "7b"),
)
BY_NAME = {part.name: part for part in PARTS}


def explained(work: str) -> str:
    """First paragraph of what a part measures, as its function says; it is not imported."""
    import ast
    from pathlib import Path

    module, function = work.split(".")
    tree = ast.parse(Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    return " ".join((ast.get_docstring(found) or "").split("\n\n")[0].split())
