"""Real videos of one colour each, and a real tiny model that has learned to name it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.domain.core.replies import render_reply
from stages.params import Params, load_params
from stages.tools.suites.frames import load_at
from stages.tools.suites.published.registry import BENCHMARKS
from stages.tools.suites.score import read_questions
from tests.support.checkout import ROOT
from tests.support.processes.once import made_once
from tests.support.projects.serving import make_videos
from tests.support.suites.coloured import about_colours, captions
from tests.support.surroundings import forget
from tests.support.training.tiny import COLOURS, REPLIES, save_overfitted


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write `deep/red.mp4`, `deep/green.mp4`, `deep/blue.mp4`, files beside them, and a file that
    is not a video."""
    folder = tmp_path_factory.mktemp("videos")
    make_videos(folder / "deep")
    (folder / "deep" / "red.srt").write_text("subtitles\n")
    (folder / "broken.mp4").write_text("no video at all\n" * 100)
    return folder


@pytest.fixture(scope="session")
def taught(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a model to give `REPLIES` about a coloured video to Video-MME's prompt, and its caption
    to DREAM-1K's."""

    def teach(folder: Path) -> None:
        folder.mkdir()
        texts = load_params(ROOT / "params.yaml").prompt
        shown, said = [], []
        for name, file in (("video-mme", about_colours(folder, 2)), ("dream-1k", captions(folder))):
            for item in read_questions(name, file).items:
                colour = Path(item.video).stem
                frames = load_at(videos / "deep" / f"{colour}.mp4", item.frames.fps, item.frames.frames, None)
                shown.append((BENCHMARKS[name].prompt(item, texts), [frames]))
                said.append(
                    REPLIES[COLOURS.index(colour)] if item.options else render_reply(f"it is {colour}", item.truth)
                )
        save_overfitted(shown, said, folder / "model")

    return made_once(tmp_path_factory, "taught", teach) / "model"


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with the recipe `tiny` and a tracking store of its own."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    (folder / "dvc.yaml").write_text("stages: {}\n")
    with pytest.MonkeyPatch.context() as patch:
        forget(patch, "VIDBRIDGE_", "MLFLOW_")
        yield folder


@pytest.fixture(scope="session")
def params(root: Path) -> Params:
    return load_params(root / "params.yaml")
