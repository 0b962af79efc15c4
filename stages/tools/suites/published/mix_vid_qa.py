"""MixVidQA-Test: a question about one of two videos that were cut into each other; the judge says right (1) or wrong (0) (SPEC 1).

Example: see :mod:`stages.domain.tasks.mix_vid_qa`; the id of a prediction is ``sample_id``.
"""

from __future__ import annotations

from stages.domain.core.records import Sample, Verdict
from stages.tools.suites.asked_of_judges import Examiner
from stages.tools.suites.published.proxy_tasks import benchmark


def _says(examiner: Examiner, sample: Sample, answer: str) -> Verdict:
    return examiner.right(sample, answer)


BENCHMARK = benchmark("mix-vid-qa-test", "mix_vid_qa", _says, most=1.0)
