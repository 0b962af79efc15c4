"""A mapping that breaks a rule, or fits no row: one message with field, value, remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.errors import VidbridgeError
from stages.lib.annotations.annotation import SourceError
from stages.lib.annotations.formats import FORMATS, read_source
from stages.lib.annotations.mapping.document import MappingError, load, shipped
from stages.params import ParamsError, load_params, parse_params
from stages.runtime.bounded_yaml import read_yaml
from tests.support.annotations.mapped import Mapped
from tests.support.annotations.reading import ingest_params
from tests.support.checkout import ROOT


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_mapping_loads_and_says_what_it_is_for(name: str) -> None:
    assert name not in FORMATS
    for mapping in load(shipped()[name]):
        assert mapping.files


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ("video: v\ncaptoin: t", "captoin: unknown key; correct its spelling; there are about, files, container"),
        ("video: v\nevents: {spam: a, caption: t}", "events.0.spam: unknown key; .* start, end, span, caption"),
        ("caption: t", "video: missing; add it"),
        ("video: v\ntimes: minutes", "times: 'minutes' is no form of times; set one of seconds, milliseconds"),
        ("video: v\ntimes: frames", "form frames needs a rate"),
        ("video: v\nevents: {start: a, caption: t}", "set either `span`, or `start` and `end`"),
        ("video: v\nqa: {question: q, options: o, answer: a, answer_form: roman}", "answer_form: .*'index_from_0'"),
        ("video: '{v'", "is no template"),
        ("video: a..b", "'a..b' is no path of a column"),
        ("video: $row", r"'\$row' is unknown: there are \$key, \$value"),
        ("video: {path: v, cut: true}", "`cut` is set, and the mapping names no `start` and `end`"),
        ("video: v\npatterns: {v: '('}", "is no regular expression"),
        ("video: v\nreject: [{when: {}, reason: x, why: y}]", "reject.0.when"),
        ("- {video: v}\n- {video: w, files: x}", "0.files: is missing"),
        ("[]", "the document is empty"),
        ("text", "need a table of keys, found str"),
    ],
)
def test_a_wrong_key_or_value_is_named(mapping: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text(mapping)
    with pytest.raises(MappingError, match=said) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ("video: v\ncaption: says", r"says: no row has such a column \(there are v, t\); correct the name, or put \?"),
        (
            "video: 'x/{v}.mp4'\ncaption: t",
            "no row names one of the 1 videos .* looks for 'x/a.mp4', .* there is 'a.mp4'",
        ),
        ("video: v", "t: every row has this, and the mapping does not name it; use it, add it to `ignore`"),
        ("video: v\ncaption: t\nrows: data", "the document is a list|has no field 'data'"),
        ("video: v\ncaption: t\ncontainer: jsonl", "this is a JSON document"),
        (
            "video: v\ncaption: t\njoins: {o: {file: rows.json, key: 't', equals: v}}",
            "o: no row of the second table belongs to a row: v is 'a' here, t is 'x' there",
        ),
        (
            "video: v\ncaption: t\njoins: {o: {file: rows.json, key: $file, equals: v}}",
            "joins.o: a second row has the key 'rows'; set `many: true`",
        ),
        ("video: v\ncaption: t\njoins: {o: {file: gone.csv, key: k, equals: v}}", "has no gone.csv"),
    ],
)
def test_a_mapping_that_fits_no_row_is_one_error(mapping: str, said: str, mapped: Mapped) -> None:
    with pytest.raises(VidbridgeError, match=said):
        mapped(mapping, [{"v": "a", "t": "x"}, {"v": "b", "t": "y"}])


@pytest.mark.parametrize(
    ("mapping", "row", "reason", "said"),
    [
        ("video: v\ncaption: t", {"v": "b"}, "bad-annotation", "t: no such column; there are v"),
        (
            "video: v\ncaption: t",
            {"v": "b", "t": "x", "u": 1},
            "unmapped-column",
            "u: the mapping names no such column",
        ),
        ("video: v\ncaption: t", {"v": "b", "t": ["x"]}, "bad-annotation", "t: need a text, found list"),
        ("video: v\ncaption: t", "text", "bad-annotation", "v: no such column; there is 'text'"),
        (
            "video: v\ncaption: t\nlength: n?\ntimes: clock",
            {"v": "b", "t": "x", "n": "9.5"},
            "bad-annotation",
            "n: '9.5' is no time hh:mm:ss.mmm or mm:ss; set `times` to one of seconds, milliseconds, frames, clock",
        ),
        (
            "video: v\ncaption: t\nlength: n?",
            {"v": "b", "t": "x", "n": "0:09"},
            "bad-annotation",
            "n: '0:09' is no number of seconds; set `times`",
        ),
        (
            "video: v\ncaption: t\nspan: n?",
            {"v": "b", "t": "x", "n": "NaN-NaN"},
            "bad-annotation",
            "start: 'NaN' is no number of seconds",
        ),
        (
            "video: v\ncaption: t\nparse: {n?: python}\nlabel: n?",
            {"v": "b", "t": "x", "n": "[1, __import__('os')]"},
            "bad-annotation",
            "is no python list",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_set_aside_alone(
    mapping: str, row: Any, reason: str, said: str, mapped: Mapped
) -> None:
    rows, rejects = mapped(mapping, [{"v": "a", "t": "good"}, row], "a.mp4 b.mp4")
    assert [one.caption for one in rows] == ["good"]
    found = [(why, detail) for _, why, detail in rejects if why != "no-annotation"]
    assert [why for why, _ in found] == [reason]
    assert said in found[0][1]


def test_a_bad_event_leaves_its_row_the_others(mapped: Mapped) -> None:
    mapping = "{video: v, events: {each: e, span: at, caption: t}}"
    events = [{"at": [1, 2], "t": "good"}, {"at": "soon", "t": "x"}, {"at": [1, "x"], "t": "x"}, {"t": "x"}]
    (row,), rejects = mapped(mapping, [{"v": "a", "e": events}])
    assert [event.caption for event in row.events] == ["good"]
    assert [(reason, detail) for _, reason, detail in rejects] == [
        ("bad-event", "events.1.at: 'soon' holds no two times; need a list of two, or a text such as 1.5-3.25"),
        (
            "bad-event",
            "events.2.at: 'x' is no number of seconds; set `times` to one of seconds, milliseconds, frames, clock",
        ),
        ("bad-event", "events.3.at: no such column; there are t"),
    ]


def test_formats_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"'coins' is not a supported format; set one of .*vatex.*, or the path of"):
        read_source(ingest_params(tmp_path, "coins"))
    with pytest.raises(SourceError, match=r"'gone.yaml' does not exist; write the mapping, or correct the path"):
        read_source(ingest_params(tmp_path, "gone.yaml"))
    with pytest.raises(SourceError, match=r"ingest.annotations: null, and .* has none of the files that nextqa"):
        read_source(ingest_params(tmp_path, "nextqa"))
    with pytest.raises(SourceError, match=r"'list.xml' is none of the files that msrvtt.yaml is for \(MSRVTT_data"):
        read_source(ingest_params(tmp_path, "msrvtt", "list.xml"))


@pytest.mark.parametrize("name", ["ours.yaml", "/tmp/ours.yml", "mappings/../ours.yaml"])
def test_a_mapping_of_a_project_lies_where_dvc_watches(name: str) -> None:
    raw = read_yaml(ROOT / "params.yaml")
    assert "mappings" in read_yaml(ROOT / "dvc.yaml")["stages"]["ingest"]["deps"]
    raw["ingest"]["format"] = "mappings/ours.yaml"
    assert parse_params(raw).ingest.format == "mappings/ours.yaml"
    raw["ingest"]["format"] = name
    with pytest.raises(
        ParamsError, match=r"lies outside of mappings/, the folder that DVC watches \(value .*\); move it there"
    ):
        parse_params(raw)


def test_the_usual_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,caption\na.mp4,It rains.\n")
    (tmp_path / "a.mp4").touch()
    (row,) = read_source(
        load_params(ROOT / "params.yaml").ingest.model_copy(update={"source": str(tmp_path), "format": "csv"})
    ).rows
    assert row.caption == "It rains."
