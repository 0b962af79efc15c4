"""Processes that a command keeps in the foreground, until Ctrl-C."""

from __future__ import annotations

import subprocess
import time

import typer

from flows.errors import FlowError


def until_interrupted(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """Wait for Ctrl-C, which ends these processes.

    Raises:
        FlowError: one of the processes ended by itself.
    """
    try:
        while True:
            for name, process in processes.items():
                if process.poll() is not None:
                    raise FlowError(name, f"ended with status {process.returncode}", "see the logs in .vidbridge")
            time.sleep(0.5)
    except KeyboardInterrupt:
        typer.echo("\nstopped")
