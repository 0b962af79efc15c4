"""The page of all commands, from what typer knows of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer

from flows.cli.main import app
from generators.markdown import code, definition, joined, prose

INTRODUCTION = """\
# Command line

Generated from the program itself. `vidbridge COMMAND --help` prints the same in a terminal, and
`vidbridge --install-completion` completes commands and options in your shell.

Every command ends with status 0 when it did what was asked, 1 when it failed or the answer is no
(a candidate that the gate refuses, nothing accepted by `data check`), 2 when its arguments or
`params.yaml` are not usable, 130 after Ctrl-C and 143 after SIGTERM.
"""


#: The type of an option's value, in words.
_KINDS: dict[object, str] = {str: "text", int: "integer", float: "number", Path: "file or folder"}


def page() -> str:
    """The whole page: a heading for each command, with usage, description, examples, arguments and
    options."""
    lines = [INTRODUCTION]
    for name, command in all_commands():
        lines += section(name, command)
    return joined(lines)


def all_commands() -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its full name, in the order of ``vidbridge --help``."""
    waiting: list[tuple[str, Any]] = [("vidbridge", typer.main.get_command(app))]
    while waiting:
        name, command = waiting.pop(0)
        below = getattr(command, "commands", None)
        if below is None:
            yield name, command
        else:
            waiting[:0] = [(f"{name} {word}", each) for word, each in below.items()]


def section(name: str, command: Any) -> list[str]:
    """The lines of one command."""
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    usage = " ".join([name, *(_written(each) for each in arguments), *(["[OPTIONS]"] if options else [])])
    description, examples = split_examples(command.help or "")
    lines = [f"## {name}", "", "```text", usage, "```", ""]
    for paragraph in description:
        lines += [prose(paragraph), ""]
    if examples:
        lines += ["```bash", *examples, "```", ""]
    for each in arguments:
        lines += definition(code(_written(each)), [prose(each.help or "") + _default(each)])
    for each in options:
        names = ", ".join(code(spelling) for spelling in (*each.opts, *each.secondary_opts))
        value = "" if each.is_flag else f" {_value(each)}"
        lines += definition(names + value, [prose(each.help or "") + _default(each) + _needed(each)])
    return lines


def split_examples(text: str) -> tuple[list[str], list[str]]:
    """The paragraphs of a command's help without its examples, and the examples that are commands
    as they are.

    An example in words ("change X, then `vidbridge run`") stays among the paragraphs.
    """
    description: list[str] = []
    examples: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        words, *found = re.split(r"Examples?: (?=vidbridge |dvc )", " ".join(paragraph.split()))
        if words.strip():
            description.append(words.strip())
        examples += [command.strip() for example in found for command in re.split(r", or (?=vidbridge )", example)]
    return description, examples


def _written(argument: Any) -> str:
    name = str(argument.name).upper()
    name = f"{name}..." if argument.nargs == -1 else name
    return name if argument.required else f"[{name}]"


def _value(option: Any) -> str:
    kind = _KINDS[next(iter(get_args(option.type_descriptor.annotation)), option.type_descriptor.annotation)]
    least = "" if option.min is None else f", at least {option.min:g}"
    repeated = option.multiple and "may be repeated" not in (option.help or "").lower()
    return f"({kind}{least}{', may be repeated' if repeated else ''})"


def _default(parameter: Any) -> str:
    value = parameter.default
    absent = value is None or value is False or value == "" or "Sentinel" in type(value).__name__
    if absent or callable(value) or parameter.required:
        return ""
    shown = "on" if value is True else str(value)
    return f" Default: {code(shown)}."


def _needed(parameter: Any) -> str:
    return " **Required.**" if parameter.required else ""
