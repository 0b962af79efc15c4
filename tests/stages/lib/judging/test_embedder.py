"""The T-score's embedders: words in common, and the real sentence-transformers on a small BERT
trained on a few paraphrases here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.domain.core.records import Subject
from stages.domain.core.replies import render_analysis, render_reply
from stages.domain.tasks.rewards import Embedder
from stages.domain.tasks.structured_caption import thinking_score
from stages.lib.evaluation.held_out import evaluation_digest
from stages.lib.judging import embedder
from stages.lib.judging.batch import score_replies
from stages.lib.judging.build import embedder_of, referee_of
from stages.lib.judging.embedder import EmbedderError, LexicalEmbedder, SentenceEmbedder, load_embedder
from stages.params import Params, ParamsError, parse_params
from tests.support.builders import SAMPLES, clip, rules
from tests.support.checkout import ROOT

RECIPE = ROOT / "infra/recipes/tiny.yaml"
#: Phrases that mean the same, a line each; no two in a line share a word.
MEANINGS = (
    ("rises", "goes up", "climbs"),
    ("falls", "sinks down", "drops"),
    ("grows", "gets bigger", "swells"),
    ("shrinks", "becomes smaller", "dwindles"),
    ("bar", "rod"),
    ("circle", "disc"),
    ("red", "crimson"),
    ("blue", "azure"),
)
WORDS = sorted({word for line in MEANINGS for phrase in line for word in phrase.split()})


def build(folder: Path) -> Path:
    """A folder as the hub has it: word pieces, BERT, mean pooling, norm 1. Trained with the
    library's own loss for a second."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **shape)).save_pretrained(
            folder / "bert"
        )
        tokenizer.save_pretrained(folder / "bert")
        bert = Transformer(str(folder / "bert"), max_seq_length=64)
        model = SentenceTransformer(modules=[bert, Pooling(32, "mean"), Normalize()], device="cpu")
        loss, optimiser = MultipleNegativesRankingLoss(model), torch.optim.Adam(model.parameters(), lr=3e-3)
        for step in range(30):
            pairs = [list(combinations(line, 2))[step % len(list(combinations(line, 2)))] for line in MEANINGS]
            features = [model.preprocess([pair[side] for pair in pairs]) for side in (0, 1)]
            optimiser.zero_grad()
            loss(features, None).backward()
            optimiser.step()
    model.save(str(folder / "model"), create_model_card=False)
    return folder / "model"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("embedder") / "made")


@pytest.fixture(scope="module", params=["lexical", "sentence_transformers"])
def either(request: pytest.FixtureRequest, folder: Path) -> Embedder:
    return LexicalEmbedder() if request.param == "lexical" else load_embedder(str(folder), "here")


def parsed(**likeness: str) -> Params:
    raw = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    return parse_params(raw | {"rewards": raw["rewards"] | {"embedder": likeness}})


PHRASES = st.lists(
    st.one_of(st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join), st.text(max_size=20)), max_size=5
)


@settings(deadline=None)
@given(these=PHRASES, those=PHRASES)
def test_similarities_are_shares_the_same_both_ways_round(either: Embedder, these: list[str], those: list[str]) -> None:
    table = either.similarities(these, those)
    assert table.shape == (len(these), len(those))
    assert ((table >= 0) & (table <= 1)).all()
    assert np.array_equal(table, either.similarities(those, these).T)
    assert np.array_equal(table, either.similarities(these, those))
    assert (np.diag(either.similarities(these, these)) == 1).all()


SUBJECTS = st.lists(
    st.builds(
        Subject,
        name=st.sampled_from(WORDS),
        attributes=st.lists(st.sampled_from(WORDS), max_size=3).map(tuple),
        actions=st.lists(st.sampled_from(WORDS), max_size=3).map(tuple),
    ),
    max_size=4,
)


@settings(deadline=None)
@given(predicted=SUBJECTS, reference=SUBJECTS.filter(bool))
def test_the_reference_scores_the_maximum_and_nothing_leaves_the_range(
    either: Embedder, predicted: list[Subject], reference: list[Subject]
) -> None:
    assert thinking_score(reference, reference, either, 0.5)["thinking"] == pytest.approx(1.0)
    assert 0 <= thinking_score(predicted, reference, either, 0.5)["thinking"] <= 1


def test_a_model_knows_words_for_the_same_thing(folder: Path) -> None:
    learned, lexical = load_embedder(str(folder), "here"), LexicalEmbedder()
    said = ["goes up", "swells", "crimson"]
    meant = ["rises", "grows", "red", "falls", "shrinks", "blue"]
    table = learned.similarities(said, meant)
    assert table.argmax(axis=1).tolist() == [0, 1, 2]
    assert not lexical.similarities(said, meant).any()
    paraphrase = [Subject(name="rod", attributes=("crimson",), actions=("goes up", "swells"))]
    other = [Subject(name="rod", attributes=("azure",), actions=("sinks down", "dwindles"))]
    reference = clip(0).subjects
    scores = [thinking_score(said, reference, learned, 0.5)["thinking"] for said in (reference, paraphrase, other)]
    assert 1 == scores[0] >= scores[1] > scores[2]
    assert scores[1] > 0.5
    assert thinking_score(paraphrase, reference, lexical, 0.5)["thinking"] == 0


def test_a_reply_is_scored_by_the_model_that_params_name(folder: Path) -> None:
    sample = SAMPLES["structured_caption"]
    thinking = render_analysis((Subject(name="rod", attributes=("crimson",), actions=("goes up", "swells")),))
    reply = render_reply(thinking, sample.reference)

    def value(**likeness: str) -> float:
        params = parsed(**likeness)
        (score,) = score_replies([sample], [reply], referee_of(params), params.rewards)
        assert score.value is not None
        return score.value

    lexical, learned = value(kind="lexical"), value(kind="sentence_transformers", model=str(folder), revision="here")
    assert lexical == 0.5, "the caption alone"
    assert 0.75 < learned <= 1


class Counting:
    """The model, and its inputs."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.calls: list[list[str]] = []

    def encode(self, phrases: list[str], **how: Any) -> Any:
        self.calls.append(phrases)
        return self.model.encode(phrases, **how)


@pytest.fixture
def counting(folder: Path) -> Counting:
    return Counting(load_embedder(str(folder), "here")._model)


def test_a_phrase_is_embedded_once_and_the_new_ones_of_a_call_together(counting: Counting) -> None:
    asked = SentenceEmbedder(counting)  # type: ignore[arg-type]
    asked.similarities(["rises", "falls", "rises"], ["falls", "red"])
    asked.similarities(["red"], ["rises"])
    asked.similarities(["red", "blue"], ["rises", "blue", "bar"])
    assert asked.similarities([], ["never seen"]).shape == (0, 1)
    assert counting.calls == [["rises", "falls", "red"], ["blue", "bar"]]


def test_no_more_phrases_are_kept_than_there_is_room_for(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder, "_KEPT", 2)
    asked = SentenceEmbedder(counting)  # type: ignore[arg-type]
    first = asked.similarities(["rises", "falls", "grows"], ["red"])
    asked.similarities(["grows"], ["red"])
    assert np.array_equal(asked.similarities(["rises", "falls", "grows"], ["red"]), first)
    assert counting.calls == [["rises", "falls", "grows", "red"], ["rises", "falls"]]


def test_a_similarity_does_not_depend_on_what_was_embedded_beside(folder: Path) -> None:
    together = load_embedder(str(folder), "here").similarities(WORDS, WORDS)
    alone = load_embedder(str(folder), "here")
    for phrase in WORDS:
        alone.similarities([phrase], [phrase])
    assert np.allclose(alone.similarities(WORDS, WORDS), together, rtol=0, atol=1.01e-4)
    assert (alone.similarities(WORDS, WORDS) == together).mean() > 0.99


@pytest.mark.parametrize("offline", [True, False])
def test_a_model_that_is_not_there_is_named_with_what_to_do(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    plain_bert = folder.parent / "bert"
    places: Sequence[str] = ["nobody/has-this", str(plain_bert)] if offline else [str(plain_bert), str(tmp_path)]
    for place in places:
        with pytest.raises(EmbedderError) as raised:
            load_embedder(place, "0123abc")
        said = str(raised.value)
        assert said.startswith(
            f"rewards.embedder.model: {place!r} at rewards.embedder.revision '0123abc' cannot be loaded"
        )
        assert ("unset it once to download" in said) == offline
        assert "embedder: {kind: lexical}" in said


def test_params_say_which_field_is_wrong() -> None:
    for likeness, message in (
        ({"kind": "glove"}, "params: rewards.embedder: "),
        ({"kind": "sentence_transformers", "model": "m"}, "params: rewards.embedder.revision: missing"),
        ({"kind": "lexical", "model": "m"}, "params: rewards.embedder.model: unknown key"),
    ):
        with pytest.raises(ParamsError) as raised:
            parsed(**likeness)
        assert str(raised.value).startswith(message)
    assert isinstance(embedder_of(rules().embedder), LexicalEmbedder)


def test_the_embedder_that_a_recipe_suggests_can_be_named() -> None:
    text = (RECIPE.parent / "videocap-r1.yaml").read_text(encoding="utf-8")
    (line,) = [line.split("# embedder: ")[1] for line in text.splitlines() if "# embedder: " in line]
    assert parsed(**yaml.safe_load(line)).rewards.embedder.kind == "sentence_transformers"


def test_scores_of_two_embedders_are_not_compared() -> None:
    samples = [SAMPLES["structured_caption"]]
    named = {"kind": "sentence_transformers", "model": "m", "revision": "1"}
    digests = {
        evaluation_digest(parsed(**one), samples) for one in ({"kind": "lexical"}, named, {**named, "revision": "2"})
    }
    assert len(digests) == 3
