"""What a GRPO row pays for and watches: the judge's scores of its rollouts, their parts, and the gauges made of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from tqdm import tqdm

from stages.domain.core.digest import digest
from stages.domain.core.records import Sample, Score
from stages.domain.rl.gauges import alarms, judge_gap, measure, on_other_videos
from stages.domain.rl.shaping import length_paid
from stages.domain.tasks.rewards import Referee
from stages.domain.tasks.scoring import objective_weights, objectives, reward
from stages.grpo.train import Objective
from stages.lib.judging.batch import score_replies
from stages.params import GrpoRow, Params

#: One value a reply, by samples' ids and replies; None where no judge could say.
Values = Callable[[Sequence[str], Sequence[str]], list[float | None]]


class Rewarding:
    """The functions that training is given. All of them ask about the same replies one after the other, which are scored once.

    Args:
        held_out: the same with the judge that is held out of the rewards; None: there is none.
    """

    def __init__(self, params: Params, name: str, samples: Sequence[Sample], referee: Referee, held_out: Referee | None) -> None:
        self._params, self._name, self._held_out = params, name, held_out
        self._row: GrpoRow = params.grpo[name]
        self._samples = {sample.sample_id: sample for sample in samples}
        self._raised: set[str] = set()

        @lru_cache(maxsize=1)
        def scored(ids: tuple[str, ...], replies: tuple[str, ...]) -> list[Score]:
            return score_replies([self._samples[i] for i in ids], replies, referee, params.rewards)

        self._scored = scored

    def scores(self, ids: Sequence[str], replies: Sequence[str]) -> list[Score]:
        """What the rewards are made of."""
        return self._scored(tuple(ids), tuple(replies))

    def _values(self, of: Callable[[Score], float | None]) -> Values:
        return lambda ids, replies: [of(score) for score in self.scores(ids, replies)]

    @property
    def total(self) -> Values:
        """The reward of the task, before what the row pays beside it."""
        return self._values(lambda score: reward(score, self._params.rewards, self._row.leave_out))

    @property
    def shares(self) -> Values:
        """The share of the task's maximum."""
        return self._values(lambda score: score.value)

    def well_formed(self, ids: Sequence[str], replies: Sequence[str]) -> list[bool]:
        return [score.format_ok for score in self.scores(ids, replies)]

    @property
    def objectives(self) -> dict[str, Objective]:
        """What an advantage is made of: the whole reward, or its parts where each is normalised; and what the row pays for length."""
        rules, row = self._params.rewards, self._row

        def part(name: str) -> Callable[[Score], float | None]:
            return lambda score: objectives(score).get(name)

        if row.aggregation == "normalise":
            weights = objective_weights(row.trained_tasks, rules, row.leave_out)
            found = {name: Objective(weight, self._values(part(name))) for name, weight in weights.items()}
        else:
            found = {"task": Objective(1.0, self.total)}
        if (rule := row.length) is not None:
            found["length"] = Objective(rule.weight, self._values(lambda score: length_paid(score, rule)))
        return found

    def gauges(self, ids: Sequence[str], replies: Sequence[str], rewards: Sequence[float | None]) -> dict[str, float]:
        """The gauges of a step's rollouts; one that is new above its mark is named in the log."""
        found = measure([self._samples[i] for i in ids], replies, rewards, self._params.rewards)
        found |= self._gap(ids, replies)
        self._alarm(found, found)
        return found

    def controls(self, seen: float, blank: float | None, shuffled: float | None) -> Mapping[str, float]:
        """The gauges of what is earned on other videos."""
        found = on_other_videos(seen, blank, shuffled)
        self._alarm(found, ("blank_video", "shuffled_video"))
        return found

    def _gap(self, ids: Sequence[str], replies: Sequence[str]) -> dict[str, float]:
        chosen = self._params.held_out_judge
        if chosen is None or self._held_out is None:
            return {}
        # Multiple choice needs no judge. Which rollouts are looked at depends on themselves only.
        looked_at = [
            score
            for score in self.scores(ids, replies)
            if score.task != "mcqa"
            and score.format_ok
            and int(digest({"id": score.sample_id, "reply": score.reply}), 16) < chosen.share * 16**16
        ]
        samples = [self._samples[score.sample_id] for score in looked_at]
        again = score_replies(samples, [score.reply for score in looked_at], self._held_out, self._params.rewards)
        return judge_gap([score.value for score in looked_at], [score.value for score in again])

    def _alarm(self, found: Mapping[str, float], measured: Mapping[str, float] | Sequence[str]) -> None:
        raised = alarms(found)
        for gauge in raised.keys() - self._raised:
            tqdm.write(f"grpo@{self._name}: look at {raised[gauge]}", file=sys.stderr)
        self._raised = (self._raised - set(measured)) | raised.keys()
