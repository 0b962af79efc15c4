"""Run single functions of a harness for :mod:`benchmarks.crosscheck`, in another environment; reads
a request from stdin, writes JSON.

Only what is named is taken from the sources (and what they import, where it is installed):
importing a harness whole needs all it needs.
"""

from __future__ import annotations

import ast
import contextlib
import json
import sys
import warnings


def load(sources: list[tuple[str, list[str]]]) -> dict[str, object]:
    """Load the named functions and values of each source into one namespace."""
    space: dict[str, object] = {"__name__": "harness", "__builtins__": __builtins__}
    warnings.simplefilter("ignore")  # of the harness's own string escapes
    for text, names in sources:
        missing = set(names)
        for node in ast.parse(text).body:
            code = compile(ast.Module([node], []), "<harness>", "exec")
            if isinstance(node, ast.Import | ast.ImportFrom):
                with contextlib.suppress(ImportError):
                    exec(code, space)
                continue
            targets = node.targets if isinstance(node, ast.Assign) else []
            named = (
                [node.name]
                if isinstance(node, ast.FunctionDef)
                else [one.id for one in targets if isinstance(one, ast.Name)]
            )
            if set(named) & set(names):
                exec(code, space)
                missing -= set(named)
        if missing:
            sys.exit(f"not in the harness any more: {', '.join(sorted(missing))}")
    return space


def main() -> None:
    order = json.load(sys.stdin)
    space = load(order["sources"])
    call = compile(order["call"], "<call>", "eval")
    found = []
    for reply, options, right in order["rows"]:
        try:
            found.append(eval(call, {**space, "reply": reply, "options": options, "right": right}))
        except Exception as error:  # whatever a harness does with a reply is data
            found.append({"raised": f"{type(error).__name__}: {error}"})
    json.dump(found, sys.stdout)


main()
