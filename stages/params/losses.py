"""Parameters of the loss of a GRPO row, and rules about which of them have an effect together."""

from __future__ import annotations

from typing import Literal, Protocol

from pydantic import Field, model_validator

from stages.domain.rl.shaping import OverlongPenalty, TemporalContrast
from stages.params.sampling import Oversampling
from stages.params.types import Positive, Table, Weight


class CispoLoss(Table):
    """Loss -min(r, ceiling) A log p for each token, with no gradient through the ratio r (CISPO:
    MiniMax-M1, arXiv 2506.13585, with the one bound of ScaleRL, arXiv 2510.13786).

    Unlike clipping, it keeps the gradient of every token. Terms are divided as under ``dapo``.
    ScaleRL uses 5.0.
    """

    cispo_ceiling: float = Field(gt=1)


class SapoLoss(Table):
    """Loss -4 / t sigmoid(t (r - 1)) A for each token, a soft gate in place of clipping (SAPO,
    arXiv 2511.20347).

    t is the first temperature where the advantage A is above 0, else the second. Terms are divided
    as under ``grpo``. The paper uses 1.0 and 1.05.
    """

    sapo_positive: Positive
    sapo_negative: Positive


class EntropyParams(Table):
    """What the entropy of the policy, token by token, does to the loss."""

    #: Weight of the mean entropy of the trained tokens of a generation, which is subtracted from
    #: the loss; 0: no bonus.
    bonus: Weight
    #: Fraction of a generation's tokens that are trained, those with the highest entropy (arXiv
    #: 2506.01939, which uses 0.2); 1: all. Costs one more forward pass over the rollouts.
    top_share: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def _does_something(self) -> EntropyParams:
        if not self.bonus and self.top_share == 1:
            raise ValueError("entropy: bonus 0 and top_share 1 change nothing; write entropy null")
        return self


class MixedPolicy(Table):
    """One written reply in each group of a sample that has a trace, beside G - 1 rollouts (LUFFY,
    arXiv 2504.14945): its importance ratio is p / (p + ``gamma``), and it is never clipped.

    The paper uses 0.1.
    """

    gamma: Positive


#: Losses with clipped ratios; they differ in the divisor of the sum of terms.
ClippedLoss = Literal["grpo", "dr_grpo", "dapo", "bnpo"]
Loss = ClippedLoss | CispoLoss | SapoLoss


class LossOfARow(Protocol):
    """The keys of a GRPO row that the rules below are about."""

    @property
    def loss(self) -> Loss: ...
    @property
    def importance(self) -> Literal["token", "sequence"]: ...
    @property
    def epsilon(self) -> float | None: ...
    @property
    def epsilon_high(self) -> float | None: ...
    @property
    def delta(self) -> float | None: ...
    @property
    def iterations(self) -> int: ...
    @property
    def max_completion_tokens(self) -> int: ...
    @property
    def oversample(self) -> Oversampling | None: ...
    @property
    def overlong(self) -> OverlongPenalty | None: ...
    @property
    def mixed(self) -> MixedPolicy | None: ...
    @property
    def temporal_contrast(self) -> TemporalContrast | None: ...


def fault_of_loss(row: LossOfARow) -> str | None:
    """Name the first key of a row's loss that has no effect or a wrong one, with the remedy; None:
    there is none."""
    return _fault_of_ratios(row) or _fault_with_one_update(row) or _fault_of_additions(row)


def _fault_of_ratios(row: LossOfARow) -> str | None:
    if isinstance(row.loss, str):
        for key, value in (("epsilon", row.epsilon), ("epsilon_high", row.epsilon_high)):
            if value is None:
                return f"{key}: null, but loss {row.loss!r} clips ratios; write a number such as 0.2"
        assert row.epsilon_high is not None
        if row.delta is not None and row.delta <= 1 + row.epsilon_high:
            return (
                f"delta: {row.delta:g} acts as {1 + row.epsilon_high:g}, where epsilon_high clips already; write more"
                " than that, or delta null"
            )
    else:
        name = _name(row.loss)
        for key, value in (("epsilon", row.epsilon), ("epsilon_high", row.epsilon_high), ("delta", row.delta)):
            if value is not None:
                return f"{key}: {value:g} has no effect under loss {name}, which does not clip so; write {key} null"
    if row.importance == "sequence" and row.loss != "grpo":
        return (
            f"importance: 'sequence' needs loss 'grpo', found {_name(row.loss)!r}: a reply's one ratio would be"
            " counted once a token"
        )
    return None


def _fault_with_one_update(row: LossOfARow) -> str | None:
    if row.iterations > 1 or (row.oversample is not None and row.oversample.max_lag):
        return None
    # With one update per generation each ratio is 1: nothing is clipped, and the gradient of a
    # reply's ratio, divided by its tokens as loss 'grpo' does, equals that of its tokens' ratios.
    if not isinstance(row.loss, str):
        same = "dapo" if isinstance(row.loss, CispoLoss) else "grpo"
        return (
            f"loss: {_name(row.loss)!r} has the gradient of {same!r} with iterations 1, where every ratio is 1; write"
            f" iterations 2 or more, or loss {same}"
        )
    if row.epsilon_high != row.epsilon:
        return (
            f"epsilon_high: {row.epsilon_high:g} beside epsilon {row.epsilon:g} has no effect with iterations 1,"
            " where every ratio is 1 and none is clipped; write iterations 2 or more, or epsilon_high"
            f" {row.epsilon:g}"
        )
    if row.delta is not None:
        return (
            f"delta: {row.delta:g} has no effect with iterations 1, where every ratio is 1 and none is clipped; write"
            " iterations 2 or more, or delta null"
        )
    if row.importance == "sequence":
        return (
            "importance: 'sequence' has no effect with iterations 1, where every ratio is 1 and GSPO's gradient is"
            " GRPO's; write iterations 2 or more, or importance token"
        )
    return None


def _fault_of_additions(row: LossOfARow) -> str | None:
    if row.overlong is not None and row.overlong.margin_tokens >= row.max_completion_tokens:
        return (
            f"overlong.margin_tokens: {row.overlong.margin_tokens} of max_completion_tokens"
            f" {row.max_completion_tokens} leaves no reply without a penalty; write less"
        )
    if row.mixed is not None and row.temporal_contrast is not None:
        return (
            "mixed: temporal_contrast compares what the policy replies to frames in order and out of it, and a written"
            " reply is none of its own; write one of them null"
        )
    if row.mixed is not None and row.importance == "sequence":
        return "mixed: its rule is about the ratio of a token, and importance is 'sequence'; write importance token"
    return None


def _name(loss: Loss) -> str:
    if isinstance(loss, str):
        return loss
    return "cispo" if isinstance(loss, CispoLoss) else "sapo"
