"""Processes that have to be gone."""

from __future__ import annotations

import time

import psutil


def assert_ended(*pids: int) -> None:
    """Wait until these processes have ended."""
    until = time.monotonic() + 10
    while left := [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]:
        assert time.monotonic() < until, f"processes are left: {left}"
        time.sleep(0.02)
