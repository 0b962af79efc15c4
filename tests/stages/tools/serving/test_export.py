"""The champion as an exported folder: its bytes, its card, its settings."""

from __future__ import annotations

import contextlib
import io
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.domain.core.timeline import SamplingRate
from stages.errors import InputError
from stages.lib.video.loader import load_video
from stages.params import load_params
from stages.tools.serving.export import card, export_version
from stages.tools.serving.vllm_serve import limit_of, media_io
from stages.tools.suites.engines.models import select_model
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.explain import explain
from stages.tracking.registry.register import register
from stages.tracking.registry.servable import USAGE, usage_of
from stages.tracking.registry.versions import CHAMPION
from stages.tracking.runs.run import TAG
from stages.tracking.runs.store import open_client
from stages.tracking.session import Session
from tests.support.checkout import ROOT
from tests.support.projects.serving import MODEL, QUESTION, RED, URI


@pytest.fixture(scope="module")
def exported(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    made = export_version(Session(project), CHAMPION, folder)
    assert (made.version.number, made.folder) == (1, folder)
    return folder


#: A table as evaluation writes it.
SCORES = {
    "schema_version": 1,
    "row": "base",
    "digest": "d1",
    "split": "test",
    "samples": 240,
    "mean": 0.375,
    "format": 0.925,
    "tasks": {
        "mcqa": {
            "mean": 0.375,
            "low": 0.3125,
            "high": 0.4375,
            "samples": 240,
            "format": 0.925,
            "blank": 0.25,
            "shuffled": 0.3,
        }
    },
}


def test_what_is_put_through_a_benchmark_is_asked_as_its_version_says(project: Path, exported: Path) -> None:
    params = load_params(project / "params.yaml")
    other = params.model_copy(
        update={"prompt": params.prompt.model_copy(update={"instruction": "As params.yaml says now"})}
    )
    chosen = [
        select_model(Session(project), other, which, None) for which in (URI, f"models:/{MODEL}/1", "champion", "1")
    ]
    assert {one.version.number for one in chosen if one.version} == {1}
    assert len({one.identity["weights"] for one in chosen}) == 1
    for one in (*chosen, select_model(Session(project), other, str(exported), None)):
        assert one.has_settings
        assert (one.prompt, one.max_new_tokens, one.precision) == (
            params.prompt,
            params.evaluation.max_new_tokens,
            "fp32",
        )
    assert not select_model(Session(project), other, str(project / "made"), None).has_settings
    assert select_model(Session(project), other, str(project / "made"), None).prompt == other.prompt
    with pytest.raises(TrackingError, match="no version '9'"):
        select_model(Session(project), other, f"models:/{MODEL}/9", None)


def test_an_exported_folder_stands_alone(exported: Path, project: Path, videos: Path, champion: Any) -> None:
    """Its bytes are the registered ones and its own, and the code in its card gives the served
    reply."""
    given = {path.name: path.read_bytes() for path in (project / "made").iterdir()}
    assert {name: (exported / name).read_bytes() for name in given} == given
    assert [path for path in exported.iterdir() if path.stat().st_nlink != 1] == []
    assert [path for path in exported.iterdir() if str(project).encode() in path.read_bytes()] == []
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(card_code(exported).replace("What happens first?", QUESTION), card_inputs(videos / "deep/red.mp4"))
    assert printed.getvalue().strip() == RED["reply"]


def card_code(folder: Path) -> str:
    """The Python in a model card, for that folder."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert code is not None
    return code[1].replace("this folder", str(folder))


def card_inputs(video: Path) -> dict[str, Any]:
    """Names that the card leaves to its reader: the frames, and facts about the video."""
    import torch
    from transformers.video_utils import VideoMetadata

    from stages.lib.models.processor import video_metadata

    frames = load_video(video, load_params(ROOT / "params.yaml").synthesize.sampled_frames)
    return {
        "frames": torch.from_numpy(frames.pixels.copy()).permute(0, 3, 1, 2),
        "metadata": VideoMetadata(**video_metadata(frames)),
    }


def test_a_card_says_what_a_reader_needs(exported: Path, project: Path, tmp_path: Path) -> None:
    page = (exported / "README.md").read_text()
    front = yaml.safe_load(page.split("---")[1])
    assert (front["library_name"], front["pipeline_tag"], front["license"]) == (
        "transformers",
        "video-text-to-text",
        "apache-2.0",
    )
    for part in (
        "recipe | `tiny`",
        "vllm serve",
        "This version was not evaluated",
        "generated shapes only",
        "It was not tested on",
    ):
        assert part in page
    client = open_client(project)
    tags = {"scores": json.dumps(SCORES), "baselines": json.dumps({"digest": "d1", "means": {"random": 0.125}})}
    for name, text in tags.items():
        client.set_model_version_tag(MODEL, "1", TAG + name, text)
    try:
        export_version(Session(project), "1", tmp_path / "scored")
    finally:
        for name in tags:
            client.delete_model_version_tag(MODEL, "1", TAG + name)
    page = (tmp_path / "scored/README.md").read_text()
    assert "| mcqa | 0.375 | 0.312 – 0.438 | 240 | 0.925 | 0.250 | 0.300 |" in page
    assert "| **mean over tasks** | **0.375** | | 240 | 0.925 | | |\n| baseline: random | 0.125 | | | | | |\n" in page
    # Apart from the tables' own line breaks, nothing of the template is left.
    assert not re.search(r"\{[%{]|[%}]\}(?!')|&#|&lt;", page)


def test_a_card_names_the_base_model(project: Path, exported: Path) -> None:
    recipe = load_params(ROOT / "infra/recipes/videocap-r1.yaml")
    config = {"model_type": "qwen2_vl", "positions_behind_video": "after_last"}
    page = card(explain(Session(project), "1"), usage_of(recipe, recipe.candidate), config, exported)
    front = yaml.safe_load(page.split("---")[1])
    assert front["base_model"] == recipe.model.name  # type: ignore[union-attr]
    assert front["license"] == "other"
    assert "trained on | structured_caption" in page
    assert repr(recipe.prompt.structured_instruction)[1:-1] in page


def test_a_card_says_by_which_rule_text_was_placed_behind_videos(project: Path, exported: Path) -> None:
    page, usage = (exported / "README.md").read_text(), usage_of(load_params(ROOT / "params.yaml"), "base")
    assert json.loads((exported / "config.json").read_text())["positions_behind_video"] == "after_last"
    row = (
        "| positions behind a video | one after the video's last position on any axis, time included (transformers <="
        " 5.2, vLLM) |"
    )
    assert row in page
    assert "transformers from 5.3 on goes on by the larger" in page
    old = card(explain(Session(project), "1"), usage, {"model_type": "qwen2_5_vl"}, exported)
    assert "| positions behind a video | not stated: trained by an older version" in old
    third = card(
        explain(Session(project), "1"),
        usage,
        {"model_type": "qwen3_vl", "positions_behind_video": "after_last"},
        exported,
    )
    assert "| positions behind a video | a grid a frame" in third
    assert "get_rope_index" not in third


def test_an_export_overwrites_nothing(project: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something already; name a new or an empty folder"):
        export_version(Session(project), CHAMPION, tmp_path)
    with pytest.raises(InputError, match="holds something already"):
        export_version(Session(project), CHAMPION, tmp_path / "mine.txt")
    (tmp_path / "empty").mkdir()
    export_version(Session(project), CHAMPION, tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "mine.txt"]


def test_a_version_of_older_code_says_what_to_do(project: Path, tmp_path: Path) -> None:
    client = open_client(project)
    client.delete_model_version_tag(MODEL, "1", TAG + USAGE)
    with pytest.raises(TrackingError, match=r"has no settings for requests .*: vidbridge register"):
        export_version(Session(project), CHAMPION, tmp_path / "model")
    assert register(Session(project)).updated == (1,)
    export_version(Session(project), CHAMPION, tmp_path / "model")


def test_a_rate_that_gives_odd_numbers_is_said() -> None:
    assert media_io(8) == {"video_backend": "qwen3_vl", "min_frames": 8, "max_frames": 8}
    assert limit_of(8) == ""
    rate = SamplingRate(per_second=Fraction(2), at_least=4, at_most=1024)
    assert media_io(rate) == {"video_backend": "qwen3_vl", "fps": 2.0, "min_frames": 4, "max_frames": 1024}
    assert limit_of(rate) == ", and at most 768 are shown, and 2 a second make an even number of them"
