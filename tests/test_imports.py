"""Imports run one way: the table in docs/architecture.md, held."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "contrastive_i2v"

ALLOWED = {
    "ops": {"kernels", "_C"},
    "diffusion": set(),
    "losses": {"ops", "diffusion"},
    "sampling": {"diffusion", "ops"},
    "models": {"diffusion"},
    "data": set(),
    "training": {"losses", "models", "data", "sampling", "diffusion"},
    "evaluation": {"sampling", "data"},
    "cli": {"ops", "losses", "models", "data", "sampling", "training", "evaluation", "diffusion"},
}


def imports_of(path: Path) -> set[str]:
    """The parts of the package that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            head, _, rest = name.partition(".")
            if head == "contrastive_i2v" and rest:
                found.add(rest.split(".")[0])
    return found - {"errors", "__version__"}


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_a_part_imports_only_what_it_may(part: str) -> None:
    for path in sorted((PACKAGE / part).rglob("*.py")):
        extra = imports_of(path) - ALLOWED[part] - {part}
        assert not extra, (
            f"{path.relative_to(PACKAGE)} imports {sorted(extra)}; {part} may import {sorted(ALLOWED[part])}"
        )


def test_every_part_is_in_the_table() -> None:
    parts = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert parts == set(ALLOWED)


def test_the_op_and_the_losses_need_torch_alone() -> None:
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"diffusers", "transformers", "accelerate", "decord", "av", "tyro", "safetensors"}:
            raise ImportError(f"{name} was imported")
sys.meta_path.insert(0, Refuse())
import contrastive_i2v.ops, contrastive_i2v.losses, contrastive_i2v.diffusion
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
