"""The file of answers: one evaluation writes it, and its lines are read back or reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.tools.suites.engines.answers import open_answers
from stages.tools.suites.engines.questions import Answer, EngineError, Question


def test_one_folder_takes_one_evaluation_at_a_time_and_no_strange_lines(tmp_path: Path) -> None:
    question = Question("1", "video", "a", "?")
    with open_answers(tmp_path, {"a": 1}, lambda _: "9c11") as answers:
        answers.add([Answer(question, 'two lines\u2028of it\nand "more"', 2, "")])
        with (
            pytest.raises(EngineError, match="another evaluation is writing"),
            open_answers(tmp_path, {"a": 1}, lambda _: "9c11"),
        ):
            pass
    with open_answers(tmp_path, {"a": 1}, lambda _: "9c11") as answers:
        assert answers.replies["video"] == {"1": 'two lines\u2028of it\nand "more"'}
        assert answers.pending([question, question._replace(view="blank")]) == {question._replace(view="blank")}
    with (tmp_path / "predictions.jsonl").open("a") as file:
        file.write('{"id": "2"}\n')
    with (
        pytest.raises(EngineError, match=r"predictions.jsonl:2: no reply of this command"),
        open_answers(tmp_path, {"a": 1}, lambda _: "9c11"),
    ):
        pass
    with (
        pytest.raises(EngineError, match=r"identity.json/in: cannot be made \(Not a directory\)"),
        open_answers(tmp_path / "identity.json/in", {}, lambda _: "9c11"),
    ):
        pass
    (tmp_path / "identity.json").unlink()
    with (
        pytest.raises(EngineError, match=r"holds predictions.jsonl but no identity.json"),
        open_answers(tmp_path, {"a": 1}, lambda _: "9c11"),
    ):
        pass
