"""Published annotations beside files of their real lengths, and the small annotation files that 0.1
read wrongly."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from stages.domain.core.records import Clip, Reject
from stages.domain.tasks import mcqa
from stages.domain.tasks.partners import ring_of
from stages.domain.tasks.task import Context
from stages.ingest.clips import Media, to_clip
from stages.lib.annotations.annotation import Annotation
from stages.lib.annotations.formats import read_source
from stages.lib.video.encoder import ffmpeg_binary
from stages.params import IngestParams, Params, load_params
from stages.tools.dataset.check import Checked, check
from tests.support.checkout import ROOT
from tests.support.processes.commands import vidbridge
from tests.support.siblings import ANNOTATIONS, CASES, needs_annotations

#: A recipe of a pretrained model: events filtered by words, questions made from the order of
#: events.
RECIPE = ROOT / "infra" / "recipes" / "vidbridge-r1.yaml"


def _film(
    folder: Path, name: str, seconds: Fraction | float, frames: int | None = None, rate: Fraction = Fraction(10)
) -> None:
    """A film as the cases' README describes it, with ``frames`` frames if set."""
    folder.mkdir(parents=True, exist_ok=True)
    length = ["-frames:v", str(frames)] if frames else []
    source = f"testsrc2=s=64x64:r={rate}:d={float(seconds) + 1 if frames else float(seconds)}"
    command = [
        ffmpeg_binary(),
        "-v",
        "error",
        "-nostdin",
        "-f",
        "lavfi",
        "-i",
        source,
        *length,
        "-metadata",
        f"title={name}",
    ]
    command += ["-c:v", "libx264", "-preset", "ultrafast", "-g", "250", "-pix_fmt", "yuv420p", str(folder / name)]
    subprocess.run(command, check=True, timeout=120)


def _checked(folder: Path, annotation_format: str, annotations: str | None = None, recipe: Path = RECIPE) -> Checked:
    return check(load_params(recipe), str(folder), annotation_format, annotations)


def _case(name: str, folder: Path, to: str, **films: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(CASES / name, folder / to)
    for film, seconds in films.items():
        _film(folder, f"{film}.mp4", seconds)
    return folder


def test_one_bad_event_leaves_its_video_the_others(tmp_path: Path) -> None:
    found = _checked(_case("one-bad-event.jsonl", tmp_path, "annotations.jsonl", a=3, b=4), "jsonl")
    assert [(clip.clip_id, [event.caption for event in clip.events]) for clip in found.clips] == [
        ("a", ["someone sits down", "someone drinks"]),
        ("b", ["someone runs"]),
    ]
    bad, outside = found.rejects
    assert (bad.item, bad.reason, outside.item, outside.reason) == (
        "annotations.jsonl:2",
        "bad-event",
        "a",
        "event-outside-clip",
    )
    assert "'a mark'" in bad.detail
    assert "'someone holds a cup' [0, 5) s" in outside.detail
    assert "annotations.jsonl:1" in outside.detail


def test_overlapping_events_are_asked_one_question(tmp_path: Path) -> None:
    found = _checked(_case("overlapping-events.jsonl", tmp_path, "annotations.jsonl", a=4), "jsonl")
    assert found.samples["mcqa"] == 1
    settings = load_params(RECIPE).synthesize.tasks.mcqa
    assert settings is not None
    ((sample,), _) = mcqa.make(found.clips[0], settings.model_copy(update={"per_clip": 9}), Context(16, 7, ring_of(())))
    assert sample.question == 'Which of these happens right after "a dog barks"?'
    assert sample.options[ord(sample.reference) - ord("A")] == "a door opens"


def test_a_whole_recording_is_not_taken_for_its_clip(tmp_path: Path) -> None:
    folder = _case("kinetics-whole-recording.csv", tmp_path / "whole", "kinetics.csv", aaaaaaaaaaa=30)
    # Archives hold whole recordings under the names of windows too.
    (folder / "aaaaaaaaaaa.mp4").rename(folder / "aaaaaaaaaaa_000002_000005.mp4")
    found = _checked(folder, "kinetics")
    assert found.clips == ()
    (reject,) = found.rejects
    assert (reject.item, reject.reason) == ("aaaaaaaaaaa_000002_000005", "other-recording")
    assert "the file has 30 s, the annotation is of 3 s" in reject.detail
    assert "kinetics.csv:2" in reject.detail
    name = "aaaaaaaaaaa_000002_000005"
    folder = _case("kinetics-whole-recording.csv", tmp_path / name, "kinetics.csv", **{name: 3.1})
    (clip,) = _checked(folder, "kinetics").clips
    assert (clip.label, clip.frames) == ("abseiling", 31)


def test_prose_is_no_solution(tmp_path: Path) -> None:
    folder = _case("text-solution.jsonl", tmp_path, "train.jsonl", a=3)
    line = json.loads((folder / "train.jsonl").read_text())
    more = [{**line, "solution": "<answer>(B)</answer>"}, {**line, "solution": "A man pushes it"}]
    (folder / "train.jsonl").write_text("\n".join(json.dumps(row) for row in [line, *more]))
    found = _checked(folder, "vidbridge_r1")
    (clip,) = found.clips
    assert [(question.options, question.answer) for question in clip.questions] == [(("It is pushed", "It slips"), "B")]
    assert [(reject.item, reject.reason) for reject in found.rejects] == [
        ("train.jsonl:1", "bad-question"),
        ("train.jsonl:3", "bad-question"),
    ]
    assert "'Because it is pushed' names no option" in found.rejects[0].detail


def test_a_row_of_a_hundred_names_its_line_and_a_dog_its_file(tmp_path: Path) -> None:
    """Data is printed as data, rejects by reason and in natural order."""
    project, videos = tmp_path / "project", tmp_path / "videos"
    project.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, project)
    _film(videos, "a.mp4", 3)
    names = [":dog:.mp4" if number == 100 else f"[red]{number}.mp4" for number in range(2, 102)]
    events = [{"start": 1, "end": 1, "caption": ":smile: [bold]"}]
    rows = [{"video": "a.mp4", "events": events}, *({"video": name} for name in names)]
    (videos / "annotations.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    env = {"VIDBRIDGE_PROJECT": str(project), "COLUMNS": "300"}
    done = vidbridge("data", "check", str(videos), "--all", cwd=project, **env)
    assert done.returncode == 0, done.stderr
    assert (
        "1 accepted; 101 rows read: 1 used, 100 rejected; 1 events, questions, subjects or captions of rows rejected"
        " beside them" in done.stdout
    )
    lines = [line.strip() for line in done.stdout.splitlines()]
    missing = [line for line in lines if "does not exist in the folder" in line]
    assert [line.partition(": ")[0] for line in missing] == [f"annotations.jsonl:{number}" for number in range(2, 102)]
    assert missing[98].startswith("annotations.jsonl:100: video: ':dog:.mp4' does not exist")
    assert "'[red]2.mp4'" in missing[0]
    assert any("(of ':smile: [bold]')" in line for line in lines), lines


def _counts() -> dict[str, tuple[int, Fraction]]:
    """Frames and rate of the real files, by video."""
    with (ANNOTATIONS / "activitynet_captions" / "frame_counts.csv").open(encoding="utf-8") as rows:
        return {row["video"]: (int(row["frames"]), Fraction(row["fps"])) for row in csv.DictReader(rows)}


def _stand_in(frames: int, rate: Fraction) -> Media:
    about = {"sha256": "0" * 64, "codec": "h264", "width": 64, "height": 64, "variable_rate": False, "hazards": ()}
    return Media.model_validate(about | {"rate": rate, "frames": frames, "duration_s": frames / rate, "starts_s": 0})


def _read(params: Params, name: str, folder: Path) -> tuple[list[Annotation], list[Reject], IngestParams, int, int]:
    """The rows of one of the published files beside empty files of the right names, and how many
    videos and events it has."""
    folder.mkdir()
    shutil.copy(ANNOTATIONS / "activitynet_captions" / name, folder)
    entries = json.loads((folder / name).read_text(encoding="utf-8"))
    for video in entries:
        (folder / f"{video}.mp4").touch()
    changes = {"source": str(folder), "format": "activitynet_captions", "annotations": name}
    settings = params.ingest.model_copy(update=changes)
    rows, rejects, *_ = read_source(settings)
    return rows, rejects, settings, len(entries), sum(len(entry["timestamps"]) for entry in entries.values())


@needs_annotations
def test_activitynet_captions_is_usable_beside_files_of_its_real_lengths(tmp_path: Path) -> None:
    """At least 97% of the videos and 95% of the events; no order question without a single right
    answer. 0.1: 30% of the videos."""
    counts, params = _counts(), load_params(RECIPE)
    tally: Counter[str] = Counter()
    for name in ("train.json", "val_1.json", "val_2.json"):
        rows, rejects, settings, videos, events = _read(params, name, tmp_path / name)
        assert {reject.reason for reject in rejects} <= {"bad-event"}
        tally.update({"videos": videos, "events": events, "bad": len(rejects)})
        for row in rows:
            frames, rate = counts[row.clip_id]
            clip, set_aside = to_clip(row, "train", _stand_in(frames, rate), settings)
            tally["overrun"] += any(event.end > frames / rate for event in row.events)
            tally["bad"] += sum(reject.reason.startswith("event-") for reject in set_aside)
            if clip is not None and clip.events:
                tally.update(
                    {"usable": 1, "kept": len(clip.events), "cut": sum(e.cut_s is not None for e in clip.events)}
                )
                tally.update(_unclear_questions(clip))
    assert (tally["videos"], tally["events"]) == (626, 2266)
    assert tally["overrun"] >= 439
    assert tally["kept"] + tally["bad"] == tally["events"]
    assert tally["usable"] >= 0.97 * tally["videos"], tally
    assert tally["kept"] >= 0.95 * tally["events"], tally
    assert tally["asked"] > 2000
    assert tally["unclear"] == 0, tally


def _unclear_questions(clip: Clip) -> dict[str, int]:
    """Questions from the order of events, and how many of them have a second right answer by a rule
    that shares no code with ours."""
    half = clip.rate / 2
    spans = {event.caption: event.span for event in clip.events}
    asked = unclear = 0
    settings = mcqa.Settings(per_clip=99, from_events=True)
    for sample in mcqa.make(clip, settings, Context(16, 7, ring_of(())))[0]:
        right = spans[sample.options[ord(sample.reference) - ord("A")]]
        others = [span for caption, span in spans.items() if span is not right]
        asked += 1
        if sample.question.endswith("first?"):
            unclear += any(span.start - right.start < half for span in others)
        elif sample.question.endswith("last?"):
            unclear += any(span.stop >= right.stop for span in others)
        else:
            before = spans[sample.question.split('"', 1)[1].rsplit('"', 1)[0]]
            unclear += right.start < before.stop - half
    return {"asked": asked, "unclear": unclear}


@needs_annotations
def test_activitynet_captions_through_data_check_with_real_files(tmp_path: Path) -> None:
    """Encoded files of the real lengths for the shortest videos of a split, through all that
    `vidbridge data check` does."""
    counts = _counts()
    entries = json.loads((ANNOTATIONS / "activitynet_captions" / "val_1.json").read_text(encoding="utf-8"))
    shortest = sorted(
        (video for video in entries if video in counts), key=lambda video: counts[video][0] / counts[video][1]
    )[:12]
    (tmp_path / "val_1.json").write_text(json.dumps({video: entries[video] for video in shortest}), encoding="utf-8")
    for video in shortest:
        frames, rate = counts[video]
        _film(tmp_path, f"{video}.mp4", frames / rate, frames, rate)
    found = _checked(tmp_path, "activitynet_captions", "val_1.json")
    assert [clip.clip_id for clip in found.clips] == sorted(shortest)
    assert [clip.frames for clip in found.clips] == [counts[clip.clip_id][0] for clip in found.clips]
    kept = sum(len(clip.events) for clip in found.clips)
    assert kept >= 0.95 * sum(len(entries[video]["timestamps"]) for video in shortest)
    assert sum(event.cut_s is not None for clip in found.clips for event in clip.events) >= 8


@needs_annotations
@pytest.mark.parametrize("name", ["kinetics-400_val.csv", "kinetics-600_test.csv", "kinetics-700_2020_val.csv"])
def test_real_kinetics_rows_take_clips_and_refuse_recordings(name: str, tmp_path: Path) -> None:
    shutil.copy(ANNOTATIONS / "kinetics" / name, tmp_path)
    with (tmp_path / name).open(encoding="utf-8") as rows:
        named = list(csv.DictReader(rows))
    for number, row in enumerate(named):
        stem = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}"
        (tmp_path / f"{stem if number % 2 else row['youtube_id']}.mp4").touch()
    params = load_params(RECIPE)
    settings = params.ingest.model_copy(update={"source": str(tmp_path), "format": "kinetics", "annotations": name})
    read, rejects, *_ = read_source(settings)
    assert (len(read), rejects) == (len(named), [])
    for row_read, row in zip(read, named, strict=True):
        if row_read.length_s is None:
            assert (row_read.video, row_read.start, row_read.end) == (
                f"{row['youtube_id']}.mp4",
                int(row["time_start"]),
                int(row["time_end"]),
            )
            continue
        assert row_read.length_s == int(row["time_end"]) - int(row["time_start"])
        assert to_clip(row_read, "train", _stand_in(250, Fraction(25)), settings)[0] is not None
        whole, (reject,) = to_clip(row_read, "train", _stand_in(12_000, Fraction(25)), settings)
        assert (whole, reject.reason) == (None, "other-recording")
