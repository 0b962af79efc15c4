"""The ablation grid: parameters of its variants, and statistics of their scores. Training itself:
`test_ablation_slow`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from scipy import stats

from flows.params_file.recipes import smoke_version
from stages.domain.core.digest import digest
from stages.domain.core.records import Score, TaskName
from stages.domain.tasks.synthesis import synthesise
from stages.errors import InputError
from stages.lib.evaluation.results import PolicyScores
from stages.lib.rows.jsonl import write_json, write_record, write_rows
from stages.params import GrpoRow, Params, ParamsError, load_params, parse_params
from stages.tools.ablation.figure import figure
from stages.tools.ablation.grid import read_grid
from stages.tools.ablation.results import IDENTITY_FILE, Results, content_digests
from stages.tools.ablation.seeds import PolicyPair, over_seeds, pooled_gain
from stages.tools.ablation.table import markdown
from stages.tools.ablation.variants import start_of, variant_params
from tests.support.builders import clip
from tests.support.checkout import ROOT

RECIPES = ("smoke", "tiny", "vidbridge-r1", "vidbridge-r1-staged", "videocap-r1")
PAPER = {"caption", "qa", "qa-caption", "qa-caption-scaled", "qa-proxies", "proxies-caption", "all", "dark", "mix"}


def recipe(name: str) -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load((ROOT / f"infra/recipes/{name}.yaml").read_text(encoding="utf-8"))
    return table


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_grid_whose_variants_are_pipelines(name: str, small: bool) -> None:
    params = parse_params(yaml.safe_load(smoke_version(ROOT, name)) if small else recipe(name))
    assert params.ablation is not None
    start = start_of(params)
    for variant, row in params.variants.items():
        made = parse_params(variant_params(params, 5, variant))
        assert (made.seed, made.candidate, made.evaluation.of) == (5, variant, (start, variant))
        assert made.rows[variant].tasks == row.tasks
        assert made.gate.registered_model != params.gate.registered_model, "a champion is never one of these"
        # Otherwise DVC would train the start again for every variant.
        assert {name: r for name, r in made.rows.items() if name != variant} == {
            n: params.rows[n] for n in made.rows if n != variant
        }
        assert made.synthesize == params.synthesize
        assert made.corpus == params.corpus


@pytest.mark.parametrize("name", ["tiny", "vidbridge-r1", "vidbridge-r1-staged"])
def test_the_papers_grid_has_one_budget(name: str) -> None:
    params = load_params(ROOT / f"infra/recipes/{name}.yaml")
    rows = params.variants
    assert set(rows) == PAPER
    assert (
        len(
            {
                (r.steps, r.prompts_per_step, r.rollouts, r.learning_rate)
                for r in rows.values()
                if isinstance(r, GrpoRow)
            }
        )
        == 1
    )
    assert [row for row in rows.values() if "structured_caption" in row.tasks] == []


def test_the_tiny_recipe_has_five_seeds_or_more() -> None:
    grid = load_params(ROOT / "infra/recipes/tiny.yaml").ablation
    assert grid is not None
    assert len(grid.seeds) >= 5


def changed(path: str, value: object) -> dict[str, Any]:
    table = copy.deepcopy(recipe("tiny"))
    at = table["ablation"]
    *keys, last = path.split("/")
    for key in keys:
        at = at[key]
    at[last] = value
    return table


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("variants/qa/changes/steps", 25, "unequal numbers of rollouts"),
        ("variants/qa/changes/init", "bridge", "start from different rows"),
        ("variants/qa/changes/stepz", 3, "ablation.variants.qa.changes: stepz: unknown key"),
        ("variants/qa/changes/tasks", {"videoqa": 1}, "ablation.variants.qa.changes: tasks.videoqa"),
        ("variants/qa/like", "genral", "ablation.variants.qa.like: 'genral' is not a row (known: cold-start, bridge,"
        " general)"),
        ("shared/init", "warm-start", "the variants start from 'warm-start', which is not a row"),
        ("variants/bridge", {"title": "x", "like": "general", "changes": {}}, "a row of the recipe has that name"),
        ("contrasts", [["qa", "captoin"]], "ablation.contrasts: 'captoin' is not a variant"),
        ("axes", ["mcqa", "tempcompass"], "ablation.axes: 'tempcompass' is not synthesised"),
        ("seeds", [1, 2, 1], "a seed is one observation"),
    ],
)  # fmt: skip
def test_a_grid_that_cannot_be_run_is_refused(path: str, value: object, says: str) -> None:
    with pytest.raises(ParamsError) as refused:
        parse_params(changed(path, value))
    assert says in str(refused.value)


def test_an_interval_over_seeds_is_students() -> None:
    found = over_seeds([0.1, 0.2, 0.4], 0.95)
    assert found is not None
    low, high = stats.t.interval(0.95, 2, 0.7 / 3, stats.sem([0.1, 0.2, 0.4]))
    assert (found.low, found.mean, found.high) == pytest.approx((low, 0.7 / 3, high))
    assert over_seeds([0.3], 0.95) is None
    assert over_seeds([0.3, 0.3], 0.95) is None, "two that agree to the last digit are no proof that a third does"


def scores(task: TaskName, values: list[float], part: str | None = None) -> list[Score]:
    return [
        Score(
            sample_id=f"{task}/c{i}",
            task=task,
            reply="x",
            format_ok=True,
            value=v,
            parts={"native": v, **({part: v / 2} if part else {})},
        )
        for i, v in enumerate(values)
    ]


def test_a_gain_pairs_samples_within_each_seed() -> None:
    clips = {f"{task}/c{i}": [f"c{i}"] for task in ("mcqa", "caption") for i in range(4)}
    # The second seed is easier by 0.5 everywhere: unpaired, its clips would hide the gain of 0.1.
    pairs = [
        PolicyPair(
            scores("mcqa", [0.1 + level] * 4) + scores("caption", [level] * 4),
            scores("mcqa", [level] * 4) + scores("caption", [level] * 4),
            clips,
        )
        for level in (0.0, 0.5)
    ]
    mean, tasks = pooled_gain(pairs, 0.95)
    assert tasks["mcqa"].clips.mean == pytest.approx(0.1)
    assert 0 <= tasks["mcqa"].clips.low < 0.1, "four clips, which both seeds hold out, are four clips"
    apart = [
        pair._replace(contents={name: [f"{seed}:{clip}" for clip in clips] for name, clips in pair.contents.items()})
        for seed, pair in enumerate(pairs)
    ]
    assert pooled_gain(apart, 0.95)[1]["mcqa"].clips.low > tasks["mcqa"].clips.low, "eight would say more"
    assert tasks["caption"].clips.mean == 0.0
    assert mean.seeds == pytest.approx((0.05, 0.05))


#: Scores of each variant of the fabricated grid in multiple choice and in captions.
SCORED = {"cold-start": (0.5, 0.5), "qa": (0.75, 0.25), "caption": (0.5, 1.0), "qa-caption-scaled": (0.75, 0.75)}
#: The table beside them, of which the grid takes one figure.
TABLE = PolicyScores(
    row="x", digest="d", split="test", samples=8, mean=0.5, blank_mean=0.125, shuffled_mean=0.25, format=1.0, tasks={}
)


def fill(folder: Path, params: Params, leave_out: tuple[int, str] | None = None, part: str | None = None) -> Results:
    """Scores of a grid whose truth is known, on four clips a seed."""
    assert params.ablation is not None
    results = Results(folder)
    clips = {f"{task}/c{i}": [f"c{i}"] for task in ("mcqa", "caption") for i in range(4)}
    for seed in params.ablation.seeds:
        write_json(folder / str(seed) / "clips.json", clips)
        for name, (choice, caption) in SCORED.items():
            if (seed, name) != leave_out:
                drift = seed / 100
                rows = scores("mcqa", [choice + drift] * 4) + scores("caption", [caption + drift] * 4, part)
                write_rows(results.of(seed, name) / "predictions.jsonl", rows)
                write_record(results.of(seed, name) / "scores.json", TABLE)
                if name in params.variants:
                    trained_with(params, results, seed, name, "abc")
        for kind in ("random", "constant"):
            rows = scores("mcqa", [0.25] * 4) + scores("caption", [0.0] * 4, part)
            write_rows(results.of(seed, "baselines") / f"predictions_{kind}.jsonl", rows)
    return results


def trained_with(params: Params, results: Results, seed: int, name: str, commit: str) -> None:
    identity = {"commit": commit, "params": digest(variant_params(params, seed, name))}
    write_json(results.of(seed, name) / IDENTITY_FILE, identity)


def grid_of(params: Params, results: Results) -> Any:
    return read_grid(params, results, command="vidbridge ablate", measured="Measured.")


def test_the_grid_says_what_the_scores_say(tmp_path: Path) -> None:
    params = parse_params(recipe("smoke"))
    grid = grid_of(params, fill(tmp_path, params))
    rows = {row.name: row for row in grid.rows}
    assert list(rows) == ["random", "constant", "cold-start", "qa", "caption", "qa-caption-scaled"]
    assert rows["qa"].columns["mcqa"].mean == pytest.approx(0.765)
    assert rows["qa"].by_seed["mcqa"] == pytest.approx((0.76, 0.77))
    assert rows["qa"].blank == 0.125
    gains = {(c.after, c.before): c for c in grid.contrasts}
    assert gains["qa", "cold-start"].columns["mcqa"].clips.mean == pytest.approx(0.25)
    assert gains["qa", "cold-start"].columns["caption"].over_seeds is None, (
        "seeds that agree to the last digit tell no spread"
    )
    assert gains["qa", "cold-start"].mean.clips.mean == pytest.approx(0.0)
    assert grid.missing == ()
    text = markdown(grid)
    assert "| QA | **0.765 [0.70, 0.83]** | 0.265 [0.20, 0.33] | 0.515 | 1.000 | 0.125 |" in text
    assert "| QA − cold-start | +0.250 [" in text
    assert "[+0.250, +0.250]" not in text
    assert "each variant 16 rollouts" in text
    told = markdown(grid.model_copy(update={"without_rollouts": ("qa",)}))
    assert "each variant trained by GRPO 16 rollouts; trained by SFT, without a rollout: QA." in told
    assert "**Partial**" not in text


def test_the_figure_is_one_file_that_asks_nobody(tmp_path: Path) -> None:
    params = parse_params(recipe("smoke"))
    grid = grid_of(params, fill(tmp_path, params))
    drawn = figure(grid)
    assert drawn == figure(grid), "the same grid, the same bytes"
    root = ElementTree.fromstring(drawn)
    words = " ".join(root.itertext())
    assert "QA + caption, rewards scaled by task (ours)" in words
    assert "answering questions" in words
    links = [value for element in root.iter() for name, value in element.attrib.items() if name.endswith("href")]
    assert all(link.startswith("#") for link in links)


def test_seeds_that_did_not_run_whole_are_left_out_and_named(tmp_path: Path) -> None:
    params = parse_params(recipe("smoke"))
    grid = grid_of(params, fill(tmp_path, params, leave_out=(2, "caption")))
    assert grid.seeds == (1,)
    assert grid.missing == ("seed 2: caption",)
    assert "**Partial**: 1 trainings are missing (seed 2: caption …)" in markdown(grid)
    with pytest.raises(InputError, match="no seed has run whole"):
        grid_of(params, Results(tmp_path / "nothing"))


def test_scores_of_other_parameters_are_never_mixed_with_these(tmp_path: Path) -> None:
    params = parse_params(recipe("smoke"))
    results = fill(tmp_path, params)
    table = recipe("smoke")
    table["ablation"]["shared"]["learning_rate"] = 0.5
    other = parse_params(table)
    assert not grid_of(params, results).other_parameters
    old = grid_of(other, results)
    assert old.other_parameters
    assert "Commit abc (with its parameters, which are others now), seeds 1, 2;" in markdown(old)
    # The grid is run again with them, and interrupted.
    trained_with(other, results, 1, "qa", "def")
    with pytest.raises(InputError, match=r"no seed has run whole \(5 trainings are missing\)"):
        grid_of(other, results)
    for name in other.variants:
        trained_with(other, results, 1, name, "def")
    grid = grid_of(other, results)
    assert (grid.seeds, grid.commit, grid.other_parameters) == ((1,), "def", False)
    assert grid.missing == tuple(f"seed 2: {name}" for name in other.variants)
    table["ablation"]["shared"]["learning_rate"] = 0.25
    with pytest.raises(InputError, match=r"from several commits \(abc, def\), so they are not one grid"):
        grid_of(parse_params(table), results)
    renamed = recipe("smoke")
    renamed["ablation"]["variants"]["qa"]["title"] = "questions"
    renamed["ablation"]["contrasts"] = []
    assert not grid_of(parse_params(renamed), fill(tmp_path, params)).other_parameters, (
        "how it is shown changes no training"
    )


def test_a_grid_of_two_commits_names_both(tmp_path: Path) -> None:
    params = parse_params(recipe("smoke"))
    results = fill(tmp_path, params)
    trained_with(params, results, 2, "qa", "e" * 40)
    assert f"Commit abc, {'e' * 12}, seeds 1, 2;" in markdown(grid_of(params, results))


def test_an_axis_may_be_a_part_of_a_score(tmp_path: Path) -> None:
    table = recipe("smoke")
    table["ablation"]["axes"] = ["mcqa", "caption/recall"]
    params = parse_params(table)
    grid = grid_of(params, fill(tmp_path, params, part="recall"))
    rows = {row.name: row for row in grid.rows}
    assert rows["caption"].columns["caption/recall"].mean == pytest.approx(1.015 / 2)
    gain = next(c for c in grid.contrasts if c.after == "caption")
    assert gain.columns["caption/recall"].clips.mean == pytest.approx(0.25)
    figure(grid)
    table["ablation"]["axes"] = ["mcqa", "caption/recal"]
    with pytest.raises(InputError, match=r"no reply's score has a part 'recal' \(they have recall\)"):
        grid_of(parse_params(table), Results(tmp_path))


def test_units_of_a_grid_are_recordings(tmp_path: Path) -> None:
    write_json(tmp_path / "params.yaml", recipe("smoke"))
    parts = [clip(n, split="test", source_id=f"tape {n // 2}", sha256=letter * 64) for n, letter in enumerate("badcbe")]
    write_rows(tmp_path / "data/clips/manifest.jsonl", parts)
    asked = [
        sample
        for _, rows, _ in synthesise(parts, "caption", load_params(tmp_path / "params.yaml").synthesize.tasks, 8, 7)
        for sample in rows
    ]
    write_rows(tmp_path / "data/samples/test/caption.jsonl", asked)
    digests = content_digests(tmp_path)
    assert [names for _, names in sorted(digests.items())] == [[letter * 64] for letter in "aaccbb"], (
        "the first digest of each recording's files, whatever they are called"
    )
