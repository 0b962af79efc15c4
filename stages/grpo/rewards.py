"""Rewards of a GRPO row: scores of its rollouts by a judge, the objectives they are paid by, and
gauges."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence

from tqdm import tqdm

from stages.domain.core.digest import digest
from stages.domain.core.records import Sample, Score
from stages.domain.rl.gauges import alarms, judge_gap, measure, on_other_videos
from stages.domain.rl.shaping import length_paid
from stages.domain.tasks import task_of
from stages.domain.tasks.rewards import Referee
from stages.domain.tasks.scoring import objective_weights, objectives, reward
from stages.grpo.step import StepScores
from stages.lib.judging.batch import check_step, score_replies
from stages.params import GrpoRow, Params


class JudgedRewards:
    """Rewards of GRPO row ``name`` from the scores of a judge (:class:`stages.grpo.step.Rewards`).

    Args:
        held_out: referee with the judge that is held out of the rewards; None: there is no such
            judge.
    """

    def __init__(
        self, params: Params, name: str, samples: Sequence[Sample], referee: Referee, held_out: Referee | None
    ) -> None:
        self._params, self._name, self._referee, self._held_out = params, name, referee, held_out
        self._row: GrpoRow = params.grpo[name]
        self._samples = {sample.sample_id: sample for sample in samples}
        self._raised: set[str] = set()
        self.weights = _task_weights(params, self._row)
        if self._row.length is not None:
            self.weights["length"] = self._row.length.weight

    def score(self, ids: Sequence[str], replies: Sequence[str], written: Collection[int] = ()) -> StepScores:
        scores = self._scores(ids, replies)
        total = [reward(score, self._params.rewards, self._row.leave_out) for score in scores]
        sampled = [row for row in range(len(scores)) if row not in written]
        gauges = self._gauges([scores[row] for row in sampled], [total[row] for row in sampled])
        return StepScores(scores, total, self._objectives(scores, total), gauges)

    def shares(self, ids: Sequence[str], replies: Sequence[str]) -> list[float | None]:
        return [score.value for score in self._scores(ids, replies)]

    def control_gauges(self, own: float, blank: float | None, shuffled: float | None) -> Mapping[str, float]:
        gauges = on_other_videos(own, blank, shuffled)
        self._alarm(gauges, ("blank_video", "shuffled_video"))
        return gauges

    def check_masked(self, masked: int, rollouts: int) -> None:
        """Check that enough rollouts of a step have a verdict.

        Raises:
            JudgeUnavailableError: more rollouts lack a verdict than ``judge.max_unavailable``
                allows.
        """
        weights = {task: self._row.tasks[task] for task in self._row.trained_tasks}
        check_step(self._referee, weights, masked, rollouts, f"a step of grpo@{self._name}")

    def _scores(self, ids: Sequence[str], replies: Sequence[str]) -> list[Score]:
        return score_replies([self._samples[i] for i in ids], replies, self._referee, self._params.rewards)

    def _objectives(self, scores: Sequence[Score], total: Sequence[float | None]) -> dict[str, Sequence[float | None]]:
        """Objectives by name: the whole reward, or its parts where each is normalised, and the
        row's length reward."""
        row, columns = self._row, dict[str, Sequence[float | None]](task=total)
        if row.aggregation == "normalise":
            parts = [objectives(score) for score in scores]
            columns = {name: [part.get(name) for part in parts] for name in _task_weights(self._params, row)}
        if row.length is not None:
            columns["length"] = [length_paid(score, row.length) for score in scores]
        return columns

    def _gauges(self, scores: Sequence[Score], total: Sequence[float | None]) -> dict[str, float]:
        """Measure the gauges of a step's rollouts, and log those that newly exceed their alarm
        level."""
        samples = [self._samples[score.sample_id] for score in scores]
        gauges = measure(samples, [score.reply for score in scores], total, self._params.rewards)
        gauges |= self._gap(scores)
        self._alarm(gauges, gauges)
        return gauges

    def _gap(self, scores: Sequence[Score]) -> dict[str, float]:
        settings = self._params.held_out_judge
        if settings is None or self._held_out is None:
            return {}
        # Some tasks need no judge. The choice of a rollout depends on that rollout only.
        checked = [
            score
            for score in scores
            if task_of(score.task).judge_calls(self._params.rewards)
            and score.format_ok
            and int(digest({"id": score.sample_id, "reply": score.reply}), 16) < settings.share * 16**16
        ]
        samples = [self._samples[score.sample_id] for score in checked]
        second_scores = score_replies(samples, [score.reply for score in checked], self._held_out, self._params.rewards)
        return judge_gap([score.value for score in checked], [score.value for score in second_scores])

    def _alarm(self, gauges: Mapping[str, float], measured: Mapping[str, float] | Sequence[str]) -> None:
        raised = alarms(gauges)
        for gauge in raised.keys() - self._raised:
            tqdm.write(f"grpo@{self._name}: look at {raised[gauge]}", file=sys.stderr)
        self._raised = (self._raised - set(measured)) | raised.keys()


def _task_weights(params: Params, row: GrpoRow) -> dict[str, float]:
    if row.aggregation == "normalise":
        return objective_weights(row.trained_tasks, params.rewards, row.leave_out)
    return {"task": 1.0}
