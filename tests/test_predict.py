"""Asking an exported folder about a video needs no project and no registry."""

from __future__ import annotations

from pathlib import Path

import pytest
from learning.tiny_parts import COLOURS, REPLIES
from serving_project import QUESTION, ROOT, make_videos, save_taught_model

from stages import layout
from stages.inputs import InputError
from stages.params import load_params
from stages.predict import predict_with
from stages.tracking.servable import usage_of
from stages.tracking.uri import TrackingError
from stages.video.errors import VideoError


def test_an_exported_folder_answers_without_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VIDBRIDGE_PROJECT", raising=False)
    videos, folder = tmp_path / "videos", tmp_path / "model"
    make_videos(videos)
    save_taught_model(videos, folder)
    told: list[str] = []
    with pytest.raises(InputError, match=r"--model: '.*model' has no vidbridge\.json"):
        predict_with(folder, videos / "green.mp4", QUESTION, told.append)
    (folder / layout.USAGE_FILE).write_text("{}")
    with pytest.raises(TrackingError, match=r"vidbridge\.json: prompt"):
        predict_with(folder, videos / "green.mp4", QUESTION, told.append)
    (folder / layout.USAGE_FILE).write_text(usage_of(load_params(ROOT / "params.yaml"), "base").model_dump_json())
    with pytest.raises(VideoError, match="no known video format"):
        predict_with(folder, folder / layout.USAGE_FILE, QUESTION, told.append)
    assert told == []
    for colour, reply in zip(COLOURS, REPLIES, strict=True):
        assert predict_with(folder, videos / f"{colour}.mp4", QUESTION, told.append).text == reply
    assert told == [f"loading {folder}"] * len(COLOURS)
