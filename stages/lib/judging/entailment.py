"""The entailment judge: a model of natural language inference (NLI) says what follows from what.

An answer is held against its reference in both directions. The reference must follow from the
answer (it says enough), and each sentence of the answer must follow from the reference, or consist
of claims that do or that entail it (it claims no further event). For captions an event must follow
from the caption, or from one of its sentences (SummaC, arXiv 2111.09525: inference models were
trained on sentences).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from stages.domain.core.records import Sample, Verdict
from stages.domain.core.words import words
from stages.domain.tasks.lexicon import SEPARATORS
from stages.lib.judging.local import DECIMALS, LocalJudge, Measured, Pair, sentences
from stages.lib.judging.weights import judge_device, reason_of, source_of, unavailable
from stages.params import EntailmentJudgeParams
from stages.runtime.endpoint.settings import JudgeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Pairs per forward pass.
_BATCH = 32
#: Labels of a model of inference.
LABELS = ("entailment", "neutral", "contradiction")


class InferenceModel:
    """Probabilities of entailment and contradiction."""

    kind = "inference"
    size = 2

    def __init__(
        self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, labels: Mapping[str, int]
    ) -> None:
        self.name = name
        self._model, self._tokenizer = model, tokenizer
        self._columns = [labels["entailment"], labels["contradiction"]]
        longest = getattr(model.config, "max_position_embeddings", None)
        self._longest = min(tokenizer.model_max_length, longest) if longest else tokenizer.model_max_length

    def measure(self, pairs: Sequence[Pair]) -> list[Measured]:
        import torch

        lengths = [
            len(ids)
            for ids in self._tokenizer(
                [pair.premise for pair in pairs], [pair.hypothesis for pair in pairs], truncation=False, verbose=False
            )["input_ids"]
        ]
        # Texts of about one length share a batch, so that little of it is padding.
        order = sorted((n for n in range(len(pairs)) if lengths[n] <= self._longest), key=lambda n: lengths[n])
        measured: list[Measured] = [None] * len(pairs)
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            inputs = self._tokenizer(
                [pairs[n].premise for n in batch],
                [pairs[n].hypothesis for n in batch],
                padding=True,
                truncation=False,
                return_tensors="pt",
            ).to(self._model.device)
            with torch.inference_mode():
                logits_BL = self._model(**inputs).logits
            rows = logits_BL.double().softmax(-1)[:, self._columns].cpu().tolist()
            for n, row in zip(batch, rows, strict=True):
                measured[n] = tuple(round(value, DECIMALS) for value in row)
        return measured


class EntailmentJudge(LocalJudge[EntailmentJudgeParams]):
    """Grades by what follows from what."""

    def covers(self, sample: Sample, answer: str) -> Verdict:
        """Grade 2 if answer and reference follow from each other, 1 if from one of them only and
        nothing is contradicted; a sentence about something else earns 0, whatever stands beside
        it."""
        return self._compared(sample.reference, answer, (0.0, 1.0, 1.0, 2.0))

    def right(self, sample: Sample, answer: str) -> Verdict:
        """Grade 1 if the reference follows from the answer, which says nothing about something else
        and contradicts nothing. Both are read behind the question, which short answers need."""
        question = f"{sample.question} " if sample.question else ""
        return self._compared(sample.reference, answer, (0.0, 0.0, 1.0, 1.0), question)

    def entailed(self, event: str, caption: str) -> Verdict:
        """Grade 1 if the event follows from the caption or from one of its sentences."""
        whole, parts = caption.strip(), sentences(caption)
        if len(parts) == 1:
            parts = [whole]
        measured = {premise: self._pairs.of(Pair(premise, event)) for premise in ([whole, *parts] if parts else [])}
        best = max((values[0] for values in measured.values() if values is not None), default=0.0)
        # A caption that is too long as a whole is read sentence by sentence.
        if best < self.params.threshold and any(measured[part] is None for part in parts):
            return self._too_long()
        return self._scored(float(best >= self.params.threshold), f"P(entailment) {best:.2f}")

    def _compared(self, reference: str, answer: str, grades: Sequence[float], before: str = "") -> Verdict:
        """Grade an answer. ``grades``: for neither, for an answer that follows from the reference
        only, for one that entails it only, for both."""
        parts = sentences(answer)
        if not parts:
            return self._scored(0.0, "says nothing")
        least, true = self.params.threshold, f"{before}{reference}"
        backward = self._pairs.of(Pair(f"{before}{answer.strip()}", true))
        follows, covers, contradicted = True, False, False
        for part in parts:
            forward = self._pairs.of(Pair(true, f"{before}{part}"))
            if forward is None or backward is None:
                return self._too_long()
            contradicted |= forward[1] >= least
            if forward[0] >= least:
                continue
            # More than the reference tells, or something else: each claim of it must be about it.
            follows = False
            for claim in claims(part):
                ahead, back = (
                    self._pairs.of(Pair(*pair)) for pair in ((true, f"{before}{claim}"), (f"{before}{claim}", true))
                )
                if ahead is None or back is None:
                    return self._too_long()
                if ahead[0] < least and back[0] < least:
                    kind = "contradicts the reference" if ahead[1] >= least else "claims something else"
                    return self._scored(0.0, f"{kind}: {claim:.80}")
                covers |= back[0] >= least
        assert backward is not None
        covers |= backward[0] >= least
        if contradicted and not (follows and covers):
            return self._scored(0.0, "contradicts the reference")
        return self._scored(grades[follows + 2 * covers], f"entails the reference {backward[0]:.2f}")


def claims(sentence: str) -> list[str]:
    """Split a sentence at its separators, where a list of guesses has them; those that hold a
    word."""
    return [claim.strip() for claim in SEPARATORS.split(sentence) if words(claim)]


def load_inference(params: EntailmentJudgeParams, field: str) -> InferenceModel:
    """Load a sequence-classification model with the labels of NLI: safetensors only, no code of its
    own, in float32, on the GPU if there is one.

    Raises:
        JudgeError: it cannot be loaded, has no trained classifier, or does not name its labels.
    """
    # Imported here: they take seconds, which other judges should not pay.
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    source = source_of(params.model)
    pinned = {"revision": params.revision, "trust_remote_code": False}
    try:
        labels = labels_of(AutoConfig.from_pretrained(source, **pinned).id2label, params.model, field)
        tokenizer = AutoTokenizer.from_pretrained(source, **pinned)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **pinned
        )
    except (OSError, ValueError) as error:
        if isinstance(error, JudgeError):
            raise
        raise unavailable(params, field, "a sequence-classification model", reason_of(error)) from error
    if missing := sorted(info["missing_keys"]):
        raise JudgeError(
            f"{field}.model",
            f"{params.model!r} lacks trained weights ({', '.join(missing[:3])}): it is a base model",
            "name a model that was trained on natural language inference (NLI)",
        )
    return InferenceModel(f"{params.model}@{params.revision}", model.to(judge_device()).eval(), tokenizer, labels)


def labels_of(id2label: Mapping[int, str], model: str, field: str) -> dict[str, int]:
    """Map each of :data:`LABELS` to its column.

    Raises:
        JudgeError: the model does not name one of them.
    """
    columns = {str(label).casefold(): int(number) for number, label in id2label.items()}
    if missing := [label for label in LABELS if label not in columns]:
        raise JudgeError(
            f"{field}.model",
            f"{model!r} has no label {', '.join(missing)} (id2label: {', '.join(map(str, id2label.values()))})",
            "name a model of natural language inference with three labels, or write their names into id2label of its"
            " config.json",
        )
    return {label: columns[label] for label in LABELS}
