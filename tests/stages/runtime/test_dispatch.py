"""A process that leaves after its work: its status, its output and its threads are those of any
process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BEGIN = """
import atexit, sys, threading, time
from stages.runtime.dispatch import run_and_leave

class Kept:
    def __del__(self):
        print("taken apart")

kept = Kept()
atexit.register(print, "at exit")
"""
MAINS = {
    "returns": ("def main(): print('done', end=' ')", 0, "done at exit\n", ""),
    "exits": ("def main(): sys.exit(7)", 7, "at exit\n", ""),
    "has a thread": (
        "def main(): threading.Thread(target=lambda: (time.sleep(0.2), print('thread', end=' '))).start()",
        0,
        "thread at exit\n",
        "",
    ),
    # In the interpreter's own way, with all that it reports.
    "exits with a message": ("def main(): sys.exit('why')", 1, "at exit\ntaken apart\n", "why\n"),
    "fails": (
        "def main(): raise RuntimeError('on purpose')",
        1,
        "at exit\ntaken apart\n",
        "RuntimeError: on purpose\n",
    ),
}


@pytest.mark.parametrize("name", MAINS)
def test_a_process_leaves_with_its_status_after_threads_exit_functions_and_output(name: str, tmp_path: Path) -> None:
    main, status, out, err = MAINS[name]
    command = [sys.executable, "-c", f"{BEGIN}\n{main}\nrun_and_leave(main)"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (status, out)
    assert done.stderr.endswith(err)
