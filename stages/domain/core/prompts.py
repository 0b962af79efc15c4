"""The one rendering of a sample as a prompt that SFT, GRPO, evaluation and prediction share."""

from __future__ import annotations

from pydantic import Field, model_validator

from stages.domain.core.records import Record, Sample


class PromptTexts(Record):
    """Instructions that follow the question (``prompt`` in ``params.yaml``)."""

    instruction: str = Field(min_length=1)
    #: Where the thinking is to be an analysis of the subjects as JSON.
    structured_instruction: str = Field(min_length=1)
    #: How one choice of a multiple-choice question is written, with ``{letter}`` and ``{option}`` in it.
    option: str

    @model_validator(mode="after")
    def _shows_letter_and_option(self) -> PromptTexts:
        if self.option.count("{letter}") != 1 or self.option.count("{option}") != 1:
            raise ValueError(f"option {self.option!r}: needs {{letter}} once and {{option}} once, such as '{{letter}}. {{option}}'")
        return self


def render_question(question: str, options: tuple[str, ...], texts: PromptTexts) -> str:
    """The question, followed by its options, each written as ``texts.option`` says."""
    # Replaced one after the other, since an option may itself hold braces.
    lettered = [
        texts.option.replace("{letter}", chr(ord("A") + i)).replace("{option}", option, 1) for i, option in enumerate(options)
    ]
    return " ".join((question, *lettered))


def render_prompt(question: str, texts: PromptTexts, *, analysed: bool = False) -> str:
    """The user's text: question, line break, instruction. ``analysed``: the thinking is to be an analysis of the subjects."""
    instruction = texts.structured_instruction if analysed else texts.instruction
    return f"{question}\n{instruction}"


def sample_prompt(sample: Sample, texts: PromptTexts) -> str:
    return render_prompt(render_question(sample.question, sample.options, texts), texts, analysed=bool(sample.subjects))
