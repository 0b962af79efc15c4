"""A numbered video and others made from it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.lib.video.encoder import encode, ffmpeg_binary
from tests.support.video.numbered_frames import FRAMES, RATE, draw_numbers


@pytest.fixture(scope="session")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 numbered frames, 10 a second, as this project writes them."""
    path = tmp_path_factory.mktemp("numbered") / "plain.mp4"
    encode(draw_numbers(list(range(FRAMES))), RATE, path, crf=10)
    return path


@pytest.fixture(scope="session")
def make(numbered: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Another file from the numbered one by ffmpeg arguments."""
    folder = tmp_path_factory.mktemp("zoo")

    def run(name: str, *output: str, before: tuple[str, ...] = (), source: Path = numbered) -> Path:
        path = folder / name
        command = [ffmpeg_binary(), "-nostdin", "-v", "error", "-y", *before, "-i", str(source), *output, str(path)]
        done = subprocess.run(command, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return path

    return run
