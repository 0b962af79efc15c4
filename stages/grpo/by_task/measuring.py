"""Measurements by task while GRPO trains: gauges and gradients.

Nothing here touches what is trained: passes run without gradients, or take them by
``torch.autograd.grad``, which leaves ``.grad`` alone; none draws a random number. Weights are equal
with and without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from trl.models.utils import disable_gradient_checkpointing

from stages.domain.core.records import TaskName
from stages.grpo.by_task.gauges import Places, Total, ending_tokens, merged, metrics_of, places, stop_probability
from stages.grpo.by_task.gradients import Entries, Half, cosines, halves_of, part_of
from stages.grpo.mixed import WRITTEN
from stages.grpo.policy.video import TakesVideos
from stages.grpo.step import StepScores


class DrawnGroup(NamedTuple):
    """Group of rollouts of any process and round. ``known``: at least one has a reward; ``live``:
    the group has an advantage."""

    task: TaskName
    live: bool
    known: bool


def due(every: int, step: int, updates: int) -> bool:
    """True if a measurement every so many steps falls on one of the ``updates`` steps behind
    ``step``, which train on one generation."""
    return every > 0 and (step + updates - 1) // every > (step - 1) // every


class MeasuresTasks(TakesVideos):
    """Trainer that measures each task of its mixture.

    Args (beside those of :class:`TakesVideos`):
        gauges_every: steps between two measurements of :mod:`stages.grpo.by_task.gauges`; 0: none.
        gradients_every: the same for :mod:`stages.grpo.by_task.gradients`.
    """

    def __init__(self, *, gauges_every: int = 0, gradients_every: int = 0, **kwargs: Any) -> None:
        self._gauges_every, self._gradients_every = gauges_every, gradients_every
        #: Groups of the generation under way, of all processes; filled where ``_notes_groups``.
        self._drawn_groups: list[DrawnGroup] = []
        self._ending_ids: list[int] | None = None
        super().__init__(**kwargs)

    @property
    def _notes_groups(self) -> bool:
        return self._gauges_every > 0

    def _note_groups(self, advantages_B: torch.Tensor, rewards_BK: torch.Tensor, scores: StepScores) -> None:
        """Note the groups of a round, those of all processes.

        Args:
            advantages_B: with which this process trains on its rollouts.
            rewards_BK: of the rollouts of all processes.
            scores: of those of this process.
        """
        if not self._notes_groups or not self.model.training:
            return
        live_P = self.accelerator.gather(advantages_B).view(-1, self.num_generations).any(dim=1)
        known_P = (~torch.isnan(rewards_BK)).view(len(live_P), -1).any(dim=1)
        tasks: list[TaskName] = gather_object([score.task for score in scores.scores])[:: self.num_generations]
        rows = zip(tasks, live_P.tolist(), known_P.tolist(), strict=True)
        self._drawn_groups += [DrawnGroup(task, live, known) for task, live, known in rows]

    def _log_dead_groups(self) -> None:
        """Log the share of dead groups of each task, over all rounds of the generation: each is a
        draw of the same policy."""
        for task in sorted({group.task for group in self._drawn_groups if group.known}):
            dead = [not group.live for group in self._drawn_groups if group.task == task and group.known]
            self._metrics["train"][f"dead_groups/{task}"].append(sum(dead) / len(dead))

    def _due(self, every: int) -> bool:
        return bool(self.model.training) and due(every, self.state.global_step, self.num_iterations)

    def _measure_tasks(self, batch: Mapping[str, Any]) -> None:
        """Log the gauges of the rollouts of a generation; every process must call it."""
        tasks: list[TaskName] = batch["tasks"]
        pieces = self._pieces(batch)
        found = [places(texts, task) for texts, task in zip(pieces, tasks, strict=True)]
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            ends = [(row, at) for row, place in enumerate(found) for at in place.ends]
            with _Behind(self._plain_model.base_model, ends, lambda *place: self._state_of(*place)) as behind:
                logps, entropies = self._passed(batch, self.model, entropy=True)
            ending = dict(zip(ends, self._ending_probabilities(behind.states()), strict=True))
        logps, entropies = logps.float().cpu(), entropies.float().cpu()
        sampled = self._sampled_rows(batch)
        # A written reply says nothing of what the policy samples.
        written = batch[WRITTEN].tolist() if WRITTEN in batch else [False] * len(tasks)
        rows = [
            {
                ("answer_entropy", task): Total.of(
                    [entropies[row, list(place.first)].mean().item()] if place.first else []
                ),
                ("stop_after_first", task): Total.of(_stop(row, place, ending, logps)),
                ("logp_gap", task): Total.of(_gaps(sampled[row], logps[row], len(pieces[row]))),
            }
            for row, (task, place) in enumerate(zip(tasks, found, strict=True))
            if not written[row]
        ]
        for name, value in metrics_of(merged(gather_object([merged(rows)]))).items():
            self._metrics["train"][name].append(value)

    def _pieces(self, batch: Mapping[str, Any]) -> list[list[str]]:
        """Text of each token of each reply; of one that ends a reply, nothing."""
        lengths = batch["completion_mask"].sum(dim=1).tolist()
        return [
            [
                "" if token in self.eos_token_ids else text
                for token, text in zip(ids[:length], self._texts(ids[:length]), strict=True)
            ]
            for ids, length in zip(batch["completion_ids"].tolist(), lengths, strict=True)
        ]

    def _texts(self, ids: Sequence[int]) -> list[str]:
        if not ids:  # a reply that is out of the loss; the tokenizer would make one text of no token
            return []
        texts: list[str] = self._tokenizer.batch_decode(
            [[token] for token in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return texts

    def _ending_probabilities(self, states_ND: torch.Tensor) -> list[float]:
        """Probability, behind each of these last hidden states, of a token that ends an answer."""
        if self._ending_ids is None:
            self._ending_ids = ending_tokens(self._texts(range(len(self._tokenizer))), self.eos_token_ids)
        with self.accelerator.autocast():
            logits_NV = self._plain_model.get_output_embeddings()(states_ND)
        probabilities_NV = torch.softmax(logits_NV.float() / self.temperature, dim=-1)
        ending: list[float] = probabilities_NV[:, self._ending_ids].sum(dim=1).tolist()
        return ending

    def _sampled_rows(self, batch: Mapping[str, Any]) -> list[list[float]]:
        """Log-probabilities that the tokens of each row were sampled with; NaN where the engine
        gave none."""
        if self._sampled is not None:
            return self._sampled
        logps = batch.get("sampling_per_token_logps")
        if logps is None:
            logps = torch.full(batch["completion_ids"].shape, torch.nan)
        rows: list[list[float]] = logps.float().tolist()
        return rows

    def _compare_gradients(self, batch: Mapping[str, Any]) -> None:
        """Log the cosines between the gradients of the tasks; every process must call it.

        The gradient is that of the policy term at the policy's present weights, where every ratio
        is 1: of the sum over the rollouts of ``-A log p``, with ``log p`` the mean over the reply's
        tokens if the row's loss is, else their sum. A KL term, an entropy bonus, clipping, a choice
        of tokens by entropy and written replies are not in it. A sum over half a task's groups and
        its mean have the same direction.
        """
        if WRITTEN in batch:
            batch = {**batch, "advantages": batch["advantages"].masked_fill(batch[WRITTEN], 0.0)}
        rows, size = len(batch["tasks"]), self.num_generations
        first = self.accelerator.process_index * rows
        numbers = [(first + row) // size for row in range(rows)]
        lives = batch["advantages"].reshape(rows, -1).any(dim=1).tolist()
        groups: dict[int, tuple[str, bool]] = {}
        for number, task, live in gather_object(list(zip(numbers, batch["tasks"], lives, strict=True))):
            groups[number] = (task, live or groups.get(number, (task, False))[1])
        halves = halves_of((number, task, live) for number, (task, live) in groups.items())
        trained = {name: weight for name, weight in self._plain_model.named_parameters() if weight.requires_grad}
        text = self._plain_model.config.get_text_config()
        tied = self._plain_model.get_output_embeddings().weight is self._plain_model.get_input_embeddings().weight
        parts = {name: part_of(name, text.num_hidden_layers, tied) for name in trained}
        entries = Entries(trained, parts)
        totals: dict[Half, torch.Tensor] = {}
        for half, members in halves.items():
            own = [row for row in range(rows) if numbers[row] in members]
            total = self._gradient(batch, own, list(trained.values()), entries).to(self.accelerator.device)
            # Summed over the processes, each of which has other rows of the half.
            totals[half] = self.accelerator.reduce(total, reduction="sum").cpu()
        for name, value in cosines(totals, entries.of_part).items():
            self._metrics["train"][name].append(value)

    def _gradient(
        self, batch: Mapping[str, Any], rows: Sequence[int], weights: Sequence[torch.nn.Parameter], entries: Entries
    ) -> torch.Tensor:
        """Compared entries of the gradient of some rows' policy term."""
        total, count = torch.zeros(entries.count), self.args.per_device_train_batch_size
        for start in range(0, len(rows), count):
            chosen = list(rows[start : start + count])
            part: dict[str, Any] = {
                name: [value[row] for row in chosen] if isinstance(value, list) else value[chosen]
                for name, value in batch.items()
                if name in _NEEDED
            }
            logps, _ = self._passed(part, self._unwrapped)
            tokens = part["completion_mask"].to(logps)
            if self.loss_type in ("grpo", "sapo"):
                tokens = tokens / tokens.sum(dim=1, keepdim=True).clamp(min=1.0)
            loss = -(logps * tokens * part["advantages"].to(logps).reshape(len(chosen), -1)).sum()
            entries.add(total, torch.autograd.grad(loss, weights, allow_unused=True))
        return total


#: Columns of a batch that a policy gradient needs.
_NEEDED = frozenset(("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "videos"))


class _Behind:
    """Last hidden states from which the tokens at some places of the replies are predicted,
    collected from the forward passes meanwhile.

    Args:
        backbone: its forward gives ``last_hidden_state`` of consecutive chunks of the rows.
        at: row and token of each place.
        state_of: place of a row and token among the states of the present pass; None if it is in
            another.
    """

    def __init__(
        self, backbone: Any, at: Sequence[tuple[int, int]], state_of: Callable[[int, int], int | None]
    ) -> None:
        self._backbone, self._at, self._state_of = backbone, at, state_of
        self._states: dict[tuple[int, int], torch.Tensor] = {}
        self._none = torch.empty(0)

    def __enter__(self) -> _Behind:
        self._hook = self._backbone.register_forward_hook(self._collect)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _collect(self, _: Any, __: Any, output: Any) -> None:
        hidden_SD = output.last_hidden_state.flatten(0, 1)
        self._none = hidden_SD[:0]
        for place in self._at:
            state = self._state_of(*place)
            if state is not None:
                self._states[place] = hidden_SD[state]

    def states(self) -> torch.Tensor:
        """The states, [places, width], in the order of the places."""
        return torch.stack([self._states[place] for place in self._at]) if self._at else self._none


def _stop(row: int, place: Places, ending: Mapping[tuple[int, int], float], logps: torch.Tensor) -> list[float]:
    if not place.ends:
        return []
    mark = logps[row, place.ends[0]].exp().item() if len(place.ends) > 1 else 0.0
    return [stop_probability([ending[row, at] for at in place.ends], mark)]


def _gaps(sampled: Sequence[float], logps: torch.Tensor, length: int) -> list[float]:
    gaps = (torch.tensor(sampled[:length]) - logps[:length]).abs()
    kept: list[float] = gaps[~gaps.isnan()].tolist()
    return kept
