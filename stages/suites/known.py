"""Every benchmark by its name."""

from __future__ import annotations

from typing import Any

from stages.suites import care_bench, dark_event_infer_test, dream_1k, mix_vid_qa_test, mv_bench, vdc, video_mme
from stages.suites.benchmark import Benchmark

BENCHMARKS: dict[str, Benchmark[Any]] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (video_mme, mv_bench, dream_1k, vdc, care_bench, dark_event_infer_test, mix_vid_qa_test)
}
