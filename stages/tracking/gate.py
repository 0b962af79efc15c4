"""The gate: when a candidate becomes champion, why not, and the way back. `decide` is pure; the rest moves one alias and notes why."""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stages.params import GateParams, load_params
from stages.tracking.commits import PARAMS_FILE, holding_commit
from stages.tracking.runs import TAG
from stages.tracking.scores import Baselines, ScoreCard, parse_scores
from stages.tracking.store import locked, open_client
from stages.tracking.uri import STATE, TrackingError
from stages.tracking.versions import CANDIDATE, CHAMPION, Version, all_versions, find_version, load_version

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

#: What happened to the alias, a tag of the registered model for each time, in the order of the names.
EVENT = TAG + "event."
GATE_WAIT_S = 60


@dataclass(frozen=True)
class Check:
    """One line of the gate: ``candidate`` against ``other`` (the champion, or a limit), and whether it passes."""

    what: str
    candidate: float
    other: float | None
    rule: str
    passed: bool


@dataclass(frozen=True)
class Decision:
    """Promote or not; ``reasons`` say why not (or what it rests on), each a sentence for a person."""

    promote: bool
    reasons: tuple[str, ...]
    table: tuple[Check, ...]


@dataclass(frozen=True)
class Promotion:
    """What `promote` decided about which versions; ``moved``: the alias was changed."""

    candidate: Version
    champion: Version | None
    decision: Decision
    moved: bool


@dataclass(frozen=True)
class Event:
    """One move of the alias. ``previous``: the version that was champion before, None for the first."""

    at_ms: int
    action: Literal["promote", "rollback"]
    version: int
    previous: int | None
    author: str
    reason: str
    mean: float | None


def decide(candidate: ScoreCard, champion: ScoreCard | None, gate: GateParams, baselines: Baselines | None) -> Decision:
    """Compare two score cards under the rules of ``gate``; without a champion the candidate has to beat every baseline's mean
    by more than ``min_over_baselines``.

    Only cards of equal digest are compared: another split, prompt, judge or scoring is another measure.
    """
    floor = f"at least {gate.min_format:g} (gate.min_format)"
    checks = [Check("format", candidate.format, gate.min_format, floor, candidate.format >= gate.min_format)]
    against = baselines if champion is None else champion
    if against is None:
        return _refusal(checks, "there are no baseline scores to beat; run the stage `baselines`, then vidbridge register")
    if against.digest != candidate.digest:
        who = "the baselines" if champion is None else "the champion"
        return _refusal(
            checks,
            f"{who} and the candidate were scored under different evaluations ({against.digest} and {candidate.digest}: another split, "
            "sample set, prompt, judge or scoring), so they cannot be compared; score both under the same one, or say that the "
            "evaluation is new: then the candidate is held against the baselines only",
        )
    if isinstance(against, Baselines):
        margin = f" by {gate.min_over_baselines:+g} (gate.min_over_baselines)" if gate.min_over_baselines else ""
        rule = f"above it{margin}"
        checks += [
            Check(f"mean, {name} baseline", candidate.mean, mean, rule, candidate.mean > mean + gate.min_over_baselines)
            for name, mean in sorted(against.means.items())
        ]
    else:
        checks += _against_champion(candidate, against, gate)
    failed = tuple(_sentence(check) for check in checks if not check.passed)
    return Decision(not failed, failed or tuple(_sentence(check) for check in checks), tuple(checks))


def _against_champion(candidate: ScoreCard, champion: ScoreCard, gate: GateParams) -> list[Check]:
    gain = candidate.mean - champion.mean
    # Scores are rounded where they are written: a gain of exactly the limit must not fail in the last bit.
    checks = [
        Check("mean", candidate.mean, champion.mean, f"a gain of {gate.min_gain:g} (gate.min_gain)", gain >= gate.min_gain - 1e-9)
    ]
    for task, theirs in sorted(champion.tasks.items()):
        ours = candidate.tasks.get(task)
        rule = f"a drop of {gate.max_task_drop:g} at most (gate.max_task_drop)"
        value = ours.mean if ours else 0.0
        checks.append(Check(task, value, theirs.mean, rule, ours is not None and theirs.mean - value <= gate.max_task_drop + 1e-9))
    return checks


def _sentence(check: Check) -> str:
    other = "" if check.other is None else f" against {check.other:.4f}"
    return f"{check.what}: {check.candidate:.4f}{other}; the rule is {check.rule}: {'met' if check.passed else 'not met'}"


def _refusal(checks: Sequence[Check], reason: str) -> Decision:
    return Decision(False, (reason,), tuple(checks))


def promote(
    root: Path,
    version: str | int | None = None,
    *,
    author: str | None = None,
    reason: str = "",
    new_evaluation: bool = False,
) -> Promotion:
    """Put the gate to ``version`` (default: the alias ``candidate``) and make it champion when it passes.

    ``new_evaluation``: the champion's scores are of an earlier evaluation, so hold the candidate against the baselines only. A refusal
    is an answer, not an error: it comes back with its reasons, and is noted on the version.

    Raises:
        TrackingError: the store does not answer, or there is no such version.
    """
    gate = load_params(root / PARAMS_FILE).gate
    client = open_client(root)
    with _guard(root):
        candidate = find_version(client, gate.registered_model, version or CANDIDATE)
        champion = _champion(client, gate.registered_model)
        if champion and champion.number == candidate.number:
            return Promotion(
                candidate, champion, Decision(False, (f"version {candidate.number} is champion already",), ()), moved=False
            )
        decision = _considered(root, candidate, champion, gate, new_evaluation)
        _note(client, candidate, champion, decision, author)
        if decision.promote:
            _move(client, candidate, champion, "promote", author, reason)
        return Promotion(candidate, champion, decision, moved=decision.promote)


def rollback(root: Path, *, author: str | None = None, reason: str = "") -> Promotion:
    """Make the version champion that was it before the last promotion; repeated, it goes further back.

    Raises:
        TrackingError: there is none, it was deleted, or the alias was moved by someone else.
    """
    model = load_params(root / PARAMS_FILE).gate.registered_model
    client = open_client(root)
    with _guard(root):
        champion = _champion(client, model)
        stack = _standing(_events(client, model))
        if champion is None:
            raise TrackingError(f"{model}: no champion yet, so nothing to roll back; run vidbridge promote")
        if not stack or stack[-1] != champion.number:
            raise TrackingError(
                f"{model}: the alias {CHAMPION!r} was moved outside the gate (it is on version {champion.number}); name the version that"
                " should be champion: vidbridge promote VERSION"
            )
        if len(stack) == 1:
            raise TrackingError(f"{model}: version {champion.number} is the first champion, there is no earlier one to go back to")
        earlier = find_version(client, model, stack[-2])
        _move(client, earlier, champion, "rollback", author, reason)
        return Promotion(earlier, champion, Decision(True, (reason or "rolled back",), ()), moved=True)


def history(root: Path) -> list[Event]:
    """Every move of the alias, oldest first."""
    model = load_params(root / PARAMS_FILE).gate.registered_model
    return _events(open_client(root), model)


def load_checkpoint(root: Path, which: str | int = CHAMPION) -> Path:
    """The Hugging Face folder of a version (number or alias) on this machine, from the DVC cache or the DVC remote.

    Raises:
        TrackingError: no such version, or neither cache nor remote has its files.
    """
    model = load_params(root / PARAMS_FILE).gate.registered_model
    return load_version(root, find_version(open_client(root), model, which))


def _considered(root: Path, candidate: Version, champion: Version | None, gate: GateParams, new_evaluation: bool) -> Decision:
    if holding_commit(root, candidate.stage, candidate.out) is None:
        return _refusal(
            (),
            f"no commit here holds a dvc.lock with version {candidate.number} ({candidate.stage}, out {candidate.out}), so it could not be "
            "made again; commit dvc.lock and params.yaml, or fetch the branch that has them (git fetch origin 'runs/*:runs/*')",
        )
    if candidate.scores is None:
        return _refusal(
            (), f"version {candidate.number} has no scores; add its row to evaluation.of, run dvc repro, then vidbridge register"
        )
    if champion is None or new_evaluation:
        return decide(candidate.scores, None, gate, candidate.baselines)
    if champion.scores is None:
        return _refusal(
            (), f"the champion, version {champion.number}, has no scores; register it again, or say that the evaluation is new"
        )
    return decide(candidate.scores, champion.scores_under(candidate.scores.digest) or champion.scores, gate, candidate.baselines)


def champion_to_rescore(root: Path, version: str | int | None = None) -> tuple[Version, str] | None:
    """The champion and the evaluation (digest) of the candidate, where the champion has no scores under it; None where it has, or
    where there is nothing to compare.

    Raises:
        TrackingError: the store does not answer, or there is no such version.
    """
    model = load_params(root / PARAMS_FILE).gate.registered_model
    client = open_client(root)
    candidate, champion = find_version(client, model, version or CANDIDATE), _champion(client, model)
    if champion is None or champion.number == candidate.number or candidate.scores is None:
        return None
    digest = candidate.scores.digest
    return None if champion.scores_under(digest) else (champion, digest)


def add_scores(root: Path, version: Version, digest: str, table: str) -> None:
    """Keep scores of ``version`` under another evaluation than its own, ``digest``.

    Raises:
        TrackingError: ``table`` is damaged, or was made under yet another evaluation.
    """
    name = f"{version.model} version {version.number}"
    card = parse_scores(table, name)
    if card.digest != digest:
        raise TrackingError(
            f"{name}: was scored under evaluation {card.digest}, the candidate under {digest}; bring data and params.yaml to the"
            " candidate's state (its runs/ branch), then promote again"
        )
    open_client(root).set_model_version_tag(version.model, str(version.number), f"{TAG}scores.{digest}", table)


def _champion(client: MlflowClient, model: str) -> Version | None:
    return next((version for version in all_versions(client, model) if CHAMPION in version.aliases), None)


def _guard(root: Path) -> AbstractContextManager[object]:
    return locked(root / STATE / "gate.lock", GATE_WAIT_S)


def _author(author: str | None) -> str:
    return author or getpass.getuser()


def _note(client: MlflowClient, candidate: Version, champion: Version | None, decision: Decision, author: str | None) -> None:
    note = {
        "promote": decision.promote,
        "reasons": decision.reasons,
        "champion": champion.number if champion else None,
        "author": _author(author),
        "at_ms": time.time_ns() // 1_000_000,
    }
    client.set_model_version_tag(candidate.model, str(candidate.number), TAG + "gate", json.dumps(note))


def _move(
    client: MlflowClient,
    to: Version,
    champion: Version | None,
    action: Literal["promote", "rollback"],
    author: str | None,
    reason: str,
) -> None:
    events = _events(client, to.model)
    # Names sort by time; never before the last one, whatever the clock says.
    at_ms = max(time.time_ns() // 1_000_000, events[-1].at_ms + 1 if events else 0)
    scores = to.scores
    previous = champion.number if champion else None
    event = Event(at_ms, action, to.number, previous, _author(author), reason, scores.mean if scores else None)
    if previous is not None:
        client.set_model_version_tag(to.model, str(to.number), TAG + "previous_champion", str(previous))
    client.set_registered_model_alias(to.model, CHAMPION, str(to.number))
    client.set_registered_model_tag(to.model, f"{EVENT}{at_ms:015d}", json.dumps(asdict(event)))


def _events(client: MlflowClient, model: str) -> list[Event]:
    from mlflow.exceptions import MlflowException

    try:
        tags = client.get_registered_model(model).tags
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return []
        raise TrackingError(f"{model}: {error}") from error
    return [Event(**json.loads(tags[name])) for name in sorted(tags) if name.startswith(EVENT)]


def _standing(events: Sequence[Event]) -> list[int]:
    """The champions one could go back to, the present one last."""
    stack: list[int] = []
    for event in events:
        if event.action == "promote":
            stack.append(event.version)
        elif stack:
            stack.pop()
    return stack
