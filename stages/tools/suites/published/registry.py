"""Every benchmark by its name."""

from __future__ import annotations

from typing import Any

from stages.tools.suites.published import care_bench, dark_event_infer, dream_1k, mix_vid_qa, mv_bench, vdc, video_mme
from stages.tools.suites.published.benchmark import Benchmark

BENCHMARKS: dict[str, Benchmark[Any]] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (video_mme, mv_bench, dream_1k, vdc, care_bench, dark_event_infer, mix_vid_qa)
}
