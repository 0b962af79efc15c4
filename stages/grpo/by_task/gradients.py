"""Cosines between the gradients of tasks, by part of the model, with their noise.

The gradient of a task is estimated from the groups of one step, so it is noisy, and the cosine of
two noisy estimates is nearer to 0 than that of what they estimate. Therefore the live groups of
each task are dealt to two halves, and all cosines are taken between halves, which share no rollout:

- of task a with itself: ``r_a = cos(a_1, a_2)``, the split-half reliability. It is near 1 where the
  estimate is good, and 0 where it is noise.
- of tasks a and b: ``c_ab``, the mean of the four ``cos(a_i, b_j)``.

Both are lowered by the same noise. ``c_ab / sqrt(r_a r_b)`` estimates the cosine without it
(correction for attenuation: Spearman 1904, The proof and measurement of association between two
things); average numerator and denominator over steps before dividing. The inner products behind
both are unbiased, since the halves are independent: E[a_1 . a_2] is the squared norm of the
expected gradient, and E[a_i . b_j] the inner product of two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import torch

from stages.lib.training import rates

#: Most entries of a weight that are compared. Of a larger one so many are drawn, the same for all
#: gradients, so that memory is bounded by the number of weights; the inner product stays unbiased.
MOST_ENTRIES = 2**18
#: Parts of a model, in order.
PARTS = ("vision", "merger", "early", "late", "embeddings", "head")

#: A task, and one of its halves (0 or 1).
Half = tuple[str, int]


def part_of(name: str, layers: int, tied: bool) -> str:
    """Part of the model that a weight belongs to, by its name in any of the three families.

    Args:
        layers: number of layers of the text model; the first half of them are ``early``.
        tied: the embedding of the input is the head.
    """
    if (part := rates.part_of(name)) != "text":
        return part
    if ".layers." in name:
        number = int(name.partition(".layers.")[2].partition(".")[0])
        return "early" if number < layers / 2 else "late"
    return "embeddings" if "embed_tokens" in name and not tied else "head"


def halves_of(groups: Iterable[tuple[int, str, bool]]) -> dict[Half, list[int]]:
    """Deal the live groups of each task to its two halves, in turn; tasks with fewer than two are
    left out.

    Args:
        groups: number, task, and whether it is live, of each group.
    """
    of_task: dict[str, list[int]] = {}
    for number, task, live in sorted(groups):
        if live:
            of_task.setdefault(task, []).append(number)
    return {
        (task, half): numbers[half::2]
        for task, numbers in sorted(of_task.items())
        if len(numbers) > 1
        for half in (0, 1)
    }


class Entries:
    """The entries of the trained weights that are compared, as one vector.

    Args:
        parameters: the trained weights by name, in order.
        part: part of each.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], part: Mapping[str, str]) -> None:
        #: By weight: its place in the vector, and the entries drawn of it; None: all.
        self._of_weight: list[tuple[slice, torch.Tensor | None]] = []
        self.of_part: dict[str, list[slice]] = {}
        self.count = 0
        for number, (name, weight) in enumerate(parameters.items()):
            kept = min(weight.numel(), MOST_ENTRIES)
            # Drawn with replacement: each draw is one unbiased estimate.
            generator = torch.Generator().manual_seed(number)
            drawn = torch.randint(weight.numel(), (kept,), generator=generator) if kept < weight.numel() else None
            entries = slice(self.count, self.count + kept)
            self._of_weight.append((entries, drawn))
            self.of_part.setdefault(part[name], []).append(entries)
            self.count += kept

    def add(self, total: torch.Tensor, gradients: Sequence[torch.Tensor | None]) -> None:
        """Add the compared entries of these gradients to ``total``; None is a gradient of 0."""
        for gradient, (entries, drawn) in zip(gradients, self._of_weight, strict=True):
            if gradient is not None:
                flat = gradient.detach().flatten()
                if drawn is not None:
                    # Inner products over the drawn entries times numel / drawn are unbiased.
                    flat = flat[drawn.to(flat.device)] * (gradient.numel() / len(drawn)) ** 0.5
                total[entries] += flat.to(total)


def cosines(halves: Mapping[Half, torch.Tensor], of_part: Mapping[str, Sequence[slice]]) -> dict[str, float]:
    """Cosines as metrics: ``gradient_cosine/<part>/<a>-<b>``, and ``<a>-<a>`` for the split-half
    reliability. A part in which a half has no gradient is left out.

    Args:
        halves: gradient of each half of each task, as a vector.
        of_part: the slices of the vectors that belong to a part.
    """
    tasks = sorted({task for task, _ in halves})
    found: dict[str, float] = {}
    for part in sorted(of_part, key=PARTS.index):
        vectors = {
            half: torch.cat([vector[span].double() for span in of_part[part]]) for half, vector in halves.items()
        }
        units = {half: vector / vector.norm() for half, vector in vectors.items() if vector.any()}
        for task in tasks:
            if {(task, 0), (task, 1)} <= units.keys():
                found[f"gradient_cosine/{part}/{task}-{task}"] = float(units[task, 0] @ units[task, 1])
        for a, b in combinations(tasks, 2):
            pairs = [((a, i), (b, j)) for i in (0, 1) for j in (0, 1)]
            if all(one in units and other in units for one, other in pairs):
                values = [float(units[one] @ units[other]) for one, other in pairs]
                found[f"gradient_cosine/{part}/{a}-{b}"] = sum(values) / len(values)
    return found
