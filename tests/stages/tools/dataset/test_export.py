"""All exports have the same frames: loaded by the edit list, from the rendered video, from the
Parquet file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml

from stages.domain.core.records import SPLITS, Sample
from stages.domain.core.timeline import sample_indices
from stages.errors import InputError
from stages.lib.rows.jsonl import read_rows
from stages.lib.rows.samples import load_clips
from stages.lib.video.encoder import ffmpeg_binary
from stages.lib.video.loader import FrameLoader
from stages.lib.video.probe import probe
from stages.lib.video.reader import read_frames
from stages.runtime import paths
from stages.tools.dataset.export import export, video_name
from tests.support.checkout import ROOT

REAL = ROOT / "tests/data/clips"
#: Mean difference of two encodings of one picture, of 255; the next sampled frame of these clips
#: differs by several times as much.
CODEC_NOISE = 3.0


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real clip, scaled, and a mirrored one of another size, rate and class: every task,
    conformed mixes included."""
    folder = tmp_path_factory.mktemp("project")
    source = folder / "videos"
    source.mkdir()
    for name, filters in (("rabbit", "scale=320:180"), ("mirrored", "hflip,scale=240:180,fps=30")):
        arguments = (
            "-i",
            str(REAL / "bigbuckbunny.mp4"),
            "-an",
            "-vf",
            filters,
            "-g",
            "15",
            str(source / f"{name}.mp4"),
        )
        subprocess.run([ffmpeg_binary(), "-v", "error", *arguments], check=True, timeout=120)
    row = json.loads((REAL / "annotations.jsonl").read_text()) | {
        "video": "rabbit.mp4",
        "split": "train",
        "label": "rabbit",
    }
    rows = [row, row | {"video": "mirrored.mp4", "label": "MirroredRabbit", "qa": []}]
    (source / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    params = yaml.safe_load((ROOT / "infra/recipes/vidbridge-r1.yaml").read_text())
    params["ingest"] |= {"source": str(source)}
    params["synthesize"]["tasks"]["dark_event_infer"]["events"]["min_s"] = 0.5
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    # The checkpoint of an interrupted synthesis is keyed by the code that the pipeline names.
    shutil.copyfile(ROOT / "dvc.yaml", folder / "dvc.yaml")
    (folder / "stages").symlink_to(ROOT / "stages")
    (folder / "tasks").mkdir()
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=folder, check=True, timeout=60)
    for verb in ("ingest", "synthesize"):
        command = [sys.executable, "-m", "stages", verb]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project


def _samples() -> list[Sample]:
    return [
        s
        for split in SPLITS
        for file in sorted((paths.SAMPLES / split).glob("*.jsonl"))
        for s in read_rows(file, Sample)
    ]


def _loader(project: Path) -> FrameLoader:
    return FrameLoader(load_clips(), project / "videos", cache_bytes=0)


@pytest.mark.slow
def test_mp4_shows_frame_for_frame_what_the_edit_list_says(inside: Path, tmp_path: Path) -> None:
    made = export(inside, tmp_path / "out", "mp4", [], SPLITS, 3)
    each: Counter[tuple[str, str]] = Counter()
    samples = []
    for sample in _samples():
        each[sample.split, sample.task] += 1
        if each[sample.split, sample.task] <= 3:
            samples.append(sample)
    assert sum(made.samples.values()) == len(samples)
    assert {sample.task for sample in samples} == {"dark_event_infer", "mix_vid_qa", "mcqa", "caption"}
    loader = _loader(inside)
    for sample in samples:
        path = tmp_path / "out" / "videos" / video_name(sample)
        facts = probe(path)
        assert (facts.frames, facts.rate, facts.hazards) == (sample.timeline.frames, sample.timeline.rate, ())
        indices = sample_indices(facts.frames, sample.sampled_frames)
        rendered, edited = read_frames(path, indices)[0].astype(int), loader.load(sample).pixels
        for ours, theirs in zip(edited, rendered, strict=True):
            assert np.abs(theirs - ours).mean() < CODEC_NOISE
        dark = [not frame.any() for frame in edited]
        assert any(dark) == (sample.task == "dark_event_infer")
    rows = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert {row["sample_id"] for row in rows} == {sample.sample_id for sample in samples}
    assert [row for row in rows if not (tmp_path / "out" / row["video"]).is_file()] == []


def test_trl_reads_its_rows_and_a_second_export_renders_only_what_is_missing(inside: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(inside, out, "trl", ["dark_event_infer", "caption"], ["train"], 2)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    gone = next(iter(times))
    gone.unlink()
    export(inside, out, "trl", ["dark_event_infer", "caption"], ["train"], 2)
    assert {path for path in times if path.stat().st_mtime_ns != times[path]} == {gone}
    rows = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.num_rows == 4
    first = rows[0]
    video, text = first["prompt"][0]["content"]
    assert (out / video["video"]).is_file()
    assert text["text"].startswith("Part of this video is blacked out. What happens in the dark part?")
    assert first["completion"][0]["content"][0]["text"].endswith(f"<answer>{first['solution']}</answer>")


def test_datasets_holds_the_sampled_frames(inside: Path, tmp_path: Path) -> None:
    export(inside, tmp_path / "out", "datasets", ["mix_vid_qa", "dark_event_infer"], ["train"], None)
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    samples = {sample.sample_id: sample for sample in _samples()}
    loader = _loader(inside)
    assert rows.num_rows == sum(sample.task in ("mix_vid_qa", "dark_event_infer") for sample in samples.values()) > 0
    for row in rows:
        edited = loader.load(samples[row["sample_id"]])
        pictures = np.stack([np.asarray(picture) for picture in row["frames"]]).astype(int)
        assert np.abs(pictures - edited.pixels).mean(axis=(1, 2, 3)).max() < CODEC_NOISE
        assert row["times_s"] == [float(time) for time in edited.times_s]
        assert row["solution"] == samples[row["sample_id"]].reference
    card = (tmp_path / "out/README.md").read_text()
    assert "| train | mix_vid_qa |" in card
    assert "not stated: 2 clips" in card


def test_nothing_to_export_says_where_to_look(inside: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no sample of any task in test; data/samples/rejects\.jsonl says"):
        export(inside, tmp_path / "out", "trl", [], ["test"], None)
