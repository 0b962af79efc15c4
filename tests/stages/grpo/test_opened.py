"""Chat templates that begin the reply themselves: what they put in front of it belongs to it,
everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from stages.domain.core.replies import final_answer, opened_by, parse_reply
from stages.grpo.train import train_grpo
from stages.lib.inference.generate import generate, rollouts
from stages.lib.inference.policy import ModelPolicy
from stages.lib.models.load import load_model, save_model
from stages.lib.models.processor import IGNORE, encode_prompts, training_batch
from stages.lib.models.rendering import render, reply_opening
from stages.lib.training.mixture import Example
from stages.sft.train import train_sft
from stages.tools.suites.engines.local import LocalModel
from stages.tools.suites.engines.questions import Answer, questions
from stages.tools.suites.published.choices import strict_choice
from tests.support.training.tiny import REPLIES, Paying, Seen, frames, grpo_row, sft_row, tasks_of, tinted, tiny

OPEN, CLOSED = "<think>\n", "<think>\n\n</think>\n\n"
#: As in Qwen3.5's small models: no thinking, unless it is asked for.
SWITCHED = (
    "{%- if enable_thinking is defined and enable_thinking is true %}{{ '<think>\\n' }}"
    "{%- else %}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
)


def opening(text: str, family: str = "qwen2_5_vl") -> tuple[PreTrainedModel, Any]:
    """A tiny model whose template ends with `text`, a piece of a template or what it writes."""
    model, processor = tiny(family)
    written = text if text.startswith("{%") else f"{{{{ {text!r} }}}}"
    changed: Any = processor
    changed.chat_template += "{%- if add_generation_prompt %}" + written + "{%- endif %}"
    return model, processor


@pytest.fixture
def opened(tmp_path: Path) -> Path:
    """A saved model whose template opens the think block."""
    save_model(*opening(OPEN), tmp_path / "opened")
    return tmp_path / "opened"


@pytest.mark.parametrize(
    ("prompt", "opens"),
    [
        ("<|im_start|>assistant\n", ""),
        ("Write <think> and <answer> tags<|im_end|>\n<|im_start|>assistant\n", ""),
        ("<|im_start|>assistant\n<think>\n", "<think>\n"),
        ("<|im_start|>assistant\n<think>", "<think>"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "<think>\n\n</think>\n\n"),
        ("<|Assistant|></think>", "</think>"),
    ],
)
def test_what_a_prompt_opens(prompt: str, opens: str) -> None:
    assert opened_by(prompt) == opens


@pytest.mark.parametrize(("ends", "opens"), [("", ""), (OPEN, OPEN), (CLOSED, CLOSED), (SWITCHED, OPEN)])
def test_the_opening_is_read_off_the_rendered_prompt(family: str, ends: str, opens: str) -> None:
    _, processor = opening(ends, family)
    assert reply_opening(processor) == opens
    assert render(processor, "What <think> is it?").endswith(f"assistant\n{opens}")


def test_sft_completes_the_tag_and_does_not_repeat_it() -> None:
    _, processor = opening(OPEN)
    prompts = encode_prompts(processor, [("What colour?", (frames(0),))])
    batch = training_batch(processor, prompts, [REPLIES[0]])
    taught = batch["labels"][0] != IGNORE
    tokenizer: Any = processor.tokenizer
    assert tokenizer.decode(batch["labels"][0][taught]) == "it is red</think><answer>a red bar</answer><|im_end|>"
    whole = tokenizer.decode(batch["input_ids"][0])
    assert whole.endswith("assistant\n<think>\nit is red</think><answer>a red bar</answer><|im_end|>")
    with pytest.raises(ValueError, match="does not begin with '<think>'"):
        training_batch(processor, prompts, ["a red bar"])


def sft(folder: Path, examples: Sequence[Example], home: Path, seen: Seen, steps: int) -> None:
    train_sft(
        folder,
        examples,
        sft_row(steps=steps, warmup_steps=0, save_steps=steps),
        stage="sft@opened",
        seed=1,
        out=home / "sft",
        scratch=home / "sft-scratch",
        hooks=seen.hooks,
    )


def grpo(folder: Path, examples: Sequence[Example], home: Path, seen: Seen, told: list[str]) -> None:
    def reward(_: Sequence[str], replies: Sequence[str]) -> list[float | None]:
        told.extend(replies)
        return [float(parse_reply(reply) is not None) for reply in replies]

    train_grpo(
        folder,
        examples,
        grpo_row(steps=1, warmup_steps=0, save_steps=1, max_completion_tokens=24),
        stage="grpo@opened",
        rewards=Paying(reward, well_formed=lambda reply: parse_reply(reply) is not None, tasks=tasks_of(examples)),
        seed=1,
        out=home / "grpo",
        scratch=home / "grpo-scratch",
        hooks=seen.hooks,
    )


def test_training_rollouts_and_evaluation_read_replies_with_it(
    opened: Path, examples: list[Example], tmp_path: Path, seen: Seen
) -> None:
    sft(opened, examples, tmp_path, seen, steps=60)
    told: list[str] = []
    grpo(tmp_path / "sft/final", examples, tmp_path, seen, told)
    assert told
    assert [reply for reply in told if not reply.startswith(OPEN)] == []
    formats = [values["format"] for _, values in seen.metrics if "format" in values]
    assert formats == [pytest.approx(sum(parse_reply(reply) is not None for reply in told) / len(told))]
    assert formats[0] > 0.5, "without the opening, none of them had the form"

    model, processor = load_model(tmp_path / "sft/final", "fp32")
    shown = [tinted(number, number) for number in range(3)]
    items = [("What colour is number 1?", one) for one in shown]
    greedy = generate(ModelPolicy(model, processor), items, max_new_tokens=40, batch_size=3)
    parsed = [parse_reply(reply) for reply in greedy]
    assert [reply and reply.answer for reply in parsed] == ["a red bar", "a green bar", "a blue bar"]
    drawn = rollouts(
        ModelPolicy(model, processor), items[:1], ["s"], count=2, max_new_tokens=40, temperature=1.0, batch_size=1
    )
    assert all(reply.startswith(OPEN) for reply in drawn[0])
    answers: list[Answer] = []
    asked = questions([(str(n), str(n), items[n][0]) for n in range(3)], set())
    LocalModel(ModelPolicy(model, processor), 40, 0).answer(
        asked, set(asked), lambda sight: shown[int(sight)], 2, answers.extend
    )
    assert [answer.reply for answer in answers] == greedy
    assert [strict_choice(reply, ("A red bar", "A green bar", "A blue bar")) for reply in greedy] == ["A", "B", "C"]
    # Cut off while it thinks: no answer, whatever it has said so far.
    short = generate(ModelPolicy(model, processor), items[:1], max_new_tokens=2, batch_size=1)
    assert final_answer(short[0]) is None


def test_a_template_that_ends_thinking_is_refused_in_training_and_read_in_evaluation(
    tmp_path: Path, examples: list[Example], seen: Seen
) -> None:
    model, processor = opening(CLOSED)
    save_model(model, processor, tmp_path / "closed")
    for train in (
        lambda: sft(tmp_path / "closed", examples, tmp_path, seen, steps=1),
        lambda: grpo(tmp_path / "closed", examples, tmp_path, seen, []),
    ):
        with pytest.raises(
            ValueError, match=r"chat_template: puts '<think>\\n\\n</think>\\n\\n' in front of every reply"
        ):
            train()
    reply = generate(ModelPolicy(model, processor), [("What colour?", frames(0))], max_new_tokens=3, batch_size=1)[0]
    assert reply.startswith(CLOSED)
    assert final_answer(CLOSED + "B") == "B"
    assert final_answer(CLOSED + "<think>I look.</think><answer>B</answer>") == "B"
