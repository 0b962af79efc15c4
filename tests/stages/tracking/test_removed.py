"""Versions that learned from a video that `vidbridge data remove` excludes: found, tagged and
refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.errors import FlowError
from flows.project.diagnosis.project import check_champion
from stages.params import ExcludedVideo, load_params
from stages.tools.dataset.remove import RemovalError
from stages.tracking.gate.promote import promote
from stages.tracking.registry.explain import explain
from stages.tracking.registry.removals import REMOVED, objection
from stages.tracking.registry.versions import find_version
from stages.tracking.runs.store import open_client
from stages.tracking.session import Session
from tests.support.projects.kept import MODEL, ask, clips, content, version, with_ingest


def test_what_saw_a_removed_video_is_found_tagged_and_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = here / "data/corpus"
    (source / "videos").mkdir(parents=True)
    for name in ("a", "b"):
        (source / f"videos/{name}.mp4").write_bytes(name.encode())
    (source / "annotations.jsonl").write_text(
        '{"id": "a", "video": "videos/a.mp4"}\n{"id": "b", "video": "videos/b.mp4"}\n'
    )
    params = here / "params.yaml"
    with_ingest(here)
    before = params.read_text()

    def made(stage: str, data: str | None, parent: str = "", **tags: str) -> int:
        named = {"data": json.dumps({"data/clips": data} if data else {}), **tags}
        if parent:
            named["parents"] = json.dumps({"models/x/final": {"stage": parent, "out": content(parent)[:32] + ".dir"}})
        return version(here, content(stage)[:32] + ".dir", stage, **named)

    with_it, without, tested = (
        clips(here, a="train", b="train"),
        clips(here, b="train"),
        clips(here, a="test", b="train"),
    )
    learned, clean, scored = made("sft@one", with_it), made("sft@two", without), made("sft@three", tested)
    inherited = made("grpo@four", without, parent="sft@one")
    lost = made("sft@five", "0" * 32 + ".dir")
    pretrained = made("base", with_it, params='{"params.yaml": {"model": {"kind": "pretrained"}}}')

    shown = ask(here, capsys, str(source / "videos/a.mp4"))
    assert params.read_text() == before
    assert shown["videos"] == [{"video": "videos/a.mp4", "sha256": [content("a")], "clips": ["a"], "splits": []}]
    told = {row["version"]: (row["trained"], row["scored"], row["unknown"] is not None) for row in shown["versions"]}
    assert told[learned] == told[inherited] == (["videos/a.mp4"], [], False)
    assert told[scored] == ([], ["videos/a.mp4"], False)
    assert told[lost] == ([], [], True)
    assert not {clean, pretrained} & told.keys()
    # Those of the fixture do not say which clips they were made from: unknown, not clean.
    champion = find_version(open_client(here), MODEL, "champion").number
    assert told[champion][2]
    assert shown["run_again"] == ["ingest", "summary"]

    done = ask(here, capsys, "a", yes=True)
    assert done["tagged"] == [f"{MODEL} version {learned}", f"{MODEL} version {inherited}"]
    assert load_params(params).ingest.exclude == (ExcludedVideo(video="videos/a.mp4", sha256=content("a")),)
    listed = f'exclude: [\n    {{video: "videos/a.mp4", sha256: "{content("a")}"}},\n  ]\n'
    assert params.read_text() == before.replace("exclude: []\n", listed)
    assert find_version(open_client(here), MODEL, learned).tags[REMOVED] == '["videos/a.mp4"]'
    (reason,) = promote(Session(here), inherited, author="tester").decision.reasons
    assert reason.startswith(f"version {inherited} learned from 'videos/a.mp4', removed on request")

    def refused(number: int) -> str | None:
        return objection(Session(here), find_version(open_client(here), MODEL, number))

    assert "learned from 'videos/a.mp4'" in str(refused(learned))
    assert "is unknown" in str(refused(lost))
    assert refused(clean) is refused(scored) is refused(pretrained) is None
    assert "whether version" in str(explain(Session(here), "champion").objection)
    assert "is unknown" in check_champion(Session(here)).found

    # A clone whose branch lacks the exclusion reads it from the registry; a later version is
    # checked by its data.
    params.write_text(before)
    later = made("sft@six", with_it)
    assert "learned from 'videos/a.mp4'" in str(refused(later))
    ask(here, capsys, "videos/a.mp4", yes=True)
    ask(here, capsys, "videos/a.mp4", yes=True, undo=True)
    assert params.read_text() == before
    assert explain(Session(here), "champion").objection is None
    assert find_version(open_client(here), MODEL, learned).removed_videos is None
    with pytest.raises(
        FlowError, match=r"video: 'videos/a.mp4' is not in ingest.exclude of params.yaml; name one that is: none"
    ):
        ask(here, capsys, "videos/a.mp4", undo=True)
    with pytest.raises(RemovalError, match=r"video: 'nothing' is neither a path in .*, nor an id or a SHA-256"):
        ask(here, capsys, "nothing")
