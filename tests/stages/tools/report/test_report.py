"""The report displays a project's results, and does nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.domain.rl.gauges import GAUGES
from stages.domain.statistics.intervals import Interval
from stages.errors import InputError
from stages.lib.evaluation.results import SummaryMetrics
from stages.lib.rows.jsonl import read_json, read_record
from stages.pages.render import template_text
from stages.runtime import paths
from stages.tools.ablation.grid import Contrast, Grid, PolicyResult
from stages.tools.ablation.seeds import Gain
from stages.tools.report import scores
from stages.tools.report.page import build
from tests.support.pages import Elements, check
from tests.support.projects.report import HOSTILE, LOCKED, ROWS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def held(page: str) -> dict[str, object]:
    """The data that the page holds for its replies."""
    match = re.search(r'<script id="replies-data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert match is not None
    found: dict[str, object] = json.loads(match[1])
    return found


def test_the_page_asks_nobody_and_runs_nothing_but_its_own_script(page: str) -> None:
    elements = Elements(page)
    policy = next(a["content"] or "" for _, a in elements.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    for tag, attributes in elements.found:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") or name == "style" for name in attributes), (
            f"the policy would block it: {attributes}"
        )
        for name in ("src", "href", "srcset", "action", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), f"{tag} {name}"
    assert not re.search(r"url\(|@import", page)
    assert "http://" not in page.replace("http://evil.example/", "")
    assert "https://" not in page
    scripts = [attributes for tag, attributes in elements.found if tag == "script"]
    assert scripts == [{"id": "replies-data", "type": "application/json"}, {}]


def test_what_a_model_said_is_text_wherever_it_stands(page: str) -> None:
    assert HOSTILE not in page
    samples = held(page)["samples"]
    assert isinstance(samples, list)
    hostile = next(sample for sample in samples if sample["id"] == "caption/c0")
    assert hostile["said"]["base"]["text"] == HOSTILE
    assert hostile["said"]["general"]["answer"] == HOSTILE
    assert page.count("</script>") == 2


def test_every_section_is_there_with_what_the_results_say(page: str, project: Path) -> None:
    elements = Elements(page)
    ids = {attributes["id"] for tag, attributes in elements.found if tag == "section"}
    assert ids == {"scores", "gains", "curves", "gauges", "replies", "data", "pipeline", "environment"}
    links = {a["href"] for tag, a in elements.found if tag == "a"}
    assert links == {f"#{name}" for name in ids}
    for row in ROWS:
        table = read_json(project / paths.scores(row) / "scores.json")
        assert f"{table['mean']:.3f}" in elements.text
        assert [
            result
            for result in table["tasks"].values()
            if f"{result['low']:.2f} to {result['high']:.2f}" not in elements.text
        ] == []
    for words in (
        "random",
        "constant",
        "general, blank video",
        "general − cold-start",
        "3 clips",
        "h264",
        "torch",
        "processor",
    ):
        assert words.lower() in elements.text.lower()
    assert len(page) < 6_000_000


def test_gauges_stand_with_their_marks(page: str) -> None:
    text = " ".join(Elements(page).text.split())
    assert "blank video 0.70: look" in text
    assert GAUGES["blank_video"].means in text
    assert "enumeration 0.05, was 0.30" in text
    assert page.count('class="mark"') == 2 + 1, "one for each gauge that was measured, and one in the key"


def grid() -> Grid:
    """Two variants of one task over two seeds."""
    spread = Interval(mean=0.5, low=0.4, high=0.6)
    gain = Gain(
        clips=Interval(mean=0.125, low=-0.1, high=0.3),
        seeds=(0.1, 0.15),
        over_seeds=Interval(mean=0.125, low=0.0625, high=0.2),
    )
    row = PolicyResult(
        name="caption",
        title="caption <only>",
        trained_on=("caption",),
        columns={"mcqa": spread},
        by_seed={"mcqa": (0.4, 0.6)},
        seeds=(0.4, 0.6),
        format=1.0,
        blank=None,
    )
    return Grid(
        recipe="smoke",
        commit="c" * 40,
        other_parameters=False,
        command="vidbridge ablate",
        measured="Held out.",
        seeds=(1, 2),
        rollouts=8,
        without_rollouts=(),
        axes=("mcqa", "mcqa"),
        start="cold-start",
        rows=(row, row.model_copy(update={"name": "all", "title": "everything"})),
        contrasts=(Contrast(after="all", before="caption", mean=gain, columns={"mcqa": gain}),),
        missing=(),
    )


def test_an_ablation_is_shown_where_there_is_one(project: Path) -> None:
    folder = project / ".vidbridge/ablation/smoke"
    folder.mkdir(parents=True)
    try:
        (folder / "results.json").write_text(grid().model_dump_json())
        with pytest.raises(InputError, match=r"figure.svg: missing, though"):
            build(project, project / "ablation.html")
        (folder / "figure.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>harm()</script></svg>")
        page = build(project, project / "ablation.html").read_text()
        assert 'id="ablation"' in page
        assert "caption &lt;only&gt;" in page
        assert "everything − caption &lt;only&gt;" in page
        assert '<td class="good">+0.125<small>+0.06 to +0.20</small>' in page, "the interval over seeds"
        assert "harm()" not in page, "a figure is a picture: nothing in it runs"
        (folder / "results.json").write_text(grid().model_dump_json().replace('"format":1.0', '"format":"good"'))
        with pytest.raises(InputError, match=r"results.json: rows.0.format: .*run vidbridge ablate"):
            build(project, project / "ablation.html")
        (folder / "results.json").write_text("{")
        with pytest.raises(InputError, match=r"results.json: the file: "):
            build(project, project / "ablation.html")
    finally:
        shutil.rmtree(folder)


def test_without_results_the_page_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no results yet; run vidbridge run"):
        build(tmp_path, tmp_path / "report.html")


def test_results_of_other_parameters_say_so(project: Path, tmp_path: Path) -> None:
    recipe, lock = (project / "params.yaml").read_text(), (project / "dvc.lock").read_text()
    made_with = yaml.safe_load(recipe)
    stages: dict[str, Any] = {
        "sft@cold-start": {"cmd": "x", "params": {"params.yaml": {key: made_with[key] for key in ("seed", "prompt")}}},
        "grpo@general": {
            "cmd": "x",
            "params": {"params.yaml": {"seed": 7, "grpo.general": made_with["grpo"]["general"]}},
        },
    }
    (project / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {**LOCKED, **stages}}))
    try:
        made_with["seed"] = stages["grpo@general"]["params"]["params.yaml"]["seed"] = yaml.safe_load(recipe)["seed"]
        assert "Not what params.yaml says now" not in page_of(project, tmp_path), "the same, dumped by another library"
        made_with["grpo"]["general"]["learning_rate"] = "4e-4"
        (project / "params.yaml").write_text(yaml.safe_dump(made_with))
        assert "other values of grpo.general (grpo@general)." in page_of(project, tmp_path)
        shutil.move(project / "scores/bridge", tmp_path / "bridge")
        with pytest.raises(
            InputError, match=r"scores/bridge/scores\.json: not there, and params.yaml has it evaluated"
        ):
            page_of(project, tmp_path)
    finally:
        (project / "params.yaml").write_text(recipe)
        (project / "dvc.lock").write_text(lock)
        if (tmp_path / "bridge").exists():
            shutil.move(tmp_path / "bridge", project / "scores/bridge")


def page_of(project: Path, folder: Path) -> str:
    return Elements(build(project, folder / "report.html").read_text(encoding="utf-8")).text


def test_the_page_is_named_throughout_and_its_tabs_are_tabs_to_a_keyboard(page: str) -> None:
    found = check(page)
    tabs = [attributes for _, attributes, _ in found.found if attributes.get("role") == "tab"]
    assert [tab["id"] for tab in tabs] == ["tab-better", "tab-worse", "tab-best", "tab-worst"]
    assert [(tab["aria-selected"], tab["tabindex"]) for tab in tabs] == [("true", "0")] + [("false", "-1")] * 3, (
        "one stop of the Tab key"
    )
    (panel,) = [attributes for _, attributes, _ in found.found if attributes.get("role") == "tabpanel"]
    assert {tab["aria-controls"] for tab in tabs} == {panel["id"]}
    assert panel["aria-labelledby"] == "tab-better"
    inside = [a.get("id") for _, a, around in found.found if any(outer.get("id") == panel["id"] for _, outer in around)]
    assert {"reply-count", "reply-list", "reply-none", "reply-more"} <= set(inside)
    (count,) = [attributes for _, attributes, _ in found.found if attributes.get("id") == "reply-count"]
    assert count["role"] == "status"
    script = template_text("report.js")
    assert set(re.findall(r"(\w+): \(", script[script.index("const STEPS") : script.index("LISTS.forEach")])) == {
        "ArrowRight",
        "ArrowLeft",
        "Home",
        "End",
    }
    scrolled = [a for _, a, _ in found.found if a.get("class") == "scroll"]
    assert scrolled
    assert all((a["role"], a["tabindex"]) == ("region", "0") and a["aria-label"] for a in scrolled), (
        "wide tables scroll by keys"
    )


def test_what_a_contact_sheet_says_stands_below_it_as_text(project: Path, tmp_path: Path) -> None:
    sheet = paths.SAMPLES / "sheets/caption.png"
    sheet.parent.mkdir()
    contents, chinese = (paths.SAMPLES / "test/caption.jsonl").read_text(encoding="utf-8"), "发生了什么?"
    try:
        sheet.write_bytes(b"a picture")
        (paths.SAMPLES / "test/caption.jsonl").write_text(contents.replace("what happens ?", chinese), encoding="utf-8")
        text = page_of(project, tmp_path)
        assert "what it says, as text" in text
        assert chinese in text[text.index("What the samples look like") :]
    finally:
        (paths.SAMPLES / "test/caption.jsonl").write_text(contents, encoding="utf-8")
        shutil.rmtree(sheet.parent)


def test_a_gain_stands_with_its_p_value_and_a_tasks_with_holms(page: str, project: Path) -> None:
    text = " ".join(Elements(page).text.split())
    gains = read_record(project / paths.REPORTS / paths.METRICS_FILE, SummaryMetrics).gains
    tasks = [found for gain in gains.values() for found in gain.tasks.values()]
    assert any((found.p_holm or 0) > found.p_value >= 0.001 for found in tasks), "Holm's p is another one somewhere"
    for found in tasks:
        assert scores.cell(found, (-1, 1))["p"] in text
        assert ", Holm " in scores.cell(found, (-1, 1))["p"]


def opened(page: Path, folder: Path) -> tuple[str, str, set[str]]:
    """Render the page in Chromium. Returns the document, Chromium's log, and the page's requests to
    other hosts, whose names do not resolve."""
    assert CHROMIUM is not None
    log = folder / "network.json"
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *quiet, "--host-resolver-rules=MAP * ~NOTFOUND"),
            *(
                f"--user-data-dir={folder / 'profile'}",
                f"--log-net-log={log}",
                "--enable-logging=stderr",
                "--window-size=390,900",
            ),
            *("--dump-dom", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    # The browser sends requests of its own, too; those have no page behind them.
    asked = {
        str(e["url"]) for e in events if "url" in e and str(e.get("network_isolation_key", "")).startswith("file:")
    }
    return done.stdout, done.stderr, {url for url in asked if url.startswith("http")}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_without_a_network_shows_it_and_complains_of_nothing(
    page: str, project: Path, tmp_path: Path
) -> None:
    curious = tmp_path / "curious.html"
    curious.write_text('<img src="http://evil.example/pixel.png"><script>console.error("oh")</script>')
    _, said, asked = opened(curious, tmp_path)
    assert asked == {"http://evil.example/pixel.png"}, "this is how a request would be noticed"
    assert "CONSOLE" in said

    document, said, asked = opened(project / "report.html", tmp_path)
    assert asked == set()
    assert "CONSOLE" not in said
    elements = Elements(document)
    counts = held(page)["counts"]
    assert isinstance(counts, dict)
    better = sum(count["better"] for count in counts["cold-start>general"].values())
    cards = [attributes for tag, attributes in elements.found if tag == "article"]
    assert len(cards) == better > 1, "the page's own script has run, under the page's own policy"
    assert elements.text.count(HOSTILE) == 3, "thought, answered, and why a row was rejected: all as text"
    assert not any("onerror" in attributes for _, attributes in elements.found)
