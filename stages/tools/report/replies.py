"""Held-out replies of two policies side by side: the best, the worst, and the changes between them,
with their frames.

The reader of the page selects the two policies; its samples are selected here, since their pictures
are most of its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import permutations, zip_longest
from pathlib import Path
from typing import Any

from stages.domain.core.prompts import render_question
from stages.domain.core.records import Sample, Score
from stages.domain.core.replies import parse_reply
from stages.lib.rows.jsonl import read_rows
from stages.lib.video.loader import FrameLoader
from stages.pages.render import film_strip, reference_text
from stages.params import Params
from stages.runtime import paths

#: Number of samples of each task that lead each list (best, worst, better, worse) of each pair of
#: policies, as long as pictures have room.
LEADING = 8
#: Limit of all film strips together, as text, in bytes.
PICTURE_BYTES = 3_000_000

#: Score of each sample, by policy and sample; None: not judged.
Values = Mapping[str, Mapping[str, float | None]]


def replies(root: Path, params: Params, samples: Sequence[Sample], loader: FrameLoader) -> dict[str, Any]:
    """Build the content of the page, ready for JSON: ``rows``, the default pair, ``counts`` of all
    samples, and the displayed samples.

    Args:
        samples: all that were evaluated.

    Raises:
        VideoError: a clip cannot be read.
    """
    said = {
        row: {score.sample_id: score for score in read_rows(root / paths.predictions_file(paths.scores(row)), Score)}
        for row in params.evaluation.of
    }
    values = {row: {name: score.value for name, score in scores.items()} for row, scores in said.items()}
    before, after = default_pair(params)
    by_id = {sample.sample_id: sample for sample in samples}
    task_of = {sample.sample_id: sample.task for sample in samples}
    strips, shown = _with_pictures(
        leading(values, task_of, before, after), lambda name: film_strip(loader.load(by_id[name]).pixels)
    )
    return {
        "rows": list(params.evaluation.of),
        "before": before,
        "after": after,
        "tasks": list(dict.fromkeys(task_of.values())),
        "evaluated": len(samples),
        "counts": changes(values, task_of),
        "strips": strips,
        "samples": [
            {
                "id": name,
                "task": by_id[name].task,
                "question": render_question(by_id[name].question, by_id[name].options, params.prompt),
                "reference": reference_text(by_id[name]),
                "strip": strip,
                "said": {row: reply(scores[name]) for row, scores in said.items() if name in scores},
            }
            for name, strip in shown
        ],
    }


def default_pair(params: Params) -> tuple[str, str]:
    """The cold start and the candidate; without a cold start, the first evaluated policy."""
    others = [row for row in params.evaluation.of if row != params.candidate]
    started = [row for row in params.sft if row in others]
    return (started or others or [params.candidate])[0], params.candidate


def changes(values: Values, task_of: Mapping[str, str]) -> dict[str, dict[str, dict[str, int]]]:
    """Count the samples that became better, worse, or stayed, by ``before>after`` and task; samples
    not judged in both are excluded."""
    counts_of_pair: dict[str, dict[str, dict[str, int]]] = {}
    for before, after in permutations(values, 2):
        counts = {task: {"better": 0, "worse": 0, "same": 0} for task in dict.fromkeys(task_of.values())}
        for name, task in task_of.items():
            old, new = values[before].get(name), values[after].get(name)
            if old is not None and new is not None:
                counts[task]["better" if new > old else "worse" if new < old else "same"] += 1
        counts_of_pair[f"{before}>{after}"] = counts
    return counts_of_pair


def leading(values: Values, task_of: Mapping[str, str], before: str, after: str) -> list[str]:
    """Order samples by priority: those that lead the lists of the default pair, then those of the
    others.

    Ties are broken by id only.
    """
    pairs = sorted(permutations(values, 2), key=lambda pair: pair != (before, after))
    ranked = [list(_lists(values, task_of, *pair)) for pair in pairs]
    first = [name for row in zip_longest(*(ranked[0] if ranked else [])) for name in row]
    rest = [name for row in zip_longest(*(names for lists in ranked[1:] for names in lists)) for name in row]
    return list(dict.fromkeys(name for name in (*first, *rest) if name is not None))


def _lists(values: Values, task_of: Mapping[str, str], before: str, after: str) -> Iterator[list[str]]:
    for task in dict.fromkeys(task_of.values()):
        rows = [(name, values[before].get(name), values[after].get(name)) for name, of in task_of.items() if of == task]
        changes_of = [(name, new, new - old) for name, old, new in rows if old is not None and new is not None]
        changes_of.sort(key=lambda row: sha256(row[0].encode()).digest())
        better = sorted((row for row in changes_of if row[2] > 0), key=lambda row: -row[2])
        worse = sorted((row for row in changes_of if row[2] < 0), key=lambda row: row[2])
        best, worst = sorted(changes_of, key=lambda row: -row[1]), sorted(changes_of, key=lambda row: row[1])
        yield from ([row[0] for row in chosen[:LEADING]] for chosen in (better, worse, best, worst))


def _with_pictures(names: Sequence[str], strip_of: Callable[[str], str]) -> tuple[list[str], list[tuple[str, int]]]:
    """Pictures, each once, and samples with the numbers of theirs, until the size limit is
    reached."""
    strips: dict[str, int] = {}
    selected: list[tuple[str, int]] = []
    taken = 0
    for name in names:
        strip = strip_of(name)
        if strip not in strips:
            taken += len(strip)
            if taken > PICTURE_BYTES:
                break
            strips[strip] = len(strips)
        selected.append((name, strips[strip]))
    return list(strips), selected


def reply(score: Score) -> dict[str, Any]:
    """Split a reply into its parts; ``thinking`` and ``answer`` are None if it has no such form."""
    parts = parse_reply(score.reply)
    return {
        "value": score.value,
        "thinking": parts.thinking if parts else None,
        "answer": parts.answer if parts else None,
        "text": None if parts else score.reply,
        "parts": {name: value for name, value in score.parts.items() if name != "native"},
        "reason": score.reason,
    }
