"""The one rendering of a sample as a prompt that SFT, GRPO, evaluation and prediction share."""

from __future__ import annotations

from pydantic import Field

from stages.domain.records import Record, Sample, TaskName


class PromptTexts(Record):
    """Instructions that follow the question (``prompt`` in ``params.yaml``)."""

    #: Of every task but the structured caption.
    instruction: str = Field(min_length=1)
    #: Of the structured caption, whose thinking is JSON.
    structured_instruction: str = Field(min_length=1)


def render_question(question: str, options: tuple[str, ...] = ()) -> str:
    """The question, followed by its lettered options.

    >>> render_question("what does it do first ?", ("rises", "grows"))
    'what does it do first ? A rises B grows'
    """
    lettered = (f"{chr(ord('A') + i)} {option}" for i, option in enumerate(options))
    return " ".join((question, *lettered))


def render_prompt(question: str, task: TaskName, texts: PromptTexts) -> str:
    """The user's text: question, line break, instruction."""
    instruction = texts.structured_instruction if task == "structured_caption" else texts.instruction
    return f"{question}\n{instruction}"


def sample_prompt(sample: Sample, texts: PromptTexts) -> str:
    return render_prompt(render_question(sample.question, sample.options), sample.task, texts)
