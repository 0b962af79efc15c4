"""DarkEventInfer-Test: what happens where the video is black; the judge gives 2, 1 or 0 (SPEC 1).

Example: see :mod:`stages.domain.tasks.dark_event_infer`; the id of a prediction is ``sample_id``.
"""

from __future__ import annotations

from stages.domain.core.records import Sample, Verdict
from stages.tools.suites.asked_of_judges import Examiner
from stages.tools.suites.published.proxy_tasks import benchmark


def _says(examiner: Examiner, sample: Sample, answer: str) -> Verdict:
    return examiner.covers(sample, answer)


BENCHMARK = benchmark("dark-event-infer-test", "dark_event_infer", _says, most=2.0)
