"""The gate's rules: decide whether a candidate is good enough, with a sentence for each check.
Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages.domain.rl.gauges import GAUGES
from stages.domain.rl.groups import exceeds
from stages.domain.statistics.paired import Comparison, Difference
from stages.params import GateParams
from stages.tracking.registry.score_cards import Baselines, ScoreCard

#: The gauge that evaluation measures; training measures the others.
HELD_OUT_BLANK = "held_out_blank_video"


@dataclass(frozen=True)
class Check:
    """One check of the gate: ``candidate`` (None: not measured) against ``other`` (the champion, or
    a limit), and its result."""

    what: str
    candidate: float | None
    other: float | None
    rule: str
    passed: bool


@dataclass(frozen=True)
class Decision:
    """Promote or not. ``reasons``: why not, or what the decision rests on, each a full sentence."""

    promote: bool
    reasons: tuple[str, ...]
    table: tuple[Check, ...]


@dataclass(frozen=True)
class Evidence:
    """Facts about a candidate besides its score card.

    ``gauges``: gauge to its logged values, oldest first; None: registered before they were
    recorded. ``rolls_out``: a GRPO stage produced it, so gauges apply. ``paired``: its samples
    against the champion's; a text says why they could not be compared.
    """

    gauges: Mapping[str, Sequence[float]] | None
    rolls_out: bool
    paired: Comparison | str


def decide(
    candidate: ScoreCard, champion: ScoreCard | None, gate: GateParams, baselines: Baselines | None, evidence: Evidence
) -> Decision:
    """Compare two score cards under the rules of ``gate``.

    Without a champion the candidate has to beat every baseline's mean by more than
    ``min_over_baselines``. Only cards of equal digest are compared: another split, prompt, judge or
    scoring is another measure.
    """
    floor = f"at least {gate.min_format:g} (gate.min_format)"
    checks = [Check("format", candidate.format, gate.min_format, floor, candidate.format >= gate.min_format)]
    against = baselines if champion is None else champion
    if against is None:
        return refusal(
            "there are no baseline scores to beat; run the stage `baselines`, then vidbridge register", checks
        )
    if against.digest != candidate.digest:
        who = "the baselines" if champion is None else "the champion"
        return refusal(
            f"{who} and the candidate were scored under different evaluations ({against.digest} and {candidate.digest}:"
            " another split, sample set, prompt, judge or scoring), so they cannot be compared; score both under the"
            " same one, or say that the evaluation is new: then the candidate is held against the baselines only",
            checks,
        )
    if gate.scores != "all" and (lacking := [task for task in gate.scores if task not in candidate.tasks]):
        return refusal(
            f"gate.scores: {lacking[0]!r} has no score in this evaluation (it has {', '.join(candidate.tasks)}); name"
            f" tasks that the {candidate.split} split has samples of, or all",
            checks,
        )
    if isinstance(against, Baselines):
        if gate.scores != "all" and not all(task in against.tasks for task in gate.scores):
            return refusal(
                "the baselines' scores by task were not kept when this version was registered; run vidbridge register",
                checks,
            )
        checks += _against_baselines(candidate, against, gate)
    else:
        checks += _against_champion(candidate, against, gate) + _by_sample(evidence.paired, gate)
    checks += _gauges(candidate, gate, evidence)
    failed = tuple(sentence(check) for check in checks if not check.passed)
    return Decision(not failed, failed or tuple(sentence(check) for check in checks), tuple(checks))


def refusal(reason: str, checks: Sequence[Check] = ()) -> Decision:
    """Refuse for one reason that leaves nothing else to compare."""
    return Decision(False, (reason,), tuple(checks))


def sentence(check: Check) -> str:
    """Format a check as a sentence."""
    value = "not measured" if check.candidate is None else f"{check.candidate:.4f}"
    other = "" if check.other is None else f" against {check.other:.4f}"
    return f"{check.what}: {value}{other}; the rule is {check.rule}: {'met' if check.passed else 'not met'}"


def counted(card: ScoreCard, gate: GateParams) -> float:
    """Mean score over the tasks of ``gate.scores``, which the gate compares."""
    if gate.scores == "all":
        return card.mean
    return sum(card.tasks[task].mean if task in card.tasks else 0.0 for task in gate.scores) / len(gate.scores)


def _of(gate: GateParams) -> str:
    return "mean" if gate.scores == "all" else f"mean of {', '.join(gate.scores)}"


def _against_baselines(candidate: ScoreCard, baselines: Baselines, gate: GateParams) -> list[Check]:
    margin = f" by {gate.min_over_baselines:+g} (gate.min_over_baselines)" if gate.min_over_baselines else ""
    ours = counted(candidate, gate)
    checks = []
    for name, over_all in sorted(baselines.means.items()):
        theirs = over_all
        if gate.scores != "all":
            theirs = sum(baselines.tasks[task].get(name, 0.0) for task in gate.scores) / len(gate.scores)
        passed = ours > theirs + gate.min_over_baselines
        checks.append(Check(f"{_of(gate)}, {name} baseline", ours, theirs, f"above it{margin}", passed))
    return checks


def _against_champion(candidate: ScoreCard, champion: ScoreCard, gate: GateParams) -> list[Check]:
    ours, theirs = counted(candidate, gate), counted(champion, gate)
    # Scores are rounded in their files: a gain of exactly the limit must not fail in the last bit.
    rule = f"a gain of {gate.min_gain:g} (gate.min_gain)"
    checks = [Check(_of(gate), ours, theirs, rule, ours - theirs >= gate.min_gain - 1e-9)]
    for task, before in sorted(champion.tasks.items()):
        now = candidate.tasks.get(task)
        rule = f"a drop of {gate.max_task_drop:g} at most (gate.max_task_drop)"
        value = now.mean if now else 0.0
        checks.append(
            Check(task, value, before.mean, rule, now is not None and before.mean - value <= gate.max_task_drop + 1e-9)
        )
    return checks


def _by_sample(paired: Comparison | str, gate: GateParams) -> list[Check]:
    """Check the gain by sample: its lower end must exceed ``min_gain`` if ``gate.significant``;
    otherwise it is displayed only."""
    what = "gain by sample, lower end"
    must = f"above {gate.min_gain:g} (gate.significant)"
    if not isinstance(paired, Comparison):
        rule = must if gate.significant else "for information"
        return [Check(what, None, gate.min_gain, f"{rule}; {paired}", not gate.significant)]
    gain = paired.mean
    passed = gain.low > gate.min_gain
    rule = f"{must}; {format_gain(gain)}" if gate.significant else f"for information: {format_gain(gain)}"
    return [Check(what, gain.low, gate.min_gain, rule, passed or not gate.significant)]


def format_gain(gain: Difference) -> str:
    """Format a paired difference in one line."""
    return (
        f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}], p {gain.p_value:.2g}, {gain.won} won, {gain.lost} lost,"
        f" {gain.tied} tied"
    )


def _gauges(candidate: ScoreCard, gate: GateParams, evidence: Evidence) -> list[Check]:
    limits, checks = gate.gauges, []
    for name, limit in limits.at_most.items():
        rule = f"at most {limit:g} (gate.gauges.at_most)"
        values = (
            _blank_share(candidate)
            if name == HELD_OUT_BLANK
            else list((evidence.gauges or {}).get(name, ()))[-limits.last :]
        )
        if values:
            value = sum(values) / len(values)
            # The mean of three values of .1 is .10000000000000002.
            passed = not exceeds(value, limit)
            look = f"; {GAUGES[name].means}" if not passed and name in GAUGES else ""
            checks.append(Check(f"gauge {name}", value, limit, rule + look, passed))
            continue
        if name == HELD_OUT_BLANK:
            why, passed = "nothing was scored on its videos, or no black video was shown", limits.unmeasured == "allow"
        elif not evidence.rolls_out:
            why, passed = "not measured: no rollouts made this version", True
        elif evidence.gauges is None:
            why, passed = "registered before gauges were kept; run vidbridge register", limits.unmeasured == "allow"
        else:
            why, passed = "not measured in its training", limits.unmeasured == "allow"
        if evidence.rolls_out or name == HELD_OUT_BLANK:
            why += f" (gate.gauges.unmeasured: {limits.unmeasured})"
        checks.append(Check(f"gauge {name}", None, limit, f"{rule}; {why}", passed))
    return checks


def _blank_share(card: ScoreCard) -> list[float]:
    """Score on black video as a share of the score on the videos, over the tasks that were
    evaluated both ways."""
    both = [(task.blank, task.mean) for task in card.tasks.values() if task.blank is not None]
    on_video = sum(mean for _, mean in both)
    return [sum(blank for blank, _ in both) / on_video] if on_video > 0 else []
