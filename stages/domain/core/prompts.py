"""Rendering of a sample as a prompt, shared by SFT, GRPO, evaluation and prediction."""

from __future__ import annotations

from pydantic import Field, model_validator

from stages.domain.core.records import Record, Sample


class PromptTexts(Record):
    """Instructions that follow the question (``prompt`` in ``params.yaml``)."""

    instruction: str = Field(min_length=1)
    #: Instruction of samples whose thinking must be an analysis of the subjects as JSON.
    structured_instruction: str = Field(min_length=1)
    #: Template of one option of a multiple-choice question; contains ``{letter}`` and ``{option}``
    #: once each.
    option: str

    @model_validator(mode="after")
    def _shows_letter_and_option(self) -> PromptTexts:
        if self.option.count("{letter}") != 1 or self.option.count("{option}") != 1:
            raise ValueError(
                f"option {self.option!r}: needs {{letter}} once and {{option}} once, such as '{{letter}}. {{option}}'"
            )
        return self


def render_question(question: str, options: tuple[str, ...], texts: PromptTexts) -> str:
    """Render the question, followed by its options, each in the form of ``texts.option``."""
    # Two replacements instead of one format(), since an option may itself contain braces.
    lettered = [
        texts.option.replace("{letter}", chr(ord("A") + i)).replace("{option}", option, 1)
        for i, option in enumerate(options)
    ]
    return " ".join((question, *lettered))


def render_prompt(question: str, texts: PromptTexts, *, analysed: bool = False) -> str:
    """Render the user message: question, line break, instruction.

    ``analysed``: the thinking must be an analysis of the subjects.
    """
    instruction = texts.structured_instruction if analysed else texts.instruction
    return f"{question}\n{instruction}"


def sample_prompt(sample: Sample, texts: PromptTexts) -> str:
    return render_prompt(render_question(sample.question, sample.options, texts), texts, analysed=bool(sample.subjects))
