"""All pages, as people see, hear and print them: contrast in light and dark, names of what is on
them, keys, paper."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import chdir
from fractions import Fraction

import numpy as np
import pytest

from stages.domain.core.frames import Frames
from stages.domain.core.records import Reject, Sample, Score
from stages.domain.rl.rollouts import Rollout, RolloutGroup
from stages.domain.tasks import TASK_NAMES
from stages.lib.rows.jsonl import write_json, write_rows
from stages.lib.video.encoder import encode
from stages.pages.render import template_text
from stages.pages.rollouts import rollout_page
from stages.runtime import paths
from stages.tools.dataset.browse import browse
from tests.support import builders
from tests.support.checkout import ROOT
from tests.support.pages import check

#: The style sheets of each page, in the order in which it holds them.
STYLES = {
    "report": ("palette.css", "report.css", "rollouts.css"),
    "browse": ("palette.css", "browse.css"),
    "rollouts": ("palette.css", "rollouts_page.css", "rollouts.css"),
}
#: Grounds that text of any colour may stand on.
GROUNDS = {"paper", "back", "sunk", "tint"}
#: Colours of lines, bars and dots, which need 3 : 1 on the paper they are drawn on.
DRAWN = ("edge", "c0", "c1", "c2", "c3", "c4", "c5", "data", "train", "evaluate", "clip-a", "clip-b", "black")
#: What has a ground and no text: colour keys of charts.
MARKS = (".swatch", ".key i")


def palettes() -> dict[str, dict[str, str]]:
    """The custom properties of both schemes; the dark one changes some of the light one's."""
    text = template_text("palette.css")
    light, dark = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    found = {
        name: dict(re.findall(r"--([\w-]+): ([^;]+);", block)) for name, block in (("light", light), ("dark", dark))
    }
    return {"light": found["light"], "dark": found["light"] | found["dark"]}


def luminance(colour: str) -> float:
    """Relative luminance of ``#rgb`` or ``#rrggbb`` (WCAG 2.2)."""
    digits = colour.removeprefix("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    parts = [int(digits[n : n + 2], 16) / 255 for n in (0, 2, 4)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def rules(page: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Selector and declarations of each rule of a page's style sheets, those inside of ``@media``
    too."""
    text = re.sub(r"/\*.*?\*/", "", template_text(*STYLES[page]), flags=re.DOTALL)
    for selector, body in re.findall(r"([^{}]+)\{([^{}]*)\}", text):
        yield (
            selector.strip(),
            {name.strip(): value.strip() for name, value in re.findall(r"([\w-]+)\s*:\s*([^;]+)", body)},
        )


def variable(value: str | None) -> str | None:
    match = re.fullmatch(r"var\(--([\w-]+)\)", value or "")
    return match[1] if match else None


def test_contrast_is_computed_as_the_standard_has_it() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#8b97a5", "#fff") == pytest.approx(2.97, abs=0.005), "interval figures of 0.1"


@pytest.mark.parametrize("page", STYLES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(page: str, scheme: str) -> None:
    colours = palettes()[scheme]
    pairs: set[tuple[str, str]] = set()
    for selector, declared in rules(page):
        ink, ground = variable(declared.get("color")), variable(declared.get("background"))
        if ground and ground not in GROUNDS and not selector.startswith(MARKS):
            assert ink, f"{selector}: a ground of its own needs an ink of its own"
        if ink and ground:
            pairs.add((ink, ground))
        elif ink:
            pairs |= {(ink, any_ground) for any_ground in GROUNDS}
        # Text of drawings is filled, not coloured.
        if (filled := variable(declared.get("fill"))) and re.search(r"text|\.tick|\.name|\.verb|\.first", selector):
            inks = ("data", "train", "evaluate") if filled == "hue" else (filled,)
            pairs |= {(each, any_ground) for each in inks for any_ground in GROUNDS}
    assert ("soft", "paper") in pairs
    faint = {
        f"{ink} on {ground}": ratio for ink, ground in pairs if (ratio := contrast(colours[ink], colours[ground])) < 4.5
    }
    assert not faint


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_bars_and_dots_can_be_seen(scheme: str) -> None:
    colours = palettes()[scheme]
    assert not {name: ratio for name in DRAWN if (ratio := contrast(colours[name], colours["paper"])) < 3}


@pytest.mark.parametrize("page", STYLES)
def test_no_colour_stands_outside_of_the_palette_and_no_text_is_faded(page: str) -> None:
    assert set(palettes()["dark"]) == set(palettes()["light"])
    known = set(palettes()["light"]) | {"hue"}
    drawn = (
        ".bar .range",
        "tr.policy .range",
        "td.good .range",
        "td.bad .range",
        ".chart .raw",
        ".chart .held",
        "::placeholder",
    )
    for selector, declared in rules(page):
        if selector == ":root" or selector.endswith(":root"):
            continue
        for name, value in declared.items():
            assert not re.search(r"#[0-9a-fA-F]{3,8}\b|rgba?\(|hsla?\(", value), f"{selector}: {name}: {value}"
            assert set(re.findall(r"var\(--([\w-]+)", value)) <= known, f"{selector}: {name}: {value}"
        if declared.get("opacity", "1") != "1":
            assert selector.startswith(drawn), f"{selector}: faded text loses its contrast"


@pytest.mark.parametrize("page", STYLES)
def test_pages_are_dark_where_a_person_wants_that_printed_in_light_and_still_where_motion_harms(page: str) -> None:
    text = template_text(*STYLES[page])
    assert "color-scheme: light dark" in text
    assert "@media screen and (prefers-color-scheme: dark)" in text, "paper is white"
    assert "@media print" in text
    assert re.search(r":focus-visible \{ outline: 2px solid", text)
    moving = re.sub(r"@media \(prefers-reduced-motion: no-preference\) \{[^{}]*\{[^{}]*\} \}", "", text)
    assert "smooth" not in moving
    assert "transition" not in moving
    assert "animation" not in moving
    script = template_text("report.js")
    assert script.count('"smooth"') == script.count('still.matches ? "auto" : "smooth"') == 1


@pytest.fixture(scope="module")
def data_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """data.html of two short clips: a sample with dark frames, one of two clips, and a row that was
    rejected."""
    root = tmp_path_factory.mktemp("pages") / "project"
    root.mkdir()
    shutil.copyfile(ROOT / "infra/recipes/smoke.yaml", root / "params.yaml")
    with chdir(root):
        clips = [builders.clip(n, colour, split="test") for n, colour in enumerate(("red", "green"))]
        for shade, clip in enumerate(clips):
            path = paths.CORPUS / clip.path
            path.parent.mkdir(parents=True, exist_ok=True)
            encode(np.full((16, 64, 64, 3), 90 * shade, np.uint8), Fraction(8), path, 18)
        write_rows(paths.CLIPS / "manifest.jsonl", clips)
        write_rows(paths.CLIPS / "rejects.jsonl", [Reject(item="a <b>.mp4", reason="damaged", detail="no picture")])
        counts = {"accepted": 2, "sources": 2, "duration_s": 4.0, "splits": {"test": 2}, "rejected": {"damaged": 1}}
        others = ("codecs", "durations", "sizes", "licences", "not_for_decord")
        write_json(paths.CLIPS / "summary.json", counts | {key: {} for key in others})
        first, second = clips
        span = {"start": 0, "stop": 16}
        alone = {"rate": "8", "segments": [{"clip_id": first.clip_id, "span": span}], "dark": [{"start": 4, "stop": 8}]}
        half = [{"clip_id": clip.clip_id, "span": {"start": 0, "stop": 8}} for clip in (first, second)]
        for task, timeline in (("dark_event_infer", alone), ("mix_vid_qa", {"rate": "8", "segments": half})):
            about = {
                "clip_id": first.clip_id,
                "timeline": timeline,
                "sampled_frames": 8,
                "question": "what?",
                "reference": "it",
            }
            row = Sample.model_validate({"sample_id": f"{task}/0", "task": task, "split": "test", **about})
            write_rows(paths.SAMPLES / f"test/{task}.jsonl", [row])
        for split in ("train", "validation", "test"):
            for task in TASK_NAMES:
                (paths.SAMPLES / split).mkdir(parents=True, exist_ok=True)
                (paths.SAMPLES / split / f"{task}.jsonl").touch()
        write_rows(paths.SAMPLES / "rejects.jsonl", [])
        made = {"samples": {split: {} for split in ("train", "validation", "test")}, "rejects": {}, "text_only": None}
        write_json(paths.SAMPLES / "summary.json", made)
        return browse(root, root / "data.html", 4).read_text(encoding="utf-8")


def test_the_page_of_data_is_named_throughout_and_a_film_strip_is_one_picture(data_page: str) -> None:
    page = check(data_page)
    strips = [attributes for tag, attributes, _ in page.found if attributes.get("class") == "strip"]
    assert [strip["role"] for strip in strips] == ["img", "img"]
    dark, mixed = (strip["aria-label"] for strip in strips)
    assert re.fullmatch(r"8 frames from 0\.00 s to 1\.\d\d s; black at 0\.\d\d s(, 0\.\d\d s)*", dark), dark
    assert re.fullmatch(r"8 frames from 0\.00 s to 1\.\d\d s; clip A at .* s; clip B at .* s", mixed), mixed
    frames = [around for tag, _, around in page.found if tag in ("img", "svg")]
    assert len(frames) == 16
    assert all(any(outer.get("aria-hidden") == "true" for _, outer in around) for around in frames)
    (count,) = [attributes for _, attributes, _ in page.found if attributes.get("id") == "count"]
    assert count["role"] == "status", "what a filter leaves is said aloud"
    assert "a &lt;b&gt;.mp4" in data_page


def test_the_page_of_rollouts_is_named_throughout() -> None:
    score = Score(sample_id="mcqa/0", task="mcqa", reply="B", format_ok=True, value=1.0)
    rollouts = [Rollout(score=score, paid={"task": 1.0}, advantage=0.5)]
    group = RolloutGroup(step=3, sample_id="mcqa/0", task="mcqa", prompt="which?", reference="B", rollouts=rollouts)
    page = check(
        rollout_page(
            "grpo@bridge", 3, [group], [Frames(np.zeros((8, 64, 64, 3), np.uint8), tuple(range(8)), 8, Fraction(8))]
        )
    )
    assert [picture["alt"] for picture in page.of("img")] == ["the frames that were shown, 8 of them"]
