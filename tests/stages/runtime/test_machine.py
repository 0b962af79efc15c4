"""How many cores and how much memory this process may use."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from stages.runtime import machine
from stages.runtime.machine import cores, free_memory_gb, idle_cores


def test_a_containers_limits_count(tmp_path: Path) -> None:
    assert cores(tmp_path) == cores(Path("/nowhere"))
    assert free_memory_gb(tmp_path) == pytest.approx(psutil.virtual_memory().available / 1e9, rel=0.2)
    for name, text in {
        "cpu.max": "100000 100000",
        "memory.max": "3000000000",
        "memory.current": "2000000000",
        "memory.stat": "anon 5\ninactive_file 500000000\n",
    }.items():
        (tmp_path / name).write_text(text + "\n")
    assert cores(tmp_path) == 1
    assert free_memory_gb(tmp_path) == pytest.approx(min(1.5, psutil.virtual_memory().available / 1e9), rel=0.2)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert cores(tmp_path) == cores(Path("/nowhere"))
    assert free_memory_gb(tmp_path) > 0


def test_idle_cores_are_at_most_those_of_the_container_and_those_with_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda **_: [0.0] * 1024)
    monkeypatch.setattr(machine, "_affinity", lambda: set(range(8)))
    monkeypatch.setattr(machine, "free_memory_gb", lambda: 7.9)
    for allowed, found in ((16, 8), (3, 3)):
        monkeypatch.setattr(machine, "cores", lambda allowed=allowed: allowed)
        assert idle_cores(1) == found
    assert idle_cores(4_000_000_000) == 1
