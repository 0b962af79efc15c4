"""One state of a project: each resource is opened once, and Prefect learns nothing of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flows.promotion import rescore_champion
from stages.params import root as parameters
from stages.tracking.gate.promote import promote
from stages.tracking.lineage.cache_folder import CACHE_VARIABLE, cache_folder
from stages.tracking.lineage.uri import TrackingError, check_server
from stages.tracking.registry.register import register
from stages.tracking.runs import store
from stages.tracking.session import Session


def test_what_a_session_holds_is_opened_once_by_however_many_threads(project: Path) -> None:
    with Session(project) as session, ThreadPoolExecutor(4) as pool:
        for held in ("params", "client", "content"):
            found = list(pool.map(lambda name: getattr(session, name), [held] * 4))
            assert {id(one) for one in found} == {id(getattr(session, held))}, held
        recipe = session.params.recipe
        text = (project / "params.yaml").read_text()
        (project / "params.yaml").write_text(text.replace(f"recipe: {recipe}\n", "recipe: another\n"))
        assert session.params.recipe == recipe, "it stands for one state"
        assert Session(project).params.recipe == "another"


def test_a_promotion_reads_the_parameters_and_asks_for_the_store_once(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(Session(project))
    assert promote(Session(project), "3").moved
    asked: list[str] = []

    def read(path: Path) -> Any:
        asked.append(path.name)
        return read_yaml(path)

    def answers(*given: Any, **named: Any) -> str:
        asked.append("store")
        return check_server(*given, **named)

    read_yaml = parameters.read_yaml
    monkeypatch.setattr(parameters, "read_yaml", read)
    monkeypatch.setattr(store, "check_server", answers)
    # The second: its scores are held against the champion's, sample by sample.
    session = Session(project)
    rescore_champion(session, "candidate", print)
    assert promote(session, "candidate").moved
    assert sorted(asked) == ["params.yaml", "store"]


def test_outside_of_a_project_there_are_no_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    session = Session(cache_folder())
    assert session.project is None
    with pytest.raises(
        TrackingError, match=r"^params.yaml: .*/cache is a cache folder, .*; cd into a clone \(git clone URL\)"
    ):
        session.params  # noqa: B018


def test_prefect_is_told_nothing_of_what_a_session_holds(project: Path) -> None:
    from flows.promotion import promotion

    session = Session(project)
    assert session.client.tracking_uri
    assert promotion.serialize_parameters({"session": session, "version": "7"}) == {
        "session": "<Session>",
        "version": "7",
    }
