"""Tasks of a project's own: what loads, what is refused, and what is never scored."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.domain.core.records import Sample
from stages.domain.core.replies import render_reply
from stages.domain.tasks import TASK_NAMES, TASKS, every_task, task_of
from stages.domain.tasks.scoring import score_reply
from stages.domain.tasks.synthesis import TaskSettings, synthesise
from stages.lib.evaluation.held_out import evaluation_digest
from stages.params import Params, ParamsError, load_params, parse_params
from stages.params.guards import OwnTaskError
from stages.params.own_tasks import load_own_tasks, names_own_tasks
from tests.support.builders import REFEREE, SAMPLES, clip, rules
from tests.support.checkout import ROOT
from tests.support.projects.own_tasks import lay_out, loaded


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return lay_out(tmp_path / "own")


@pytest.fixture
def params(root: Path) -> Iterator[Params]:
    with loaded(root) as found:
        yield found


def edit(file: Path, *changes: tuple[str, str]) -> None:
    text = file.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)


def counted(number: float = 3, **changes: Any) -> Sample:
    """A sample of `count`, whose task is loaded."""
    settings = TaskSettings.model_validate({"count": {"per_clip": 1, "tolerance": 0.5}})
    asked = {"question": "how many ?", "number": number, **changes}
    ((_, (sample,), _),) = synthesise([clip(answers={"count": (asked,)})], "count", settings, 8, 7)
    return sample


def replied(sample: Sample, answer: str) -> float | None:
    return score_reply(sample, render_reply("so", answer), REFEREE, rules()).value


def test_own_tasks_stand_wherever_ours_do(params: Params) -> None:
    names = ("count", "grounding", "ocr")
    assert params.synthesize.tasks.named == names
    assert params.grpo["own"].trained_tasks == names
    assert [task.name for task in every_task()] == [*TASK_NAMES, *names]
    raw = params.model_dump(mode="json")
    raw["gate"]["scores"] = ["ocr"]
    raw["sft"]["cold-start"]["brief_share"] = {"count": 0.5}
    raw["grpo"]["own"]["tasks"] = {"grounding": 1}
    assert parse_params(raw, root=_root()).gate.scores == ("ocr",)


def _root() -> Path:
    return Path(sys.modules["tasks.count"].__file__ or "").parents[1]


def test_other_parameters_know_them_no_more(root: Path) -> None:
    with loaded(root):
        assert task_of("count").title == "counting"
        load_params(ROOT / "infra/recipes/smoke.yaml")
        with pytest.raises(ValueError, match=r"'count' is not a task; name one of .*, or the module that defines it"):
            task_of("count")


def test_modules_run_again_after_an_edit_only_and_import_each_other(root: Path) -> None:
    (root / "tasks/shared.py").write_text("TITLE = 'one'\n")
    edit(
        root / "tasks/count.py",
        ("import re\n", "import re\n\nfrom tasks.shared import TITLE\n"),
        ('title="counting"', "title=TITLE"),
    )
    with loaded(root):
        first = task_of("count")
        load_params(root / "params.yaml")
        assert task_of("count") is first
        (root / "tasks/shared.py").write_text("TITLE = 'two'\n")
        load_params(root / "params.yaml")
        assert task_of("count").title == "two"
    assert not list(root.rglob("__pycache__"))


def test_settings_bring_their_tasks_into_another_process(root: Path) -> None:
    with loaded(root) as params:
        sent = pickle.dumps(params.synthesize.tasks)
    assert every_task() == TASKS  # as in a process that has loaded nothing
    try:
        received = pickle.loads(sent)
        assert (received.named, received.count.tolerance) == (("count", "grounding", "ocr"), 0.0)
        assert task_of("ocr").title == "reading"
    finally:
        load_own_tasks(root, ())


IN_COUNT = {
    "import nothing_here\n": r"'tasks/count.py' cannot be imported: ModuleNotFoundError: No module named"
    r" 'nothing_here' \(tasks/count.py, line 1\)",
    "x = (\n": r"cannot be imported: SyntaxError: '\(' was never closed \(tasks/count.py, line 1\)",
    "def f():\n    return 1 / 0\n\n\nf()\n": r"ZeroDivisionError: division by zero \(tasks/count.py, line 2\)",
    "raise SystemExit(3)\n": r"SystemExit: 3 \(tasks/count.py, line 1\)",
    "TITLE = 1\n": r"'tasks/count.py' defines no task; end it in TASK = Task\(...\)",
    "TASKS = ()\n": "defines no task",
    "TASKS = (1,)\n": "lists int among its tasks",
}


@pytest.mark.parametrize("text", IN_COUNT)
def test_a_module_that_cannot_be_used_is_named_with_its_line(root: Path, text: str) -> None:
    (root / "tasks/count.py").write_text(text)
    with pytest.raises(ParamsError, match=f"^tasks.module: .*{IN_COUNT[text]}"), loaded(root):
        pass


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('NAME = "count"', 'NAME = "mcqa"', "defines task 'mcqa', which vidbridge has already"),
        ('NAME = "count"', 'NAME = "ocr"', "tasks/ocr.py' defines task 'ocr', which tasks/count.py has already"),
        ('NAME = "count"', 'NAME = "Count it"', "a task named 'Count it'; write lower-case letters"),
        ("settings=Settings", "settings=dict", "with settings <class 'dict'>; write settings, a subclass of"),
        ("score=score", "score=None", "with score None; write score, a function"),
        ('answer="value"', 'answer="number"', "with answer 'number'; write answer, one of letter, statement"),
        ("answers=Counted", "answers=int", "with answers <class 'int'>; write answers, a subclass of Record"),
        ("all_or_nothing=True", "all_or_nothing=True, analysed=True", "with analysed True; remove it"),
        ("TASK = Task", "TASKS = 2 * (Task", "was never closed"),
    ],
)
def test_a_definition_that_is_not_complete_is_refused(root: Path, old: str, new: str, problem: str) -> None:
    edit(root / "tasks/count.py", (old, new))
    with pytest.raises(ParamsError, match=f"^tasks.module: '.*{problem}"), loaded(root):
        pass


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        ("my_task.py", r"params.yaml: tasks.module: lies outside of .*tasks/.* \(value 'my_task.py'\); move it there"),
        ("[tasks/../x.py]", "tasks.module.0: lies outside"),
        ("/etc/x.py", "tasks.module: lies outside"),
        ("[]", r"tasks.module: not a module \(value \[\]\); write tasks/NAME.py, a list of such files, or null"),
        ("3", "tasks.module: not a module"),
        ("tasks/none.py", "'tasks/none.py' does not exist in .*; correct its name, or write null"),
        ("[tasks/ocr.py, tasks/ocr.py]", "tasks.module: 'tasks/ocr.py' is listed twice; remove one of them"),
        ("null", "synthesize.tasks.count: 'count' is not a task; name one of dark_event_infer, .*: tasks.module"),
    ],
)
def test_a_name_of_no_module_is_refused(root: Path, module: str, problem: str) -> None:
    given = "[tasks/count.py, tasks/grounding.py, tasks/ocr.py]"
    edit(root / "params.yaml", (f"module: {given}", f"module: {module}"))
    with pytest.raises(ParamsError, match=problem), loaded(root):
        pass


@pytest.mark.parametrize("table", ["{modules: tasks/count.py}", "{module: count.py}", "tasks/count.py"])
def test_names_of_tasks_are_no_faults_where_the_table_of_modules_is_one(root: Path, table: str) -> None:
    edit(
        root / "params.yaml",
        ("tasks: {module: [tasks/count.py, tasks/grounding.py, tasks/ocr.py]}", f"tasks: {table}"),
        ("seed: 7", "seed: -7"),
    )
    with pytest.raises(ParamsError) as caught, loaded(root):
        pass
    assert "params.yaml: tasks" in str(caught.value)
    assert "params.yaml: seed: " in str(caught.value)
    assert "is not a task" not in str(caught.value)


def test_wrong_settings_and_names_are_told_by_their_key(root: Path) -> None:
    edit(root / "params.yaml", ("count: {per_clip: 1, tolerance: 0}", "count: {per_clip: 1, tolerance: -2, more: 1}"))
    with pytest.raises(ParamsError) as caught, loaded(root):
        pass
    assert "synthesize.tasks.count.tolerance: Input should be greater than or equal to 0 (value -2)" in str(
        caught.value
    )
    assert "synthesize.tasks.count.more: unknown key (value 1)" in str(caught.value)


SCORES = {
    "return TaskScore(value=right, maximum=1.0)": None,
    "return {}['no']": r"KeyError: 'no' \(tasks/count.py, line \d+\); correct score",
    "return TaskScore(value=float('nan'), maximum=1.0)": "value nan; return a number from 0 to the maximum, 1",
    "return TaskScore(value=1.5, maximum=1.0)": "value 1.5; return a number from 0 to the maximum, 1",
    "return TaskScore(value=-0.5, maximum=1.0)": "value -0.5",
    "return TaskScore(value=1.0, maximum=float('inf'))": "maximum inf",
    "return TaskScore(value=1, maximum=1, parts={'a': float('nan')})": r"maximum 1, parts \{'a': nan\}; return finite",
    "return TaskScore(value=1.0, maximum=0)": r"TaskScore.maximum: Input should be greater than 0 \(tasks/count.py",
    "return right": "returned 1.0; return TaskScore",
}


@pytest.mark.parametrize("line", SCORES)
def test_a_reward_that_fails_is_an_error_that_names_the_sample(root: Path, line: str) -> None:
    file = root / "tasks/count.py"
    edit(file, ("    return TaskScore(", f"    {line}\n    return TaskScore("))
    with loaded(root):
        sample, problem = counted(), SCORES[line]
        if problem is None:
            assert replied(sample, "3") == 1.0
            return
        with pytest.raises(
            OwnTaskError, match=f"(?s)^count.score: sample 'count/c0/0', answer '3': {problem}"
        ) as caught:
            replied(sample, "3")
        assert "nothing is scored 0 for it" in str(caught.value)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("samples = []", "samples = [clip.nothing]", r"AttributeError: .* \(tasks/count.py, line \d+\); correct make"),
        ("return samples, []", "return samples", "returned .*; return two lists"),
        ("return samples, []", "return samples, [1]", "returned 1 among the rejects"),
        ("return samples, []", "return [1], []", "sample 0: 1 is not a Sample"),
        ("return samples, []", "return 2 * samples, []", "two samples with one id"),
        ("sample_of(NAME, ", "sample_of('ocr', ", "sample 0: 'ocr/c0/0' is of ocr, train, c0, not of count"),
        (
            'answer, key = f"{one.number:.6g}"',
            'answer, key = "three"',
            "sample 0: reference 'three' of 'count/c0/0' is not a number",
        ),
    ],
)
def test_samples_that_are_not_right_are_an_error_that_names_the_clip(
    root: Path, old: str, new: str, problem: str
) -> None:
    edit(root / "tasks/count.py", (old, new))
    with loaded(root), pytest.raises(OwnTaskError, match=f"(?s)^count.make: clip 'c0': {problem}"):
        counted()


def test_a_reader_of_answers_that_raises_is_an_error_too(root: Path) -> None:
    edit(root / "tasks/count.py", ("return float(answer) if", "return float(answer) if answer == '7' or"))
    with loaded(root):
        assert replied(counted(), "3") == 1.0
    edit(root / "tasks/count.py", ("answer == '7' or", "answer[9] or"))
    with loaded(root), pytest.raises(OwnTaskError, match=r"^count.form: answer '3': IndexError: .*parse"):
        counted()


def test_an_answer_without_the_form_fails_the_format_gate(params: Params) -> None:
    score = score_reply(counted(), render_reply("so", "three bars"), REFEREE, rules())
    assert (score.format_ok, score.value, score.reason) == (False, 0.0, "the answer is not a number")


def test_answers_of_another_form_are_a_reject_of_the_clip(params: Params) -> None:
    settings = params.synthesize.tasks

    def rejected(task: str, answers: object) -> str:
        ((_, samples, (reject,)),) = synthesise([clip(answers=answers)], task, settings, 8, 7)
        assert (samples, reject.reason, reject.item) == ([], "bad-answers", "c0")
        return reject.detail

    assert rejected("count", {"count": ({"question": "?", "number": 1}, {"question": "?", "number": "x"})}) == (
        "answers.count.1.number: Input should be a valid number, unable to parse string as a number (value 'x'); an"
        " object has the fields question, number"
    )
    assert "answers.ocr.0.txt: Extra inputs are not permitted" in rejected("ocr", {"ocr": ({"text": "a", "txt": "b"},)})
    ((_, samples, (reject,)),) = synthesise([clip()], "count", settings, 8, 7)
    assert (samples, reject.reason) == ([], "no-number")


def test_a_task_of_ours_refuses_answers_for_it() -> None:
    ours = TaskSettings.model_validate({"caption": {"per_clip": 1}})
    ((_, samples, (reject,)),) = synthesise([clip(answers={"caption": ({"a": 1},)})], "caption", ours, 8, 7)
    assert samples == []
    assert reject.detail == "answers.caption: the task reads none (value {'a': 1}); remove it from the row"


def test_scores_by_another_reward_are_of_another_evaluation(root: Path) -> None:
    with loaded(root) as params:
        sample = counted()
        own, ours = evaluation_digest(params, [sample]), evaluation_digest(params, [SAMPLES["mcqa"]])
    edit(root / "tasks/count.py", ("<= truth.error", "< truth.error"))
    with loaded(root) as params:
        assert evaluation_digest(params, [sample]) != own
        assert evaluation_digest(params, [SAMPLES["mcqa"]]) == ours
    (root / "tasks/count.py").write_text((root / "tasks/count.py").read_text() + "# a remark\n")
    with loaded(root) as params:
        assert evaluation_digest(params, [SAMPLES["mcqa"]]) == ours


def test_a_watched_cold_start_depends_on_the_code_that_scores_it(root: Path) -> None:
    table = yaml.safe_load((root / "params.yaml").read_text())
    watch = {"every": 150, "samples_per_task": 4, "max_new_tokens": 8, "sampled": None, "keep": "best"}
    watch |= {"judge": table["judge"], "rewards": table["rewards"], "own_tasks": None}
    table["sft"]["cold-start"]["watch"] = watch

    def wanted() -> str:
        (root / "params.yaml").write_text(yaml.safe_dump(table))
        with (
            pytest.raises(
                ParamsError, match=r"watch\.own_tasks: .*, and the code of its tasks differs.*; write '"
            ) as raised,
            loaded(root),
        ):
            pass
        return str(raised.value).rpartition("; write ")[2].strip("'")

    watch["own_tasks"] = before = wanted()
    (root / "params.yaml").write_text(yaml.safe_dump(table))
    with loaded(root) as params:
        assert set(params.sft["cold-start"].trained_tasks) == {"count", "grounding", "ocr"}
    edit(root / "tasks/count.py", ("<= truth.error", "< truth.error"))
    assert wanted() != before


def test_rows_without_the_new_fields_are_what_they_were() -> None:
    assert "truth" not in SAMPLES["mcqa"].model_dump()
    assert "answers" not in clip().model_dump()


def test_a_repository_elsewhere_is_asked_for_names_and_not_run() -> None:
    assert names_own_tasks({"tasks": {"module": "tasks/x.py"}})
    assert not names_own_tasks({"tasks": {"module": None}})
    assert not names_own_tasks({"recipe": "smoke"})
    assert not names_own_tasks("text")
