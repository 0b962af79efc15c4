"""Which rollouts a GRPO row keeps, and the page of them that is seen while it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stages.domain.core.records import Sample
from stages.domain.rl.rollouts import Rollout, RolloutGroup, shown_groups
from stages.grpo.rollout_log import Scores, Showing
from stages.lib.video.loader import FrameLoader
from stages.pages.rollouts import rollout_page
from stages.params import Params


def showing(
    params: Params, name: str, samples: Sequence[Sample], scores: Scores, loader: FrameLoader, on_page: Callable[[str, str], None]
) -> Showing:
    """What training of GRPO row ``name`` is told to keep.

    Args:
        scores: what replies are worth, by sample.
        on_page: given the name and the HTML of each page when it is made, before the step is taken.
    """
    by_id = {sample.sample_id: sample for sample in samples}

    def choose(step: int, rollouts: Sequence[Rollout]) -> list[RolloutGroup]:
        groups = shown_groups(step, rollouts, params.grpo[name].rollouts, by_id, params.prompt)
        frames = (loader.load(by_id[group.sample_id]) for group in groups)
        on_page(f"rollouts/step-{step:08d}.html", rollout_page(f"grpo@{name}", step, groups, frames))
        return groups

    return Showing(scores, choose)
