"""Guard on the length of prompts: those with too many tokens are set aside before training.

A prompt is never cut. Its video is most of it, and a model refuses a prompt with fewer placeholders
than its video has features.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import ProcessorMixin

from stages.domain.core.records import Reject, TaskName, reject_order
from stages.errors import InputError
from stages.lib.models.processor import encode_prompts
from stages.lib.rows.jsonl import write_rows
from stages.lib.training.mixture import Example
from stages.params import TrainingRow
from stages.runtime import paths
from stages.runtime.ranks.placement import placement

_REMEDY = "lower synthesize.sampled_frames or model.max_pixels_per_frame, or raise max_prompt_tokens"


@dataclass(frozen=True)
class ShortEnough:
    """The examples that a row trains on, and the rejects: one for each prompt that is too long.

    ``rejects`` is None where the row has no bound.
    """

    examples: Sequence[Example]
    rejects: Sequence[Reject] | None

    def summary(self) -> dict[str, Any]:
        """Entry of the training's summary; empty where the row has no bound."""
        return {} if self.rejects is None else {"prompts_too_long": len(self.rejects)}

    def save(self, out: Path) -> None:
        """List the rejects in a stage's out, where the row has a bound."""
        if self.rejects is not None:
            write_rows(out / paths.REJECTS_FILE, self.rejects)


def short_enough(
    processor: ProcessorMixin, examples: Sequence[Example], row: TrainingRow, stage: str, process: int
) -> ShortEnough:
    """Leave out the examples whose prompts have more than ``row.max_prompt_tokens`` tokens.

    Each process counts a part of them, on frames that are not decoded where an example has an
    outline; all of them must call this.

    Raises:
        InputError: none is left of a task that the row trains.
    """
    most = row.max_prompt_tokens
    if most is None:
        return ShortEnough(examples, None)
    ranks = placement().ranks
    mine = range(process, len(examples), ranks)
    counted = dict(gather_object([(number, _tokens(processor, examples[number])) for number in mine]))
    long = [number for number in range(len(examples)) if counted[number] > most]
    kept = [example for number, example in enumerate(examples) if counted[number] <= most]
    left, lost = (Counter[TaskName](example.task for example in some) for some in (kept, examples))
    for task in row.trained_tasks:
        if lost[task] and not left[task]:
            shortest = min(counted[n] for n in long if examples[n].task == task)
            raise InputError(
                f"{stage} max_prompt_tokens",
                f"{most}, and each of the {lost[task]} prompts of {task} has at least {shortest}",
                _REMEDY,
            )
    rejects = sorted(
        (
            Reject(
                item=examples[number].sample_id,
                reason="prompt-too-long",
                detail=f"its prompt has {counted[number]} tokens, and max_prompt_tokens is {most}; {_REMEDY}",
            )
            for number in long
        ),
        key=reject_order,
    )
    if rejects and process == 0:
        tqdm.write(
            f"{stage}: {len(rejects)} of {len(examples)} prompts are set aside, such as {rejects[0].item}:"
            f" {rejects[0].detail} ({paths.REJECTS_FILE} of the out lists all)",
            file=sys.stderr,
        )
    return ShortEnough(kept, rejects)


def _tokens(processor: ProcessorMixin, example: Example) -> int:
    shown = (example.outline or example.load)()
    return len(encode_prompts(processor, [(example.prompt, (shown,))], [example.sample_id])[0].ids)
