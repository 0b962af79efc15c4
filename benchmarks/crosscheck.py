"""Comparison of the `compat` scores with the public harnesses' own functions, on replies made to
tell readings apart.

Run as `make crosscheck LMMS_EVAL=/path/to/lmms-eval VLMEVALKIT=/path/to/VLMEvalKit`, with git
clones of the two. Single functions are read from their HEAD and run by an interpreter of another
environment (.tools/crosscheck), from which this project cannot be imported.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.machine import keep
from stages.tools.suites.published.choices import (
    lmms_eval_answer,
    lmms_eval_letter,
    lmms_eval_spoken,
    vlmevalkit_letter,
    vlmevalkit_right,
)

WORKER = Path(__file__).with_name("crosscheck_worker.py")
#: Questions whose options differ in what a careless reading takes for an answer.
QUESTIONS: tuple[tuple[str, ...], ...] = (
    ("Apples", "Candles", "Berries", "The three kinds"),
    ("Moving to the left", "moving to the right.", "No, it stands", "a"),
    ("0", "1", "10", "2"),
    ("A dog", "B", "a cat and a dog", "Cannot be told"),
    ("not sure", "Yes", "No"),
)
RANDOM = 400
#: Replies whose outcomes are kept for the tests, of each function.
KEPT = 160


@dataclass(frozen=True)
class Subject:
    """A function of a harness: the files and names to read, the call with (reply, options, right),
    and our own reading.
    """

    name: str
    harness: str
    sources: tuple[tuple[str, tuple[str, ...]], ...]
    #: An expression of ``reply``, ``options`` and ``right``, the number of the right option.
    call: str
    ours: Callable[[str, tuple[str, ...], int], Any]
    #: Options taken as right, one after the other; ignored by a function that only extracts.
    rights: tuple[int, ...]


#: Preprocessing of every reply by lmms-eval before a rule sees it, with the tags that its command
#: line takes by default.
_STRIPS = ("lmms_eval/api/reasoning.py", ("strip_reasoning_tags",))
_STRIPPED = "strip_reasoning_tags(reply, [['<think>', '</think>'], ['<analysis>', '</analysis>']])"
_RANKS = ("_DEFAULT_CHOICES", "_ANSWER_PHRASES", "_FORMAT_PRIORITY")
_INFER = ("_VERBOSE_ANSWER_RE", "can_infer_option", "can_infer_text", "can_infer")
SUBJECTS = (
    Subject(
        "video-mme, lmms-eval: extract_mcq_answer",
        "lmms_eval",
        (_STRIPS, ("lmms_eval/tasks/_task_utils/mcq_extract.py", (*_RANKS, "extract_mcq_answer"))),
        f"extract_mcq_answer({_STRIPPED}, choices=['A', 'B', 'C', 'D'])",
        lambda reply, _options, _right: lmms_eval_letter(lmms_eval_spoken(reply), "ABCD"),
        (0,),
    ),
    Subject(
        "mvbench, lmms-eval: mcq_acc",
        "lmms_eval",
        (_STRIPS, ("lmms_eval/tasks/mvbench/utils.py", ("mcq_acc",))),
        f"bool(mcq_acc(chr(65 + right), {_STRIPPED}))",
        lambda reply, _options, right: lmms_eval_answer(lmms_eval_spoken(reply)) == lmms_eval_answer(chr(65 + right)),
        (0, 1),
    ),
    Subject(
        "video-mme, VLMEvalKit: extract_characters_regex",
        "vlmevalkit",
        (("vlmeval/dataset/utils/videomme.py", ("extract_characters_regex",)),),
        "extract_characters_regex(reply)",
        lambda reply, _options, _right: vlmevalkit_letter(reply),
        (0,),
    ),
    Subject(
        "mvbench, VLMEvalKit: check_ans_with_model without a model",
        "vlmevalkit",
        (
            ("vlmeval/utils/matching_util.py", _INFER),
            ("vlmeval/smp/misc.py", ("cn_string",)),
            ("vlmeval/smp/vlm.py", ("build_option_str",)),
            (
                "vlmeval/dataset/utils/multiple_choice.py",
                ("build_choices", "build_prompt", "build_prompt_cn", "extract_answer_from_item"),
            ),
            ("vlmeval/dataset/utils/mvbench.py", ("check_ans_with_model",)),
        ),
        "check_ans_with_model(reply, '(' + chr(65 + right) + ') ' + options[right], None, dict({chr(65 + i): one for i,"
        " one in enumerate(options)}, question='What is seen?', prediction=reply, answer=chr(65 + right)))",
        lambda reply, options, right: vlmevalkit_right(reply, options, right, right),
        (0, 1),
    ),
)

_ASIS = (
    "",
    " ",
    "\n",
    ".",
    "(",
    ")",
    "Z",
    "E",
    "Both",
    "I cannot say",
    "Because of it",
    "A man walks",
    "a man walks",
    "USA.",
    "ABC",
    "A B C D",
    "A, B",
    "A or B",
    "Answer: a",
    "answer is cat",
    "The answer is candles",
    "Cannot determine the answer",
    "C is said. Cannot determine the answer",
    "Sorry, I can't help with images of people yet.",
    "I'm sorry, but without the image provided, A",
    "Failed to obtain answer via API.",
    "Failed to obtain answer via API. B",
    "It costs 1,000 dollars, B",
    "3.5",
    "Best answer:Best option: D",
    "Z B",
    "I think Z",
    "The best option isThe correct option is B",
    "The correct option is",
    "İİ the answer is B then C",
    "Ａ",
    "B" * 5,
    "<think>A",
    "don't",
    "it's D'accord",
    "." * 40 + "x.B",
)
_WITH_LETTER = (
    "{L}",
    "{l}",
    "({L})",
    "({l})",
    "{L}.",
    "{L})",
    "{L}:",
    " {L} ",
    "'{L}'",
    '"{L}"',
    "**{L}**",
    "*{L}.*",
    "[{L}]",
    "{L}._",
    "{L}!",
    "{L}?",
    "{L}. {t}",
    "({L}) {t}",
    "{L}: {t}",
    "{L}\n{t}",
    "{L}. {t}\nmore",
    "{t}",
    "{t}.",
    "{T}",
    "It is {t}",
    "The answer is {L}",
    "the answer is {l}",
    "The best answer is: {L}",
    "the correct choice is {L} since D is not",
    "The answer is **{L}**.",
    "My choice is {L}",
    "I pick {L}, not A",
    "Option: {L}",
    "Answer:{L}",
    "Final answer: {L}",
    "Not A but {L}",
    "{L} or D",
    "A or {L}",
    "<think>A or B?</think><answer>{L}</answer>",
    "<think>{L}</think>",
    "<think>A</think>{L}",
    "A</think>so {L}",
    "<analysis>A <think>B</think></analysis>{L}",
    "<think>A</think>.<think>B</think>{L}",
    "정답은 {L}",
    "答案是{L}",
    "选{L}",
    "답: {L}",
    "{L} {L}",
    "{L}{L}",
    "the answer is {L}, or rather the answer is A",
    "After a long look at every frame of this video I would say {L}",
    "{t} is what I would say after a long look at every one of the frames of it",
    "{L} is what I would say after a long look at every frame of it",
)
_PIECES = (
    "A",
    "B",
    "C",
    "D",
    "E",
    "a",
    "b",
    "Z",
    "(A)",
    "(c)",
    "B.",
    "D)",
    "the answer is",
    "Answer:",
    "The best answer is",
    "I choose",
    "the",
    "man",
    "and",
    "Because",
    "not",
    "1,000",
    "2",
    ".",
    "...",
    "!",
    "-",
    "**",
    "_",
    "'",
    '"',
    "\n",
    "\t",
    "…",
    "apples",
    "moving to the right",
    "No",
    "<answer>",
    "<think>",
    "</think>",
    "</think>",
    "<analysis>",
    "</analysis>",
    "</answer>",
    "选",
    "정답은",
)


def replies(options: tuple[str, ...]) -> Iterator[str]:
    """Yield adversarial replies to a question with these options, the same in every run."""
    yield from _ASIS
    for i, option in enumerate(options):
        letter = chr(65 + i)
        for form in _WITH_LETTER:
            yield form.format(L=letter, l=letter.lower(), t=option, T=option.upper())
    rng = Random("/".join(options))
    for _ in range(RANDOM):
        yield rng.choice((" ", "", ", ", " ")).join(rng.choices(_PIECES, k=rng.randint(1, 9)))


def theirs(interpreter: Path, clone: Path, subject: Subject, rows: list[tuple[str, tuple[str, ...], int]]) -> list[Any]:
    sources = [(_at_head(clone, file), names) for file, names in subject.sources]
    order = json.dumps({"sources": sources, "call": subject.call, "rows": rows})
    done = subprocess.run(
        [interpreter, "-I", WORKER], input=order, stdout=subprocess.PIPE, text=True, check=True, timeout=300
    )
    return list(json.loads(done.stdout))


def _at_head(clone: Path, file: str) -> str:
    return _git(clone, "show", f"HEAD:{file}")


def _git(clone: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", clone, *arguments], capture_output=True, text=True, check=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.crosscheck", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--lmms-eval", type=Path, required=True, help="a git clone of EvolvingLMMs-Lab/lmms-eval")
    parser.add_argument("--vlmevalkit", type=Path, required=True, help="a git clone of open-compass/VLMEvalKit")
    parser.add_argument("--python", type=Path, required=True, help="an interpreter with pandas, of another environment")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/crosscheck.md"))
    parser.add_argument(
        "--keep", type=Path, help="a folder to keep replies with the harnesses' outcomes in, for the tests"
    )
    arguments = parser.parse_args()
    clones = {"lmms_eval": arguments.lmms_eval, "vlmevalkit": arguments.vlmevalkit}
    lines = ["| function | at | replies | same outcome | raised there |", "|---|---|--:|--:|--:|"]
    agreed = True
    for number, subject in enumerate(SUBJECTS):
        rows = [
            (reply, options, right)
            for options in QUESTIONS
            for reply in dict.fromkeys(replies(options))
            for right in subject.rights
        ]
        revision = _git(clones[subject.harness], "rev-parse", "--short=7", "HEAD").strip()
        found = theirs(arguments.python, clones[subject.harness], subject, rows)
        pairs = [(row, outcome, subject.ours(*row)) for row, outcome in zip(rows, found, strict=True)]
        raised = [row for row, outcome, _ in pairs if isinstance(outcome, dict)]
        unlike = [pair for pair in pairs if not isinstance(pair[1], dict) and pair[1] != pair[2]]
        agreed &= not unlike and not raised
        lines.append(
            f"| {subject.name} | {revision} | {len(rows):,} | {len(rows) - len(unlike) - len(raised):,} |"
            f" {len(raised):,} |"
        )
        for (reply, options, right), outcome, ours in unlike[:5]:
            print(
                f"{subject.name}: {reply!r} to {options}, right {right}: theirs {outcome!r}, ours {ours!r}",
                file=sys.stderr,
            )
        for row, outcome, _ in [pair for pair in pairs if isinstance(pair[1], dict)][:3]:
            print(f"{subject.name}: {row}: {outcome}", file=sys.stderr)
        if arguments.keep:
            some = Random(number).sample(pairs, KEPT)
            record = {
                "function": subject.name,
                "revision": revision,
                "rows": [[*row, outcome] for row, outcome, _ in some],
            }
            arguments.keep.mkdir(parents=True, exist_ok=True)
            file = arguments.keep / f"{subject.name.split(':')[0].replace(', ', '_').lower()}.json"
            rows_text = ",\n".join(json.dumps(row, ensure_ascii=False) for row in record["rows"])
            head = json.dumps({key: record[key] for key in ("function", "revision")})[:-1]
            file.write_text(f'{head}, "rows": [\n{rows_text}\n]}}\n', encoding="utf-8")
    verdict = "Every outcome is the same." if agreed else "SOME OUTCOMES DIFFER."
    lines = [
        f"What `compat` says beside the harnesses' own functions, on adversarial replies to {len(QUESTIONS)} questions."
        f" {verdict}",
        "",
        *lines,
    ]
    keep(lines, arguments.out)
    print("\n".join(lines))
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
