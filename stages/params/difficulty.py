"""Parameters of the filter of training samples by difficulty."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from stages.domain.rl.difficulty import DropRules
from stages.params.types import Positive, RowName


class DifficultyRow(DropRules):
    """Rollouts of the initial policy of a GRPO row, to drop samples that would teach it nothing.
    Its key is the name of that row."""

    #: ``init`` of the GRPO row, repeated here because ``dvc.yaml`` cannot look it up there.
    init: RowName
    #: Replies to each sample.
    rollouts: int = Field(ge=2)
    temperature: Positive
    max_completion_tokens: int = Field(gt=0)
    #: Prompts generated together; each gets ``rollouts`` replies.
    batch_size: int = Field(gt=0)
    #: Largest number of samples of a task that are rolled out; the others are left out of training.
    #: null: all.
    max_samples_per_task: Annotated[int, Field(gt=0)] | None
