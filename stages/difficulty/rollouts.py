"""Rollouts outside training: which samples are rolled out, and what a policy's replies to them are worth."""

from __future__ import annotations

from functools import partial

from tqdm import tqdm

from stages.domain.core.digest import digest
from stages.domain.core.prompts import sample_prompt
from stages.domain.core.records import Sample
from stages.domain.rl.difficulty import Rolled, judged
from stages.lib.inference.generate import rollouts
from stages.lib.inference.vision_cache import encode_equal_videos_once
from stages.lib.judging.batch import score_replies
from stages.lib.judging.build import referee_of
from stages.lib.models.load import device, freeze, load_model, use_threads
from stages.lib.models.processor import fit_of
from stages.lib.rows.samples import load_samples
from stages.lib.video.open import frame_loader
from stages.params import Params
from stages.runtime import paths


def candidates(params: Params, name: str) -> list[Sample]:
    """At most ``max_samples_per_task`` training samples of each task that GRPO row ``name`` trains, in the order they were written.

    A sample's place in the draw depends on its own id only, so a new clip moves few others out.

    Raises:
        InputError: a task has no sample.
    """
    chosen: list[Sample] = []
    for task in params.grpo[name].trained_tasks:
        samples = load_samples("train", [task])
        ranked = sorted((sample.sample_id for sample in samples), key=lambda i: digest({"seed": params.seed, "id": i}))
        drawn = set(ranked[: params.difficulty[name].max_samples_per_task])
        chosen += [sample for sample in samples if sample.sample_id in drawn]
    return chosen


def roll_out(params: Params, name: str, samples: list[Sample]) -> list[Rolled]:
    """What becomes of each sample, in order, after rollouts of the policy that GRPO row ``name`` starts from.

    Raises:
        ModelUnavailableError: that policy has not been made.
    """
    row, referee = params.difficulty[name], referee_of(params)
    policy = paths.final_model(row.init)
    loader = frame_loader(params, partial(fit_of, policy))
    use_threads()
    model, processor = load_model(policy, params.model.precision)
    model.to(device())  # type: ignore[arg-type]
    # Nothing is trained, so what the vision tower made of a video serves all rollouts of its prompt, and other prompts about it.
    freeze(model, ["vision"])
    encode_equal_videos_once(model)
    with tqdm(total=len(samples), desc=f"difficulty@{name}", unit="sample", mininterval=1) as bar:
        replies = rollouts(
            model,
            processor,
            [(sample_prompt(sample, params.prompt), partial(loader.load, sample)) for sample in samples],
            [f"{params.seed}/difficulty@{name}/{sample.sample_id}" for sample in samples],
            count=row.rollouts,
            max_new_tokens=row.max_completion_tokens,
            temperature=row.temperature,
            batch_size=row.batch_size,
            progress=bar.update,  # type: ignore[arg-type]
        )
    asked = [sample for sample in samples for _ in range(row.rollouts)]
    scores = score_replies(asked, [reply for said in replies for reply in said], referee, params.rewards)
    values = [score.value for score in scores]
    return [judged(sample, values[n * row.rollouts : (n + 1) * row.rollouts], row) for n, sample in enumerate(samples)]
