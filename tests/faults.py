"""The fault table of docs/reliability.md, made from the tests: `python tests/faults.py` writes it.

A test that does harm says so: `@pytest.mark.fault("what is done", "what is promised")`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- the table is made by tests/faults.py -->\n", "<!-- end of the table -->\n"


def faults() -> Iterator[tuple[str, str, str]]:
    """(what is done, what is promised, the test that holds it), in order of the files."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for mark in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    done, promised = (ast.literal_eval(argument) for argument in mark.args)
                    yield done, promised, f"{path.relative_to(ROOT / 'tests').as_posix()}::{node.name}"


def table() -> str:
    """The table in Markdown."""
    rows = [f"| {done} | {promised} | `{test}` |" for done, promised, test in faults()]
    return "\n".join(["| what is done to it | what it promises | the test |", "|---|---|---|", *rows]) + "\n"


def page() -> str:
    """docs/reliability.md with the table as the tests have it."""
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return head + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
