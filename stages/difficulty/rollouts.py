"""Rollouts outside training: selection of samples, and scores of a policy's replies to them."""

from __future__ import annotations

from functools import partial

from tqdm import tqdm
from transformers import PreTrainedModel

from stages.domain.core.prompts import sample_prompt
from stages.domain.core.records import Sample
from stages.domain.rl.difficulty import Rolled, judged
from stages.lib.engine.policy import opened_policy
from stages.lib.inference.generate import rollouts
from stages.lib.inference.vision_cache import encode_equal_videos_once
from stages.lib.judging.batch import score_replies
from stages.lib.judging.build import referee_of
from stages.lib.models.load import freeze, use_threads
from stages.lib.models.resizing import fit_of
from stages.lib.rows.samples import drawn, load_samples
from stages.lib.video.open import frame_loader
from stages.params import Params
from stages.runtime import paths


def candidates(params: Params, name: str) -> list[Sample]:
    """Select at most ``max_samples_per_task`` training samples of each task of GRPO row ``name``,
    in file order; the draw is that of :func:`~stages.lib.rows.samples.drawn`.

    Raises:
        InputError: a task has no sample.
    """
    selected: list[Sample] = []
    for task in params.grpo[name].trained_tasks:
        samples = load_samples("train", [task])
        chosen = drawn(samples, params.difficulty[name].max_samples_per_task, params.seed)
        names = {sample.sample_id for sample in chosen}
        selected += [sample for sample in samples if sample.sample_id in names]
    return selected


def _of_frozen_tower(model: PreTrainedModel) -> None:
    """Nothing is trained, so the vision features of a video serve all rollouts of its prompt, and
    other prompts about it."""
    freeze(model, ["vision"])
    encode_equal_videos_once(model)


def roll_out(params: Params, name: str, samples: list[Sample]) -> list[Rolled]:
    """Roll out the policy that GRPO row ``name`` starts from, and decide for each sample, in order,
    whether it is kept.

    Raises:
        ModelUnavailableError: that policy does not exist.
        EngineError: the engine that the environment names cannot be used.
    """
    row, referee = params.difficulty[name], referee_of(params)
    start = paths.final_model(row.init)
    loader = frame_loader(params, partial(fit_of, start))
    use_threads()
    with (
        opened_policy(start, params.model.precision, stage=f"difficulty@{name}", prepare=_of_frozen_tower) as policy,
        tqdm(total=len(samples), desc=f"difficulty@{name}", unit="sample", mininterval=1) as bar,
    ):
        replies = rollouts(
            policy,
            [(sample_prompt(sample, params.prompt), partial(loader.load, sample)) for sample in samples],
            [f"{params.seed}/difficulty@{name}/{sample.sample_id}" for sample in samples],
            count=row.rollouts,
            max_new_tokens=row.max_completion_tokens,
            temperature=row.temperature,
            batch_size=row.batch_size,
            progress=bar.update,  # type: ignore[arg-type]
            videos=[(sample.timeline, sample.sampled_frames) for sample in samples],
        )
    repeated = [sample for sample in samples for _ in range(row.rollouts)]
    scores = score_replies(repeated, [reply for group in replies for reply in group], referee, params.rewards)
    values = [score.value for score in scores]
    return [judged(sample, values[n * row.rollouts : (n + 1) * row.rollouts], row) for n, sample in enumerate(samples)]
