"""``vidbridge data check``: a preview of ingest on a folder, without a stage, a run or an output
file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from fractions import Fraction
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from flows.console.data import checked_document, show_checked
from stages.domain.tasks import qa
from stages.ingest import examine as examining
from stages.ingest.examination import Asked, FileReport, examine
from stages.lib.judging.rule import RuleJudge
from stages.lib.video.encoder import encode
from stages.params import IngestParams, load_params
from stages.tools.dataset.check import check
from tests.support.checkout import ROOT
from tests.support.processes.commands import vidbridge
from tests.support.siblings import CASES
from tests.support.video.numbered_frames import draw_numbers

REAL = ROOT / "tests/data/clips"


def test_a_folder_is_checked_and_everything_in_it_accounted_for(tmp_path: Path) -> None:
    project, videos = tmp_path / "project", tmp_path / "videos"
    project.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, project)
    shutil.copytree(REAL, videos)
    (videos / "broken.mp4").write_text("no video")
    with (videos / "annotations.jsonl").open("a") as rows:
        rows.write(json.dumps({"video": "broken.mp4"}) + "\n" + json.dumps({"video": "gone [red].mp4"}) + "\n")
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    done = vidbridge("data", "check", str(videos), cwd=project, VIDBRIDGE_PROJECT=str(project), COLUMNS="300")
    assert done.returncode == 0, done.stderr
    assert "1 accepted; 3 rows read: 1 used, 2 rejected\n" in done.stdout
    assert "not for decord  none: decord is right on all of them" in done.stdout
    assert "1 dark_event_infer, 0 mix_vid_qa, 2 mcqa, 1 caption, 0 structured_caption" in done.stdout
    assert "broken: broken.mp4: no known video format" in done.stdout
    # File names are text, never markup.
    assert "video: 'gone [red].mp4' does not exist in the folder" in done.stdout
    after = sorted(path for path in tmp_path.rglob("*") if path.is_file() and ".vidbridge" not in path.parts)
    assert after == before


def test_curate_looks_at_a_folder_whatever_the_parameters_say(tmp_path: Path) -> None:
    project, videos = tmp_path / "project", tmp_path / "videos"
    project.mkdir()
    videos.mkdir()
    shutil.copy(ROOT / "dvc.yaml", project)
    text = (ROOT / "params.yaml").read_text()
    assert "validation: {mode: auto," in text
    (project / "params.yaml").write_text(text.replace("validation: {mode: auto,", "validation: {mode: sampled,"))
    grounds = [
        np.random.default_rng(n).integers(0, 255, (8, 8, 3), np.uint8).repeat(16, 0).repeat(16, 1) for n in (1, 2)
    ]
    pair = np.concatenate([np.stack([np.roll(ground, 4 * n, 1) for n in range(16)]) for ground in grounds])
    for name, crf in (("a", 18), ("b", 26)):
        encode(pair, Fraction(8), videos / f"{name}.mp4", crf=crf)
    encode(np.zeros((16, 128, 128, 3), np.uint8), Fraction(8), videos / "black.mp4", crf=18)
    rows = [{"video": "a.mp4", "split": "train"}, {"video": "b.mp4", "split": "test"}, {"video": "black.mp4"}]
    (videos / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    env = {"VIDBRIDGE_PROJECT": str(project), "VIDBRIDGE_WORKERS": "1"}
    done = vidbridge("data", "check", str(videos), "--curate", "--json", cwd=project, **env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["accepted"] == 3
    assert found["curated"]["flagged"] == {"black": 1}
    assert {clip["clip_id"]: clip["shots"] for clip in found["clips"]} == {"a": [16], "b": [16], "black": []}
    (near,) = found["near_duplicates"]
    assert (near["clips"], sorted(near["splits"])) == (["a", "b"], ["test", "train"])


def test_a_folder_that_cannot_be_used_is_one_message_and_status_2(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, project)
    done = vidbridge("data", "check", str(tmp_path / "nowhere"), cwd=project)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: folder: ")
    assert "is not a folder; name one with videos and annotations.jsonl" in done.stderr


def test_chinese_annotations_give_what_their_english_counterpart_would(tmp_path: Path) -> None:
    shutil.copy(CASES / "chinese.jsonl", tmp_path / "annotations.jsonl")
    grey = np.stack([np.full((64, 64, 3), 20 + 4 * frame, np.uint8) for frame in range(40)])
    encode(grey, Fraction(10), tmp_path / "a.mp4", crf=18)
    params = load_params(ROOT / "infra/recipes/vidbridge-r1.yaml")
    found = check(params, str(tmp_path), None, None)
    assert (len(found.clips), found.rejects) == (1, ())
    assert [event.caption for event in found.clips[0].events] == ["一个人走进房间", "他在沙发上坐下"]
    assert (found.samples["dark_event_infer"], found.set_aside["dark_event_infer"]) == (1, ())
    assert found.samples["caption"] == 1

    judge = RuleJudge(full_share=0.8, partial_share=0.4)
    assert judge.entailed("一个人走进房间", "一个人走进房间然后坐下。").score == 1.0
    assert judge.extract_events("一个人走进房间，然后坐下。狗在叫！") == ("一个人走进房间", "坐下", "狗在叫")


def test_rows_parts_and_questions_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_process(
        asked: Sequence[Asked], params: IngestParams, reencoded: Path | None, *_: object
    ) -> Iterator[FileReport]:
        return (examine(one, Path(params.source), reencoded) for one in asked)

    monkeypatch.setattr(examining, "_examined", in_process)
    encode(draw_numbers(list(range(100))), Fraction(10), tmp_path / "a.mp4", crf=18)
    encode(draw_numbers(list(range(200, 240))), Fraction(10), tmp_path / "b.mp4", crf=18)
    (tmp_path / "stray.mp4").touch()
    asked = {"qa": [{"question": "What moves?", "answer": "a square"}]}
    rows = [
        *({"video": "a.mp4", "start": n, "end": n + 2, "caption": f"part {n}"} | asked for n in range(0, 10, 2)),
        {"video": "a.mp4", "start": 0, "end": 2, "caption": "again"},
        {"video": "b.mp4", "events": [{"start": 7, "end": 8, "caption": "too late"}]},
        *({"video": f"gone-{n}.mp4"} for n in (1, 10, 9, 2)),
        {"video": "a.mp4", "start": 20, "end": 30},
        {"video": "a.mp4", "start": 20, "end": 30, "caption": "the same"},
    ]
    (tmp_path / "annotations.jsonl").write_text("\n".join(map(json.dumps, rows)))
    params = load_params(ROOT / "params.yaml")
    settings = params.synthesize.tasks.model_copy(update={"qa": qa.Settings(per_clip=1, from_events=False)})
    synthesize = params.synthesize.model_copy(update={"tasks": settings})
    found = check(params.model_copy(update={"synthesize": synthesize}), str(tmp_path), None, None)
    assert found.rows == (13, 7)
    assert (found.rows_rejected, found.parts_rejected, found.files_rejected) == (6, 1, 1)
    document = checked_document(found)
    assert document["rows"] == {"read": 13, "used": 7, "rejected": 6}
    assert document["reasons"] == {
        "missing-file": 4,
        "event-outside-clip": 1,
        "no-annotation": 1,
        "part-outside-file": 1,
    }
    assert document["samples"]["qa"] == 5

    out = Console(width=200, file=StringIO())
    show_checked(out, found, every=False)
    assert isinstance(out.file, StringIO)
    shown = [line.strip() for line in out.file.getvalue().splitlines()]
    assert shown[0] == (
        "6 accepted; 13 rows read: 7 used, 6 rejected; 1 files that no row names; 1 events, questions, subjects or"
        " captions of rows rejected beside them"
    )
    words = " ".join(" ".join(line.split()) for line in shown)
    assert "parts 5 of the clips, of 1 files" in words
    assert "annotations 0 events, 6 captions, 0 multiple-choice questions, 5 open questions" in words
    assert "5 qa" in words
    listed = shown[shown.index("4  missing-file") :][:5]
    assert [line.partition(":")[2].split(":")[0] for line in listed[1:4]] == ["8", "9", "10"]
    assert listed[4] == "… and 1 more; --all lists them"


def test_answers_that_no_task_reads_are_told(tmp_path: Path) -> None:
    encode(np.zeros((16, 64, 64, 3), np.uint8), Fraction(8), tmp_path / "a.mp4", crf=18)
    row = {"video": "a.mp4", "answers": {"cuont": {"number": 3}, "caption": {"a": 1}}}
    (tmp_path / "annotations.jsonl").write_text(json.dumps(row))
    found = check(load_params(ROOT / "params.yaml"), str(tmp_path), "jsonl", None)
    assert found.unread == {"cuont": 1}
    assert [reject.reason for reject in found.set_aside["caption"]] == ["bad-answers"]
    show_checked(Console(file=(shown := StringIO()), width=200), found, every=False)
    assert "answers that no task of synthesize.tasks reads: cuont (1 clips)\n" in shown.getvalue()
    assert checked_document(found)["unread_answers"] == {"cuont": 1}
