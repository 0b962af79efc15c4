"""``vidbridge predict`` and ``vidbridge report``: thin doors to the verbs that load models and draw pages."""

from __future__ import annotations

from pathlib import Path

from flows import show


def predict(root: Path, video: Path, question: str, version: str) -> None:
    """Ask a registered model about a video; shows its thinking, its answer, and whether the reply parses."""
    from stages.predict import predict as ask

    show.console().print(ask(root, video, question, version))


def report(root: Path, out: Path) -> None:
    """Write the page and say where it is."""
    from stages.report import build

    build(root, out)
    show.console().print(f"written: {out} (opens offline)")
