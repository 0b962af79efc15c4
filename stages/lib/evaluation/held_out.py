"""Evaluation samples, shared by all policies and baselines, and the digest that makes scores
comparable."""

from __future__ import annotations

from collections.abc import Sequence

from stages.domain.core.digest import digest
from stages.domain.core.records import Sample
from stages.errors import InputError
from stages.lib.rows.samples import load_samples, samples_present
from stages.params import Params


def evaluation_samples(params: Params) -> list[Sample]:
    """Draw the samples that every policy and every baseline is scored on: at most
    ``samples_per_task`` of each task of the split.

    A sample's rank in the draw depends on its own id only, so a new clip displaces few others.

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
    chosen: list[Sample] = []
    for task in tasks:
        ranked = sorted(
            load_samples(split, [task]), key=lambda sample: digest({"seed": params.seed, "id": sample.sample_id})
        )
        chosen += ranked[: params.evaluation.samples_per_task]
    return chosen


def evaluation_digest(params: Params, samples: Sequence[Sample]) -> str:
    """Digest of everything that a score depends on apart from the policy: samples, prompts, judge,
    scoring, decoding.

    Only scores with equal digests are compared.
    """
    return digest(
        {
            # A sample's recordings change intervals only.
            "samples": [sample.model_dump(mode="json", exclude={"recordings"}) for sample in samples],
            "prompt": params.prompt.model_dump(mode="json"),
            "judge": params.judge.model_dump(mode="json"),
            "rewards": params.rewards.model_dump(mode="json"),
            "max_new_tokens": params.evaluation.max_new_tokens,
        }
    )
