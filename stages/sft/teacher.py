"""Teacher of the cold start: renders the trace of a sample as a reply.

The generated corpus is its own teacher. ``careless_share`` of its answers are right but short, for
reinforcement learning to improve; ``brief_share`` of its replies think briefly and are equally
right, so that only the reward distinguishes the two ways of thinking.
"""

from __future__ import annotations

from random import Random

from stages.domain.core.records import Sample
from stages.domain.core.replies import render_reply
from stages.params import SftRow


def teach(sample: Sample, row: SftRow, seed: int) -> str | None:
    """Render the teacher's reply to a sample; None if it has no trace. Careless answers and brief
    thinking are drawn per sample."""
    trace = sample.trace
    if trace is None:
        return None
    careless = Random(f"{seed}/teacher/{sample.sample_id}").random() < row.careless_share
    brief = Random(f"{seed}/teacher/{sample.sample_id}/thinking").random() < row.brief_share.get(sample.task, 0.0)
    return render_reply(
        (brief and trace.brief_thinking) or trace.thinking,
        (careless and trace.careless_answer) or trace.answer,
    )
