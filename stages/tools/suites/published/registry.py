"""Registry of all benchmarks, by name."""

from __future__ import annotations

from typing import Any

from stages.tools.suites.published import care_bench, dream_1k, mv_bench, proxy_tasks, vdc, video_mme
from stages.tools.suites.published.benchmark import Benchmark

BENCHMARKS: dict[str, Benchmark[Any]] = {
    benchmark.name: benchmark
    for benchmark in (
        *(module.BENCHMARK for module in (video_mme, mv_bench, dream_1k, vdc, care_bench)),
        proxy_tasks.DARK_EVENT_INFER,
        proxy_tasks.MIX_VID_QA,
    )
}
