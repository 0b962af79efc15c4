"""``params.yaml`` and the YAML of DVC and Prefect, as an attacker or a slip of the hand writes
them: one sentence each, at once."""

from __future__ import annotations

import string
import time
from pathlib import Path

import pytest

from flows.errors import DvcError
from flows.params_file import recipes
from flows.processes.environment import RECIPES
from flows.repro import lockfile
from flows.repro.plan import make_plan
from stages.params import ParamsError, load_params
from stages.runtime.bounded_yaml import YamlError, parse_yaml, read_yaml
from stages.tracking.lineage.lockfile import read_lock
from stages.tracking.lineage.uri import TrackingError
from tests.support.checkout import ROOT

TINY = (ROOT / "params.yaml").read_text(encoding="utf-8")
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n"
    for a, b in zip(string.ascii_lowercase[:9], string.ascii_lowercase[1:10], strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b}\n  <<: [{','.join([f'*{a}'] * 9)}]\n"
    for a, b in zip(string.ascii_lowercase[:9], string.ascii_lowercase[1:10], strict=True)
)


def seed(value: str) -> str:
    assert "\nseed: 7\n" in TINY
    return TINY.replace("\nseed: 7\n", f"\nseed: {value}\n")


HOSTILE = {
    "bomb": (BOMB, r"line \d+: with \*\w its aliases stand for more than 100,000 values"),
    "merges": (MERGES, r"line \d+: with \*\w its aliases stand for more than 100,000 values"),
    "itself": ("a: &a [*a]\n", r"line 1: \*a names nothing that stands whole above it"),
    "brackets": ("[" * 3000, "line 1: nested 65 levels deep"),
    "braces": ("{a: " * 3000, "line 1: nested 65 levels deep"),
    "indented": ("".join(f"{' ' * n}a:\n" for n in range(900)), "line 65: nested 65 levels deep"),
    "not UTF-8": (b"seed: 7\nrecipe: \xff\n", "line 2: byte 0xff is not UTF-8; save the file as UTF-8"),
    "UTF-16": (TINY.encode("utf-16"), "line 1: byte 0xff is not UTF-8"),
    "NUL": ("a: 1\nb: \0x\n", r"not YAML: line 2: character U\+0000 is not allowed"),
    "40 digits": (seed("1" + "0" * 40), "seed: Input should be less than 4294967296"),
    "2**32": (seed(str(2**32)), "seed: Input should be less than 4294967296"),
    "negative": (seed("-1"), "seed: Input should be greater than or equal to 0"),
    "5,000 digits": (seed("1" * 5000), "line 5: a number of 5,000 digits"),
    "hexadecimal": (seed("0x" + "1" * 50_000), "line 5: a number of 50,002 digits"),
    "sexagesimal": (seed("1" + ":00" * 50_000), "line 5: a number of 150,001 digits"),
    "tagged": (seed("!!int '" + "1" * 5000 + "'"), "line 5: a number of 5,000 digits"),
    "twice": (TINY + "seed: 8\n", r"line \d+: 'seed' stands in line 5 of the same table already"),
    "twice inside": ("a: {b: 1, b: 2}\n", "line 1: 'b' stands in line 1 of the same table already"),
    "a list": ("- 1\n", "expected a table of parameters, found list"),
    "a scalar": ("hello\n", "expected a table of parameters, found str"),
    "empty": ("", "expected a table of parameters, it is empty"),
    "comments only": ("# nothing\n", "expected a table of parameters, it is empty"),
    "two documents": ("a: 1\n---\nb: 2\n", "not YAML: line 2, column 1"),
    "a tag of Python": (
        "a: !!python/object/apply:os.system [ls]\n",
        "not YAML: line 1, column 4: could not determine a constructor",
    ),
    "no date": (seed("2001-99-99"), "holds a value that its YAML tag does not allow"),
    "no boolean": (seed("!!bool maybe"), "holds a value that its YAML tag does not allow"),
    "a tab": ("a:\n\t- b\n", "not YAML: line 2, column 1"),
    "a list as a key": ("? [a, b]\n: c\n", "not YAML: line 1"),
    "50 MB": (b"a" * 50_000_000, "has 50,000,000 bytes, and at most 1,000,000 are read"),
    "many unknown keys": ("".join(f"k{n}: 1\n" for n in range(20_000)), "and 19,"),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_parameters_that_cannot_be_used_are_refused_at_once(name: str, tmp_path: Path) -> None:
    text, said = HOSTILE[name]
    path = tmp_path / "params.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    began = time.process_time()
    with pytest.raises(ParamsError, match=said) as caught:
        load_params(path)
    assert time.process_time() - began < 5, "a second at most on an idle machine"
    lines = str(caught.value).splitlines()
    assert [line for line in lines if not line.startswith(f"{path}: ")] == []
    assert len(lines) <= 21
    assert max(map(len, lines)) < 600


def test_a_value_is_shown_short_and_without_what_a_terminal_obeys(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(TINY + '"k\\e]0;T\\a": "' + "x" * 5000 + '"\n')
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    assert r"k\x1b]0;T\x07: unknown key (value 'xxxx" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_folder_and_a_device_are_no_parameters(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").mkdir()
    with pytest.raises(ParamsError, match=r"params\.yaml: is a folder"):
        load_params(tmp_path / "params.yaml")
    with pytest.raises(ParamsError, match=r"/dev/zero: is not an ordinary file"):
        load_params(Path("/dev/zero"))


def test_aliases_within_reason_are_read() -> None:
    # `synthesize.writer.traces.judge: *judge` is what the message about it says to write.
    assert parse_yaml("a: &a {x: [1, 2]}\nb: *a\nc: {<<: *a, y: 3}\n", "t") == {
        "a": {"x": [1, 2]},
        "b": {"x": [1, 2]},
        "c": {"x": [1, 2], "y": 3},
    }
    assert parse_yaml("a: '" + "1" * 5000 + "'\n", "t") == {"a": "1" * 5000}


@pytest.mark.parametrize("name", ["bomb", "brackets", "not UTF-8", "NUL", "twice inside", "a tag of Python"])
@pytest.mark.parametrize("file", ["dvc.lock", "dvc.yaml"])
def test_files_of_dvc_are_held_to_the_same(name: str, file: str, tmp_path: Path) -> None:
    text = HOSTILE[name][0]
    (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DvcError, match=f"{file}: "):
        make_plan(tmp_path)
    if file == "dvc.lock":
        with pytest.raises(TrackingError, match=r"dvc\.lock: not a dvc\.lock"):
            read_lock(tmp_path)
        assert lockfile.is_broken(tmp_path)


def test_recipes_are_held_to_the_same(tmp_path: Path) -> None:
    folder = tmp_path / RECIPES
    folder.mkdir(parents=True)
    (folder / "bad.yaml").write_bytes(b"# about \xff\n")
    (folder / "good.yaml").write_text("# A good one\n" + TINY)
    (tmp_path / "params.yaml").write_bytes(b"\xff")
    listed = {one.name: one.about for one in recipes.recipes(tmp_path)}
    assert listed["good"].startswith("A good one")
    assert "line 1: byte 0xff is not UTF-8" in listed["bad"]
    with pytest.raises(YamlError, match=r"bad\.yaml: line 1: byte 0xff"):
        recipes.use(tmp_path, "bad", force=True)
    with pytest.raises(YamlError, match=r"params\.yaml: line 1: byte 0xff"):
        recipes.difference(tmp_path, "good")
    assert recipes.use(tmp_path, "good", force=True).seed == 7


def test_every_recipe_is_read_as_plain_yaml_reads_it() -> None:
    import yaml

    for path in (ROOT / "infra/recipes").glob("*.yaml"):
        assert read_yaml(path) == yaml.safe_load(path.read_text(encoding="utf-8"))
