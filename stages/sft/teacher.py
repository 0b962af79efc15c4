"""The teacher of the cold start: a sample's trace, spelled as a reply.

The generated corpus is its own teacher. ``careless_share`` of its answers are right but short, for reinforcement learning to mend;
``brief_share`` of its replies think in brief and are as right, and only reward can tell which way of thinking pays.
"""

from __future__ import annotations

from random import Random

from stages.domain.core.records import Sample
from stages.domain.core.replies import render_reply
from stages.params import SftRow


def teach(sample: Sample, row: SftRow, seed: int) -> str | None:
    """Reply to this sample as the teacher does; None when it has no trace. Careless or not, brief or not are drawn for each sample
    on its own."""
    trace = sample.trace
    if trace is None:
        return None
    careless = Random(f"{seed}/teacher/{sample.sample_id}").random() < row.careless_share
    brief = Random(f"{seed}/teacher/{sample.sample_id}/thinking").random() < row.brief_share.get(sample.task, 0.0)
    return render_reply(
        (brief and trace.brief_thinking) or trace.thinking,
        (careless and trace.careless_answer) or trace.answer,
    )
