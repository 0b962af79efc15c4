"""Cost of a run: questions counted from the parameters; time measured, scaled, declared, or
unknown, never made up.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from flows.console import show
from flows.costs import estimate
from flows.costs.calls import Calls, calls_of
from flows.costs.rates import load_rates
from flows.errors import UsageError
from flows.repro.steps import Plan, PlanStep, StageMeta
from stages.domain.core.records import TaskName
from stages.lib.training.mixture import Example, draw
from stages.params import Params, parse_params
from stages.tracking.runs.history import Cost
from stages.tracking.runs.run import flat
from stages.tracking.runs.spending import Spent
from tests.support.checkout import ROOT

RECIPES = ROOT / "infra/recipes"
PARAMS = {"sft": "sft.{}", "grpo": "grpo.{}", "evaluate": "evaluation.samples_per_task"}


def params_of(recipe: str, **changes: Any) -> Params:
    raw = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())
    for path, value in changes.items():
        table = raw
        *above, last = path.split("__")
        for key in above:
            table = table[key]
        table[last] = value
    return parse_params(raw)


def plan_of(*stages: str) -> Plan:
    def keys(stage: str) -> tuple[str, ...]:
        verb, _, name = stage.partition("@")
        return ("seed", PARAMS[verb].format(name)) if verb in PARAMS else ("seed",)

    return Plan(
        "summary", tuple(PlanStep(stage, "will run", (), (), (), StageMeta(), params=keys(stage)) for stage in stages)
    )


def test_questions_of_a_watched_row_and_of_sampled_replies_are_counted(tmp_path: Path) -> None:
    sampled = {"replies": 4, "temperature": 1.0}
    watch = {"every": 100, "samples_per_task": 10, "max_new_tokens": 9, "sampled": sampled, "keep": "last"}
    row, plan = "vidbridge-r1", plan_of("ingest", "synthesize", "grpo@mixed", "evaluate@mixed")
    plain, watched = (
        calls_of(tmp_path, params_of(row, **changes), plan)
        for changes in ({}, {"grpo__mixed__watch": watch, "evaluation__sampled": sampled})
    )
    # At 0, 100, 200, 300, 400 and 450: a greedy reply and four sampled ones; captions up to 22.
    more = 6 * 5 * 10 * (1 + 1 + 22)
    assert watched["grpo@mixed"][0].at_most == plain["grpo@mixed"][0].at_most + more  # type: ignore[operator]
    before, after = (calls["evaluate@mixed"][0].at_most for calls in (plain, watched))
    assert (before, after) == (pytest.approx(3 * (after or 0) / 7), pytest.approx(7 * (before or 0) / 3))


def test_questions_are_counted_from_the_parameters(tmp_path: Path) -> None:
    row = "vidbridge-r1"
    steps = ("difficulty@mixed", "grpo@mixed", "baselines", "evaluate@mixed")
    found = calls_of(tmp_path, params_of(row), plan_of("ingest", "synthesize", *steps))
    # 24 prompts x 8 rollouts x 450 steps; of the tasks, in their shares of 10,800: one question a
    # reply, of captions up to 22. Every 25 steps a black and a shuffled video.
    asked = [("dark_event_infer", 1841, 1), ("mix_vid_qa", 2332, 1), ("caption", 4624, 22)]
    most = sum((count + 1) * 8 * worth for _, count, worth in asked)
    controls = sum(2 * (19 * 24 * count // 10800 + 1) * worth for _, count, worth in asked)
    assert found["grpo@mixed"] == (Calls("judge", most + controls),)
    # 500 samples of a task at most, with three videos: one question, one, none, 22, and 11 for the
    # structured caption's events.
    of_tasks = {
        task: 500 * 3 * worth
        for task, worth in {"dark_event_infer": 1, "mix_vid_qa": 1, "mcqa": 0, "caption": 22}.items()
    }
    assert found["evaluate@mixed"] == (
        Calls("judge", sum(of_tasks.values()) + (500 * 3 * 11 if _structured(row) else 0)),
    )
    # How many clips there will be, nobody knows.
    assert found["difficulty@mixed"] == (Calls("judge", None),)
    assert "synthesize" not in found

    more = {"grpo__mixed__resample_rounds": 2, "grpo__mixed__controls_every": 0}
    (resampled,) = calls_of(tmp_path, params_of(row, **more), plan_of("grpo@mixed"))["grpo@mixed"]
    (plain,) = calls_of(tmp_path, params_of(row, grpo__mixed__controls_every=0), plan_of("grpo@mixed"))["grpo@mixed"]
    assert resampled.at_most is not None
    assert plain.at_most is not None
    assert plain.at_most * 3 - 24 * 8 <= resampled.at_most <= plain.at_most * 3
    estimated = {"live_decay": 0.9, "least_live": 0.25}
    (oversampled,) = calls_of(
        tmp_path, params_of(row, **more, grpo__mixed__oversample={**estimated, "max_lag": 0}), plan_of("grpo@mixed")
    )["grpo@mixed"]
    assert oversampled.at_most is not None
    assert plain.at_most * 9 - 8 * 24 * 8 <= oversampled.at_most <= plain.at_most * 9, "four prompts for one missing"
    (by_live_ratio,) = calls_of(
        tmp_path, params_of(row, grpo__mixed__controls_every=0, grpo__mixed__sampler=estimated), plan_of("grpo@mixed")
    )["grpo@mixed"]
    assert by_live_ratio.at_most is not None
    # At most captions, whose replies cost most, get four times their weight of 4624 in 10,800.
    captions = 450 * 24 * 4 * 4624 / (10800 + 3 * 4624)
    assert by_live_ratio.at_most > captions * 8 * 22
    judge = {
        "kind": "openai",
        "model": "m",
        "revision": "1",
        "temperature": 0.0,
        "max_tokens": 9,
        "seed": 1,
        "max_unavailable": 0.1,
    }
    watched = params_of(row, held_out_judge={"judge": judge, "share": 0.5}, grpo__mixed__controls_every=0)
    assert calls_of(tmp_path, watched, plan_of("grpo@mixed"))["grpo@mixed"][1] == Calls(
        "held_out_judge", -(-most // 2), about=True
    )
    # The rule judge asks nobody.
    assert calls_of(tmp_path, params_of("tiny"), plan_of(*steps[1:3], "evaluate@base", "grpo@bridge")) == {}


def _structured(recipe: str) -> bool:
    return params_of(recipe).synthesize.tasks.structured_caption is not None


def test_with_samples_there_the_count_is_of_them(tmp_path: Path) -> None:
    summary = {"samples": {split: {"caption": 7, "mix_vid_qa": 900} for split in ("train", "validation", "test")}}
    (tmp_path / "data/samples").mkdir(parents=True)
    (tmp_path / "data/samples/summary.json").write_text(json.dumps(summary))
    found = calls_of(tmp_path, params_of("vidbridge-r1"), plan_of("evaluate@mixed"))
    assert found["evaluate@mixed"] == (Calls("judge", 3 * (7 * 22 + 500)),)


@pytest.mark.parametrize(
    "weights", [{"mcqa": 1, "caption": 1, "mix_vid_qa": 1}, {"caption": 4624, "mcqa": 2003, "mix_vid_qa": 2332}]
)
def test_training_draws_no_more_than_is_counted(weights: dict[TaskName, float]) -> None:
    from flows.costs.calls import _dealt

    examples = [Example(task, task, "", None, lambda: None) for task in weights]  # type: ignore[arg-type, return-value]
    for count in (1, 8, 100, 1201):
        drawn = Counter(examples[index].task for index in draw(examples, weights, count, f"{count}"))
        assert all(drawn[task] <= most for task, most in _dealt(weights, count).items())


def spent(params: Params, wall_s: float, gpu_h: float, **asked: float) -> Spent:
    raw = params.model_dump(mode="json")
    kept = flat({"seed": raw["seed"], "grpo": {"mixed": raw["grpo"]["mixed"]}})
    return Spent(
        Cost(wall_s, wall_s, 1.0, gpu_h),
        datetime(2026, 5, 1, tzinfo=UTC),
        kept,
        '["H100", "H100"]',
        asked,
        flat({"model": raw["model"]}),
    )


def test_time_is_measured_scaled_declared_or_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    present = params_of("vidbridge-r1")
    plan = plan_of("grpo@mixed", "evaluate@mixed")
    (tmp_path / ".vidbridge").mkdir()

    def cost(params: Params, *runs: Spent) -> estimate.StageCost:
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")))
        monkeypatch.setattr(estimate, "spent_by_stage", lambda _root: {"grpo@mixed": list(runs)})
        return estimate.cost_of(tmp_path, params, plan).stages[0]

    run = spent(present, 7200, 16, judge=900)
    same = cost(present, run)
    assert (same.hours, same.gpu_hours, same.basis, same.why) == (2, 16, "measured", "run of 2026-05-01 on 2 x H100")
    assert same.calls[0].measured == 900
    # Another learning rate takes as long; twice the steps twice as long; other rollouts nobody
    # knows how long.
    assert cost(params_of("vidbridge-r1", grpo__mixed__learning_rate=2e-6), run).basis == "measured"
    twice = cost(params_of("vidbridge-r1", grpo__mixed__steps=900), run)
    assert (twice.hours, twice.gpu_hours, twice.basis, twice.why) == (
        4,
        32,
        "scaled",
        "run of 2026-05-01 on 2 x H100 with 450 steps",
    )
    assert twice.calls[0].measured == 1800
    other = params_of("vidbridge-r1", grpo__mixed__rollouts=4)
    unknown = cost(other, run)
    assert (unknown.hours, unknown.basis) == (None, None)
    assert unknown.why == "the run of 2026-05-01 on 2 x H100 took 2.0 h with other grpo.mixed.rollouts"
    # Another model, or one that was not kept, takes another time; the size of a model is read, not
    # guessed.
    small = params_of("vidbridge-r1", model__name="HuggingFaceTB/SmolVLM2-500M-Video-Instruct")
    of_small = cost(small, run)
    assert (of_small.hours, of_small.why[-len("with other model.name") :]) == (None, "with other model.name")
    assert of_small.disk_gb == pytest.approx(0.5 * 2 * (10 * 4 + 8))
    assert cost(present, replace(run, model=None)).hours is None
    assert cost(params_of("vidbridge-r1", model__name="somebody/unsized")).disk_gb is None
    # The run that fits goes before a newer one that has to be scaled.
    assert cost(present, spent(params_of("vidbridge-r1", grpo__mixed__steps=900), 9, 9), run).basis == "measured"

    rates = tmp_path / ".vidbridge/rates.yaml"
    rates.write_text(
        "stages: {grpo: {seconds_per_step: 80, gpus: 8}}\ngpu_hour: 2.5\ncalls_per_1000: {judge: 0.5}\ncurrency: EUR\n"
    )
    declared = cost(other, run)
    assert (declared.hours, declared.gpu_hours, declared.basis) == (10, 80, "declared")
    assert declared.money == pytest.approx(80 * 2.5 + (declared.calls[0].at_most or 0) / 2000)
    assert cost(present, run).basis == "measured"
    # 7 billion parameters: ten checkpoints of float32 masters in place and in the cache, and two
    # states.
    assert declared.disk_gb == pytest.approx(7 * 2 * (10 * 4 + 8))

    whole = estimate.cost_of(tmp_path, other, plan)
    assert whole.unknown == ("evaluate@mixed",)
    assert whole.total("hours") == (2, False)
    out = Console(width=160, record=True)
    show.show_cost(out, whole)
    told = out.export_text()
    assert "unknown: no earlier run, no declared rate" in told
    assert "≥ 2.0 h" in told
    assert json.loads(json.dumps(estimate.plain(whole)))["total"]["hours"] == {"known": 2, "complete": False}
    assert asdict(whole.stages[1])["hours"] is None


def test_a_store_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (tmp_path / "params.yaml").write_text((RECIPES / "tiny.yaml").read_text())
    found = estimate.cost_of(tmp_path, params_of("tiny"), plan_of("evaluate@base"))
    assert found.note.startswith(
        "MLflow does not answer: MLFLOW_TRACKING_URI: http://127.0.0.1:9: no answer within 4 s"
    )
    assert [one.why for one in found.stages] == ["MLflow does not answer"]
    out = Console(width=300, record=True)
    show.show_cost(out, found)
    assert out.export_text().startswith("what it will cost is not known (MLflow does not answer: ")
    # Nothing to run: nobody is asked.
    assert estimate.cost_of(tmp_path, params_of("tiny"), plan_of()).note == ""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert estimate.cost_of(tmp_path, params_of("tiny"), plan_of("evaluate@base")).note == ""
    assert not (tmp_path / ".vidbridge").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpu_hours: 2", "gpu_hours: unknown key; it may hold stages"),
        ("gpu_hour: free", "gpu_hour: Input should be a valid number"),
        (
            "stages: {sft: {hours: 1, seconds_per_step: 2}}",
            "stages.sft: hours and seconds_per_step contradict each other; declare one",
        ),
        ("stages: {sft: {gpus: 8}}", "stages.sft: gpus without a time says nothing; declare hours"),
        ("a: 1\na: 2", "rates.yaml"),
    ],
)
def test_a_rate_that_is_none_is_refused(text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rates.yaml").write_text(text)
    monkeypatch.setenv("VIDBRIDGE_RATES", str(tmp_path / "rates.yaml"))
    with pytest.raises(UsageError) as caught:
        load_rates(tmp_path)
    assert said in str(caught.value)
    monkeypatch.setenv("VIDBRIDGE_RATES", str(tmp_path / "gone.yaml"))
    with pytest.raises(
        UsageError, match=r"VIDBRIDGE_RATES: .*gone.yaml' does not exist; correct the path, or unset it"
    ):
        load_rates(tmp_path)
