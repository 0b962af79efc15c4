"""README stays one page, the documentation covers what there is, and its generated pages say what
the code says."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from threading import Thread
from types import ModuleType

import numpy as np
import pytest
import yaml

from stages.domain.core.records import Sample, Segment, Span, Timeline
from stages.domain.rl.gauges import GAUGES
from stages.lib.annotations.jsonl import read_annotations
from stages.lib.judging.endpoint import EndpointJudge
from stages.lib.video.encoder import encode
from stages.params import OpenAIJudgeParams
from stages.runtime.endpoint.settings import endpoint_settings
from tests.support.builders import clip, rules
from tests.support.checkout import ROOT

DOCS = ROOT / "docs"
RECIPES = sorted(path.stem for path in (ROOT / "infra/recipes").glob("*.yaml"))


@pytest.fixture
def generators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of docs/ can be imported, as mkdocs imports them."""
    monkeypatch.syspath_prepend(str(DOCS))


def example(name: str) -> ModuleType:
    """A module of docs/examples."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"examples/{name}.py")
    assert spec is not None, name
    assert spec.loader is not None, name
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose_of(text: str) -> list[str]:
    """The lines outside of blocks of code and tables."""
    lines, inside = [], False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            inside = not inside
        elif not inside and not line.startswith("|"):
            lines.append(line)
    return lines


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_prose_wraps_and_cells_are_short(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not [line for line in prose_of(text) if len(line) > 100]
    cells = [cell.strip() for line in text.splitlines() if line.startswith("|") for cell in line.strip("|").split("|")]
    assert cells
    assert not [cell for cell in cells if len(cell) > 60]


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.relative_to(DOCS).as_posix())
def test_prose_of_pages_wraps(page: Path) -> None:
    """Lines that cannot be broken (a picture, a line of HTML) may be longer."""
    lines = prose_of(page.read_text(encoding="utf-8"))
    assert not [line for line in lines if len(line) > 100 and not line.startswith(("![", "<"))]


@pytest.mark.parametrize(
    "page",
    [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *sorted(DOCS.rglob("*.md"))],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_pages_use_plain_words(page: Path) -> None:
    """Words that a reader had to look up, or that stood for several things."""
    dialect = r"\b(?:whoever|anew|mends?|mended|in small|once more|sign of life|set aside|paid alike)\b"
    found = re.findall(dialect, "\n".join(prose_of(page.read_text(encoding="utf-8"))), re.MULTILINE)
    assert not found


def test_readme_is_one_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) < 1500
    assert text.count("\n") < 140


def test_readme_and_documentation_print_one_table() -> None:
    rows = {}
    for page in (ROOT / "README.md", DOCS / "results/tiny.md"):
        found = re.findall(r"^\| (\**[\w ()]+\**) \| ([0-9].*) \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
        rows[page.name] = {name: re.sub(r" \[.*?\]", "", cells).split(" | ")[:6] for name, cells in found}
    assert len(rows["README.md"]) == 6
    assert rows["README.md"] == rows["tiny.md"]


def test_places_of_the_annotated_tree_exist() -> None:
    tree = re.search(
        r"## Where things are\n\n```\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert tree
    # The text of an entry may take a second line.
    entries = [names for line in tree[1].splitlines() if (names := line[:20].split())]
    assert len(entries) == 16
    for names in entries:
        for name in names:
            assert (ROOT / name.replace("<stage>", "grpo")).exists(), name


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_a_page_that_says_what_to_expect(recipe: str) -> None:
    text = (DOCS / f"recipes/{recipe}.md").read_text(encoding="utf-8")
    for row in ("command", "machine", "time", "expected", "registered model"):
        assert f"| {row} |" in text
    values = yaml.safe_load((ROOT / f"infra/recipes/{recipe}.yaml").read_text(encoding="utf-8"))
    assert f"| registered model | `{values['gate']['registered_model']}` |" in text
    assert "## Why its values are what they are" in text
    assert f"[`{recipe}`]({recipe}.md)" in (DOCS / "recipes/index.md").read_text(encoding="utf-8")


def test_files_that_pages_include_are_there() -> None:
    included = [
        line
        for page in DOCS.rglob("*.md")
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("--8")
    ]
    assert len(included) > 10
    for line in included:
        named = re.fullmatch(r'--8<-- "([^":]+)(?::\d+)?"', line)
        assert named, line
        assert (ROOT / named[1]).is_file(), line


def test_the_table_of_what_runs_again_is_that_of_dvc_yaml() -> None:
    """Folders of code that stages share, with the stages that read all of one, and those that read
    some of its files."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    whole: dict[str, set[str]] = {}
    some: dict[str, set[str]] = {}
    for name, stage in stages.items():
        for dep in stage.get("do", stage)["deps"]:
            if shared := re.match(r"stages/(?:domain|lib)/\w+", dep):
                (whole if shared[0] == dep else some).setdefault(f"{shared[0]}/", set()).add(name)
    text = (DOCS / "development/guided-tour.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(stages/(?:domain|lib)/\w+/)` \|(.*)\|(.*)\|$", text, re.MULTILINE)
    shown = {folder: tuple(set(re.findall(r"`(\w+)`", cell)) for cell in cells) for folder, *cells in rows}
    named = sorted({*whole, *some})
    assert shown == {
        folder: (whole.get(folder, set()), some.get(folder, set()) - whole.get(folder, set())) for folder in named
    }


def test_gauges_of_the_guide_are_those_of_the_code() -> None:
    text = (DOCS / "guides/rewards-and-gauges.md").read_text(encoding="utf-8")
    shown = {name: float(mark) for name, mark in re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", text, re.MULTILINE)}
    assert shown == {name: gauge.above for name, gauge in GAUGES.items()}


@pytest.mark.usefixtures("generators")
def test_every_command_and_option_is_on_the_page() -> None:
    from generators import commands

    page = commands.page()
    for name, command in commands.all_commands():
        assert f"\n## {name}\n" in page
        for option in command.params:
            for spelling in option.opts if option.param_type_name == "option" else ():
                assert f"`{spelling}`" in page, f"{name} {spelling}"


@pytest.mark.usefixtures("generators")
def test_every_parameter_is_on_the_page() -> None:
    from generators import parameters

    page = parameters.page(ROOT)
    for path in (
        "seed",
        "ingest.tolerance.share",
        "synthesize.tasks.mcqa.per_clip",
        "grpo.ROW.lora.rank",
        "gate.gauges.at_most",
    ):
        assert f'<span id="{path}"></span>`{path}`' in page, path
    # Type, values of two recipes, and what is said of it in the code and in the file.
    assert "`grpo.ROW.learning_rate` · number, above 0 · tiny `0.0001`; vidbridge-r1 `1e-06`" in page
    assert "`corpus.size_px` · integer, at least 32, multiple of 32 · `64`" in page
    assert "Constant rate factor of x264: 0 is lossless, 51 is the lowest quality." in page
    assert "The letter stands after its option: a model of this size" in page
    # Remarks of code and file that say the same stand there once.
    assert page.count("vidbridge recipe use") == 1
    assert "### model: kind `pretrained`" in page
    assert "### judge: kind `openai`" in page


@pytest.mark.usefixtures("generators")
def test_every_variable_is_on_the_page() -> None:
    from generators import environment

    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    page = environment.page(text)
    names = re.findall(r"^#?([A-Z][A-Z0-9_]+)=", text, re.MULTILINE)
    assert len(names) > 40
    for name in names:
        assert f"`{name}`" in page, name
    with pytest.raises(ValueError, match="X: no heading or no remark"):
        environment.sections("# --- Places ---\n#X=1\n")


@pytest.mark.usefixtures("generators")
def test_every_out_is_described(tmp_path: Path) -> None:
    from generators import files

    assert set(files.outs(ROOT)) == set(files.OUTS)
    page = files.page(ROOT)
    assert "rows: [Clip](#clip)" in page
    assert "Written by `sft@ROW` and `grpo@ROW`." in page
    anchors = {heading.lower() for heading in re.findall(r"^### (\w+)$", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", page)) <= anchors
    (tmp_path / "dvc.yaml").write_text("stages: {new: {cmd: x, outs: [data/new]}}\n")
    with pytest.raises(ValueError, match=r"'data/new' of dvc\.yaml is not described"):
        files.outs(tmp_path)


@pytest.mark.usefixtures("generators")
def test_decisions_are_numbered_and_links_follow_the_page() -> None:
    from generators import documents

    text = (ROOT / "DECISIONS.md").read_text(encoding="utf-8")
    page = documents.page(text, "DECISIONS.md", "development/decisions.md")
    numbers = [int(number) for number in re.findall(r"^## (\d+) · ", page, re.MULTILINE)]
    assert numbers == list(range(1, len(re.findall(r"^\*\*", text, re.MULTILINE)) + 1))
    linked = "[a](docs/development/adding.md#x) [b](LICENSE) [c](https://example.org)"
    assert documents.page(linked, "X.md", "development/x.md") == "[a](adding.md#x) b [c](https://example.org)"


def test_a_judge_of_ones_own_is_asked_by_the_real_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = example("own_judge")
    shown = Timeline(rate=Fraction(8), segments=(Segment(clip_id="c", span=Span(start=0, stop=16)),))
    sample = Sample(
        sample_id="dark_event_infer/c/0",
        task="dark_event_infer",
        split="train",
        clip_id="c",
        timeline=shown,
        sampled_frames=8,
        question="what happens in the dark part ?",
        reference="the red bar rises",
    )
    params = OpenAIJudgeParams(
        kind="openai", model="word-overlap", revision="1", temperature=0.0, max_tokens=64, seed=1, max_unavailable=0.1
    )
    with own.server(0) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            monkeypatch.setenv("VIDBRIDGE_JUDGE_URL", f"http://127.0.0.1:{server.server_address[1]}/v1")
            monkeypatch.setenv("VIDBRIDGE_JUDGE_CACHE", str(tmp_path / "judge"))
            judge = EndpointJudge(params, endpoint_settings())
            assert [
                judge.covers(sample, answer).score for answer in ("the red bar rises", "the red bar", "nothing")
            ] == [2, 1, 0]
            for task in ("mix_vid_qa", "qa"):  # a dark event is marked 0, 1 or 2
                asked = sample.model_copy(update={"task": task})
                assert [judge.right(asked, answer).score for answer in ("the red bar rises", "a blue bar")] == [1, 0]
            assert judge.extract_events("the bar rises then it falls") == ("the bar rises", "it falls")
            assert judge.entailed("it falls", "the bar rises then it falls").score == 1
        finally:
            server.shutdown()
            thread.join()


def test_a_table_becomes_annotations_that_are_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = example("own_videos")
    table, folder = tmp_path / "events.csv", tmp_path / "videos"
    folder.mkdir()
    table.write_text(
        "video,start,end,caption,label\nb.mp4,1.0,2.0,It falls.,toy\nb.mp4,0,1.0,It rises.,toy\na.mp4,0.5,1.5,“Sí”.,\n",
        encoding="utf-8",
    )
    for name in ("a.mp4", "b.mp4"):
        encode(np.zeros((16, 64, 64, 3), np.uint8), Fraction(8), folder / name, 18)
    assert own.main(table, folder) == 0
    assert "2 videos" in capsys.readouterr().out
    rows = [json.loads(line) for line in (folder / "annotations.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["video"], [event["caption"] for event in row["events"]]) for row in rows] == [
        ("b.mp4", ["It rises.", "It falls."]),
        ("a.mp4", ["“Sí”."]),
    ]
    assert rows[0]["label"] == "toy"
    assert "label" not in rows[1]
    accepted, rejected, *_ = read_annotations(folder, "annotations.jsonl")
    assert (len(accepted), rejected) == (2, [])
    # What a person has written is not overwritten.
    assert own.main(table, folder) == 1


def test_a_task_of_ones_own_is_one_file_and_one_line(tmp_path: Path) -> None:
    """The example's file in a copy of the package, and its line in the list of tasks; then its
    settings are known, made and scored."""
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    tasks = tmp_path / "stages/domain/tasks"
    shutil.copyfile(DOCS / "examples/own_task.py", tasks / "first_colour.py")
    listed = (tasks / "__init__.py").read_text(encoding="utf-8")
    listed = listed.replace("import caption,", "import first_colour, caption,").replace(
        "(\n    dark", "(\n    first_colour.TASK,\n    dark"
    )
    (tasks / "__init__.py").write_text(listed, encoding="utf-8")
    program = """
from stages.domain.core.records import Clip
from stages.domain.core.replies import render_reply
from stages.domain.tasks.rewards import Referee, RewardRules
from stages.domain.tasks.scoring import score_reply
from stages.domain.tasks.synthesis import TaskSettings, synthesise
import sys, json
clip, rules = Clip.model_validate_json(sys.argv[1]), RewardRules.model_validate_json(sys.argv[2])
settings = TaskSettings.model_validate({"first_colour": {"per_clip": 1}})
((_, (sample,), _),) = synthesise([clip], "first_colour", settings, 8, 7)
replies = [render_reply("it rises", answer) for answer in sys.argv[3:]]
print(sample.reference, *(score_reply(sample, reply, None, rules).value for reply in replies))
"""
    given = [clip(colour="blue").model_dump_json(), rules().model_dump_json(), "blue", "red", "blue or red"]
    done = subprocess.run(
        [sys.executable, "-c", program, *given], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("blue 1.0 0.0 0.0\n", "")
