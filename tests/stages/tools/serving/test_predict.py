"""Asking an exported folder about a video needs no project and no registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.errors import InputError
from stages.lib.video.errors import VideoError
from stages.params import load_params
from stages.runtime import paths
from stages.tools.serving.predict import predict_with
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.servable import usage_of
from tests.support.checkout import ROOT
from tests.support.projects.serving import QUESTION, make_videos, save_taught_model
from tests.support.training.tiny import COLOURS, REPLIES


def test_an_exported_folder_answers_without_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VIDBRIDGE_PROJECT", raising=False)
    videos, folder = tmp_path / "videos", tmp_path / "model"
    make_videos(videos)
    save_taught_model(videos, folder)
    told: list[str] = []
    with pytest.raises(InputError, match=r"--model: '.*model' has no vidbridge\.json"):
        predict_with(folder, videos / "green.mp4", QUESTION, told.append)
    (folder / paths.USAGE_FILE).write_text("{}")
    with pytest.raises(TrackingError, match=r"vidbridge\.json: prompt"):
        predict_with(folder, videos / "green.mp4", QUESTION, told.append)
    (folder / paths.USAGE_FILE).write_text(usage_of(load_params(ROOT / "params.yaml"), "base").model_dump_json())
    with pytest.raises(VideoError, match="no known video format"):
        predict_with(folder, folder / paths.USAGE_FILE, QUESTION, told.append)
    assert told == []
    for colour, reply in zip(COLOURS, REPLIES, strict=True):
        assert predict_with(folder, videos / f"{colour}.mp4", QUESTION, told.append).text == reply
    assert told == [f"loading {folder}"] * len(COLOURS)
