"""Number of trainings of a grid that run at a time, as cores and memory allow."""

from __future__ import annotations

from dataclasses import dataclass

from stages.params import Params, PretrainedModelParams
from stages.runtime.machine import cores, free_memory_gb

#: Assumed peak memory of a training of a tiny model before one was measured.
UNMEASURED_GB = 2.0
#: Threads that the flow has for its units.
MOST_JOBS = 32


@dataclass(frozen=True)
class Capacity:
    """Number of trainings at a time, and the reason for it in words."""

    jobs: int
    why: str


def capacity(params: Params, asked: int | None, peak_gb: float | None) -> Capacity:
    """Number of trainings of ``params`` that run at a time.

    Args:
        asked: the user's number, which is taken up to :data:`MOST_JOBS`; None: one for each core,
            as far as memory reaches, and one where a pretrained model fills the machine.
        peak_gb: memory that the largest earlier training took; None: none was measured.
    """
    if asked is not None:
        return Capacity(min(asked, MOST_JOBS), "--jobs" if asked <= MOST_JOBS else f"the most of --jobs {asked}")
    if isinstance(params.model, PretrainedModelParams):
        return Capacity(1, "a pretrained model fills the machine")
    count, free_gb, each_gb = cores(), free_memory_gb(), peak_gb or UNMEASURED_GB
    how = "" if peak_gb else ", assumed"
    return Capacity(
        max(1, min(count, int(free_gb / each_gb), MOST_JOBS)),
        f"{count} cores, {free_gb:.0f} GB of memory free, {each_gb:.1f} GB a training{how}",
    )
