"""A real model on a benchmark in this process: number of decodes, files on disk, and
interruption."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from stages.lib.engine.errors import EngineLost
from stages.lib.engine.wire import Reply
from stages.lib.engine_server.app import Died
from stages.lib.inference.generate import generate
from stages.lib.inference.policy import ModelPolicy
from stages.lib.models.load import load_model, save_model
from stages.lib.models.processor import encode_prompts
from stages.lib.rows.jsonl import read_record
from stages.lib.video.errors import VideoError
from stages.params import OpenAIJudgeParams, Params
from stages.runtime.endpoint.settings import JudgeError
from stages.tools.suites import frames as protocol
from stages.tools.suites.asking import EvaluationRequest, model_engine
from stages.tools.suites.engines.contents import Contents
from stages.tools.suites.engines.local import LocalModel, prepare, thinned
from stages.tools.suites.engines.questions import Answer, EngineError, Question, questions
from stages.tools.suites.engines.videos import VideoLoader, video_key_of
from stages.tools.suites.evaluate import evaluate, identity_of
from stages.tools.suites.frames import load_at
from stages.tools.suites.published.benchmark import AnnotationError, PredictionError
from stages.tools.suites.results import BenchmarkEvaluation
from stages.tools.suites.score import read_questions, score
from stages.tracking.runs.run import TAG
from stages.tracking.runs.store import experiment_id, open_client
from stages.tracking.session import Session
from tests.support.servers.engine.stand_in import HfEngine, Served, served
from tests.support.suites.annotations import lines, samples, video_mme
from tests.support.suites.coloured import about_colours, captions, order, replies
from tests.support.training.tiny import tiny


def ask(root: Path, params: Params, given: EvaluationRequest, model: Path, **changes: Any) -> dict[str, Any]:
    engine = model_engine(Session(root), params, given, str(model), None)
    return evaluate(root, params, given, engine, **{"baselines": True, "against": None, **changes})


def test_scores_controls_files_and_a_run(
    root: Path, params: Params, taught: Path, videos: Path, tmp_path: Path
) -> None:
    annotations = about_colours(tmp_path, 2, "gone", "broken")
    out = tmp_path / "out"
    result = ask(root, params, order(annotations, videos, out), taught)
    strict = result.scores["strict"].overall["accuracy"]
    assert (strict.items, strict.mean) == (6, 100), "it names the colour, and that is one option in words"
    assert result.scores["strict"].by["duration"]["long"]["accuracy"].items == 3
    assert result.controls["shuffled"].scores["strict"]["accuracy"].mean == 100, (
        "one colour in any order is that colour"
    )
    blank = result.controls["blank"]
    assert blank.questions == 6
    assert blank.scores["strict"]["accuracy"].mean <= 100 / 3, "black is one of them at most"
    assert blank.gain["strict"]["accuracy"].mean == pytest.approx(100 - blank.scores["strict"]["accuracy"].mean)
    assert set(result.baselines) == {"random", "constant", "empty"}
    # Unreadable videos are listed, and get no score.
    assert (result.partial, len(result.missing), result.answered) == (True, 4, 6)
    reasons = {row.video: row.reason for row in result.unanswered}
    assert reasons["gone"] == "missing-file: 'gone' is not in the folder of videos"
    assert reasons["broken"].startswith("not-a-video")
    listed = [json.loads(line) for line in (out / "unanswered.jsonl").read_text().splitlines()]
    assert {(row["id"], row["view"]) for row in listed} == {
        (f"{name}-{number}", view)
        for name in ("gone", "broken")
        for number in range(2)
        for view in ("video", "blank", "shuffled")
    }
    # Anyone scores the file as it is, with the same result.
    alone = score(params, "video-mme", annotations, out / "predictions.jsonl", baselines=True)
    written = read_record(out / "scores.json", BenchmarkEvaluation)
    assert alone.scores == written.scores
    table = (out / "scores.md").read_text()
    for words in (
        "(PARTIAL)",
        "| (blank video) | 6 |",
        "| **all** | 6 | 100.0 [",
        "video - shuffled video",
        "gone, 6 questions",
    ):
        assert words in table, words
    client = open_client(root)
    found = client.search_runs([experiment_id(client, root)], order_by=["attributes.start_time DESC"])
    run = next(one for one in found if one.data.tags[TAG + "kind"] == "benchmark")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["strict/accuracy"] == 100
    assert run.data.metrics["blank/strict/accuracy"] == blank.scores["strict"]["accuracy"].mean
    assert {
        TAG + "benchmark": "video-mme",
        TAG + "digest": result.digest,
        TAG + "partial": "true",
    }.items() <= run.data.tags.items()
    assert run.data.params["model.weights"].startswith("sha256:")


@pytest.mark.parametrize("batch_size", [3, 64])
def test_a_video_is_decoded_and_seen_once_for_all_its_questions(
    taught: Path, videos: Path, tmp_path: Path, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = read_questions("video-mme", about_colours(tmp_path, 8)).items
    asked = questions([(item.item_id, item.video, f"{item.row.question} {item.item_id}") for item in items], set())
    decoded: list[str] = []
    stock = protocol.read_frames
    monkeypatch.setattr(
        protocol, "read_frames", lambda path, *rest, **known: decoded.append(path.stem) or stock(path, *rest, **known)
    )
    model, processor = load_model(taught, "fp32")
    seen: list[int] = []
    model.base_model.visual.register_forward_pre_hook(
        lambda _, inputs, named: seen.append(len(named.get("grid_thw", inputs[-1]))), with_kwargs=True
    )
    answers: list[Answer] = []
    prepare(model)
    engine = LocalModel(ModelPolicy(model, processor), 24, 7)
    engine.answer(
        asked,
        set(asked),
        VideoLoader(items, videos, pytest.fail, Contents(tmp_path / "videos.jsonl"), pytest.fail).load,
        batch_size,
        answers.extend,
    )
    assert decoded == ["red", "green", "blue"]
    assert sum(seen) == 3
    # The replies equal those of the plain model.
    plain, _ = load_model(taught, "fp32")
    shown = {
        name: load_at(videos / "deep" / f"{name}.mp4", items[0].frames.fps, 128, None)
        for name in ("red", "green", "blue")
    }
    alone = generate(
        ModelPolicy(plain, processor),
        [(q.prompt, shown[q.video_key]) for q in asked],
        max_new_tokens=24,
        batch_size=batch_size,
    )
    assert [answer.reply for answer in answers] == alone
    assert len(set(alone)) >= 3


def test_what_a_reader_stumbles_over_costs_the_questions_of_its_file_only(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = read_questions("video-mme", about_colours(tmp_path, 2)).items
    loader = VideoLoader(items, videos, pytest.fail, Contents(tmp_path / "videos.jsonl"), pytest.fail)

    def stumble(path: Path, *rest: Any) -> Any:
        return 1 // 0 if path.stem == "green" else load_at(path, *rest)

    monkeypatch.setattr("stages.tools.suites.engines.videos.load_at", stumble)
    names = {item.video: video_key_of(item) for item in items}
    assert len(loader.load(names["red"]).pixels) > 1
    with pytest.raises(VideoError, match="green: ZeroDivisionError") as error:
        loader.load(names["green"])
    assert error.value.reason == "unexpected-error"


def _child(root: Path, params: Params, given: EvaluationRequest, model: Path) -> None:
    os.environ["PYTHONWARNINGS"] = "ignore"
    # tqdm's lock is shared with forks: killed while it prints, this one would hold it for ever.
    tqdm.set_lock(threading.RLock())
    ask(root, params, given, model)


def test_an_evaluation_that_is_killed_goes_on_where_it_was(
    root: Path, params: Params, videos: Path, tmp_path: Path
) -> None:
    # A random initialisation rambles: the replies differ, and all have the maximum length.
    model, processor = tiny("qwen2_5_vl")
    save_model(model, processor, tmp_path / "model")
    annotations = about_colours(tmp_path, 10)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ask(root, params, order(annotations, videos, whole, batch_size=4, controls=6), tmp_path / "model")
    given = order(annotations, videos, killed, batch_size=4, controls=6)
    child = multiprocessing.get_context("fork").Process(target=_child, args=(root, params, given, tmp_path / "model"))
    child.start()
    file = killed / "predictions.jsonl"
    deadline = time.monotonic() + 60
    while not file.is_file() or file.read_text().count("\n") < 5:
        assert child.is_alive(), "it was done before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    there = file.read_text().count("\n")
    assert 5 <= there < 30
    with file.open("a") as torn:
        torn.write('{"id": "blue-9", "reply": "half a l')
    result = ask(root, params, given, tmp_path / "model")
    assert result.answered == 30
    for name in ("predictions.jsonl", "predictions_blank.jsonl", "predictions_shuffled.jsonl"):
        assert replies(killed, name) == replies(whole, name)
        assert len(replies(killed, name)) == (30 if name == "predictions.jsonl" else 6)
    assert len(set(replies(whole).values())) > 10
    # Any change that a reply depends on makes another evaluation; the batch size does not.
    before = file.read_bytes()
    ask(root, params, order(annotations, videos, killed, batch_size=64, controls=6), tmp_path / "model")
    with pytest.raises(EngineError, match=r"differs in decoding \(.*48.*there.*20.* now\); name another folder"):
        ask(root, params, order(annotations, videos, killed, max_new_tokens=20), tmp_path / "model")
    lines(tmp_path / "other.jsonl", [video_mme(question_id="red-0", videoID="red")])
    with pytest.raises(EngineError, match="differs in annotations"):
        ask(root, params, order(tmp_path / "other.jsonl", videos, killed), tmp_path / "model")
    assert file.read_bytes() == before


def test_a_video_that_was_replaced_under_its_name_is_asked_about_again_and_no_other_is(
    root: Path, params: Params, taught: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(videos / "deep", tmp_path / "mine")
    annotations = about_colours(tmp_path, 2)
    given = order(annotations, tmp_path / "mine", tmp_path / "out", controls=3)
    first = ask(root, params, given, taught)
    assert first.replaced == {}
    before = replies(tmp_path / "out")
    as_written = (tmp_path / "out/predictions.jsonl").read_bytes()
    # Rewritten with the same bytes and another time: nothing is asked again.
    shutil.copyfile(videos / "deep/green.mp4", tmp_path / "mine/green.mp4")
    assert ask(root, params, given, taught).replaced == {}
    assert (tmp_path / "out/predictions.jsonl").read_bytes() == as_written
    # Another video under the same name, with the times of the old one.
    times = (tmp_path / "mine/red.mp4").stat()
    shutil.copyfile(videos / "deep/blue.mp4", tmp_path / "mine/red.mp4")
    os.utime(tmp_path / "mine/red.mp4", ns=(times.st_atime_ns, times.st_mtime_ns))
    capsys.readouterr()
    again = ask(root, params, given, taught)
    controlled = sum(
        row["id"].startswith("red")
        for row in map(json.loads, (tmp_path / "out/predictions_blank.jsonl").read_text().splitlines())
    )
    assert again.replaced == {"red": 2 + 2 * controlled}
    assert "1 videos hold something else than when they were asked about; asking again: red" in capsys.readouterr().out
    after = replies(tmp_path / "out")
    assert {name for name in before if before[name] != after[name]} == {"red-0", "red-1"}
    assert after["red-0"] == after["blue-0"] != before["red-0"]
    assert len(replies(tmp_path / "out", "predictions_blank.jsonl")) == 3
    # A missing video cannot be asked about; the replies to it stay.
    (tmp_path / "mine/blue.mp4").unlink()
    assert ask(root, params, given, taught).replaced == {}
    assert replies(tmp_path / "out") == after


def test_captions_are_asked_for_and_judged(
    root: Path, params: Params, taught: Path, videos: Path, tmp_path: Path
) -> None:
    shutil.copytree(videos / "deep", tmp_path / "all" / "video")
    annotations = captions(tmp_path)
    given = order(annotations, tmp_path / "all", tmp_path / "out", benchmark="dream-1k", controls=2)
    result = ask(root, params, given, taught, baselines=False)
    assert result.scores["strict"].overall["F1"].mean == 100
    assert {json.loads(line)["frames"] for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()} == {
        16
    }
    assert result.controls["blank"].questions == 2
    assert result.judge["name"] == "rule"
    assert "questions asked 2, drawn with seed 7" in (tmp_path / "out/scores.md").read_text()


def test_frames_that_do_not_fit_into_the_context_are_thinned_out(taught: Path, videos: Path) -> None:
    model, processor = load_model(taught, "fp32")
    frames = load_at(videos / "deep/red.mp4", None, 16, None)
    [whole] = encode_prompts(processor, [("what ?", (frames,))])
    per_pair = (len(whole.ids) - len(encode_prompts(processor, [("what ?", (thinned(frames, 2),))])[0].ids)) // 7
    model.config.get_text_config().max_position_embeddings = 8 + len(whole.ids) - 3 * per_pair
    question, answers = Question("1", "video", "red", "what ?"), []
    LocalModel(ModelPolicy(model, processor), 8, 7).answer([question], {question}, lambda _: frames, 1, answers.extend)
    assert (answers[0].frames, answers[0].reason) == (10, "")
    assert thinned(frames, 10).indices[0] == frames.indices[0]
    assert thinned(frames, 10).indices[-1] == frames.indices[-1]
    model.config.get_text_config().max_position_embeddings = 20
    answers.clear()
    LocalModel(ModelPolicy(model, processor), 8, 7).answer([question], {question}, lambda _: frames, 1, answers.extend)
    assert answers[0].reply is None
    assert answers[0].reason.startswith("too-large: ")


def test_frames_that_a_model_does_not_take_are_a_reason(videos: Path) -> None:
    shown = load_at(videos / "deep/red.mp4", None, 16, None)
    single = replace(shown, pixels=shown.pixels[:1], indices=shown.indices[:1])
    thread = replace(shown, pixels=shown.pixels[:, :8].repeat(60, axis=2))
    asked = [
        Question(f"{sight}/{view}", view, sight, "what ?")
        for sight in ("single", "thread", "red")
        for view in ("video", "blank")
    ]
    given = {"single": single, "thread": thread, "red": shown}
    answers: list[Answer] = []
    LocalModel(ModelPolicy(*tiny("qwen3_vl")), 8, 7).answer(asked, set(asked), given.__getitem__, 6, answers.extend)
    reasons = {answer.question.video_key: answer.reason for answer in answers}
    assert len(answers) == 6
    assert reasons["single"].startswith("unfit-frames: frames: 1, and Qwen3-VL takes at least 2")
    assert reasons["thread"].startswith("unfit-frames: frames: ")
    assert reasons["red"] == ""


def test_orders_that_make_no_sense(root: Path, params: Params, taught: Path, videos: Path, tmp_path: Path) -> None:
    annotations = about_colours(tmp_path, 1)
    with pytest.raises(AnnotationError, match="pass --benchmark video-mme"):
        ask(root, params, order(annotations, videos, tmp_path / "out", benchmark="mvbench"), taught)
    with pytest.raises(EngineError, match=r"--videos: .* is not a folder"):
        ask(root, params, order(annotations, tmp_path / "nowhere", tmp_path / "out"), taught)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(
        EngineError, match="video-mme: no question was answered, so nothing was scored; the first: missing-file"
    ):
        ask(root, params, order(annotations, empty, tmp_path / "out"), taught)
    assert len((tmp_path / "out/unanswered.jsonl").read_text().splitlines()) == 9


def test_what_can_only_be_used_at_the_end_is_looked_at_before_a_question_is_asked(
    root: Path, params: Params, taught: Path, videos: Path, tmp_path: Path
) -> None:
    given = order(about_colours(tmp_path, 1), videos, tmp_path / "out")
    with pytest.raises(PredictionError, match=r"other\.jsonl: No such file"):
        ask(root, params, given, taught, against=tmp_path / "other.jsonl")
    judge = OpenAIJudgeParams(
        kind="openai", model="m", revision="r", temperature=0, max_tokens=9, seed=0, max_unavailable=0
    )
    judged = order(captions(tmp_path), videos, tmp_path / "out", benchmark="dream-1k")
    with pytest.raises(JudgeError, match="VIDBRIDGE_JUDGE_URL: not set"):
        ask(root, params.model_copy(update={"judge": judge}), judged, taught)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # an unclosed socket of httpcore
def test_an_engine_answers_alike_and_is_another_evaluation(
    root: Path, params: Params, taught: Path, videos: Path, tmp_path: Path
) -> None:
    class Dies(HfEngine):
        """Ends in the middle of the first evaluation."""

        asked = 0

        async def generate(self, *request: Any) -> tuple[list[int], list[Reply]]:
            self.asked += 1
            if self.asked == 9:
                raise Died("vLLM ended (out of memory)")
            return await super().generate(*request)

    annotations = about_colours(tmp_path, 2, "broken")
    here = order(annotations, videos, tmp_path / "here", batch_size=4)
    there = order(annotations, videos, tmp_path / "there", batch_size=4)
    expected = ask(root, params, here, taught)

    def by(at: Served, given: EvaluationRequest) -> dict[str, Any]:
        engine = model_engine(Session(root), params, given, str(taught), None, at.address)
        return evaluate(root, params, given, engine, baselines=True, against=None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDBRIDGE_ROLLOUT_ENGINE_LOST", "hf")
        with served(Dies(taught)) as at, pytest.raises(EngineLost, match="out of memory"):
            by(at, there)
        assert 0 < len(replies(tmp_path / "there")) < len(replies(tmp_path / "here")), "what was answered is kept"
        with served(HfEngine(taught)) as at:
            found = by(at, there)
            named = {"identity": None, "predictions_sha256": None}  # those say who answered
            assert {**dict(found), **named} == {**dict(expected), **named}
            assert replies(tmp_path / "there") == replies(tmp_path / "here")
            with pytest.raises(EngineError, match=r"differs in engine \(\"generate\" there, \"vllm\" now\)"):
                by(at, here)


def test_samples_cut_in_another_way_are_another_evaluation(
    root: Path, params: Params, taught: Path, tmp_path: Path
) -> None:
    given = order(tmp_path, tmp_path, tmp_path / "out", benchmark="dark-event-infer-test")
    engine = model_engine(Session(root), params, given, str(taught), None)
    rows = samples("dark_event_infer")
    longer = copy.deepcopy(rows)
    longer[0]["timeline"]["dark"][0]["stop"] += 1
    one, same, other = (
        identity_of(
            params, given.benchmark, read_questions(given.benchmark, lines(tmp_path / name, each)).items, engine
        )
        for name, each in (("one.jsonl", rows), ("same.jsonl", rows), ("other.jsonl", longer))
    )
    assert one == same != other, "its frames are others, whatever its name, question and reference"
