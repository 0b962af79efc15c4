"""Evaluation samples, shared by all policies and baselines, and the digest that makes scores
comparable."""

from __future__ import annotations

from collections.abc import Sequence

from stages.domain.core.digest import digest
from stages.domain.core.records import Sample
from stages.errors import InputError
from stages.lib.rows.samples import drawn_samples, samples_present
from stages.params import Params
from stages.params.own_tasks import own_code


def evaluation_samples(params: Params) -> list[Sample]:
    """Draw the samples that every policy and every baseline is scored on: at most
    ``samples_per_task`` of each task of the split.

    Raises:
        InputError: the split has no sample of any task.
    """
    split = params.evaluation.split
    tasks = samples_present()[split]
    if not tasks:
        raise InputError(
            "evaluation.split",
            f"the {split!r} split has no sample",
            f"annotate videos with that split, or raise ingest.{split}_share",
        )
    return drawn_samples(split, tasks, params.evaluation.samples_per_task, params.seed)


def evaluation_digest(params: Params, samples: Sequence[Sample]) -> str:
    """Digest of everything that a score depends on apart from the policy: samples, prompts, judge,
    scoring, decoding.

    Only scores with equal digests are compared. The code of the project's own tasks counts where
    samples are of them.
    """
    own = own_code({sample.task for sample in samples})
    return digest(
        {
            **({} if own is None else {"own_tasks": own}),
            # A sample's recordings change intervals only.
            "samples": [sample.model_dump(mode="json", exclude={"recordings"}) for sample in samples],
            "prompt": params.prompt.model_dump(mode="json"),
            "judge": params.judge.model_dump(mode="json"),
            "rewards": params.rewards.model_dump(mode="json"),
            "max_new_tokens": params.evaluation.max_new_tokens,
        }
    )
