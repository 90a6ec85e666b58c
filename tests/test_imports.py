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
    "sampler": set(),
    "system": {"diffusion", "sampler"},
    "sampling": {"diffusion", "ops", "system", "sampler"},
    "models": {"diffusion", "system", "sampler"},
    "data": {"system"},
    "training": {"losses", "models", "data", "sampling", "evaluation", "diffusion", "system", "sampler"},
    "evaluation": {"sampling", "data", "system", "sampler"},
    "pipeline": {"data", "models", "sampling", "system", "sampler"},
    "cli": {
        "ops", "losses", "models", "data", "sampling", "training", "evaluation", "diffusion", "system", "sampler",
        "pipeline",
    },
}  # fmt: skip
COMMON = {"errors", "files", "processes", "randomness", "__version__"}
"""What any part may import; these import nothing but each other."""
ENTRY = {"__main__"}
"""What imports `cli`, so that `python -m contrastive_i2v` runs it."""


def files_of(part: str) -> list[Path]:
    """The files of a part: a folder, or one file."""
    return sorted((PACKAGE / part).rglob("*.py")) or [PACKAGE / f"{part}.py"]


def imports_of(path: Path) -> set[str]:
    """The parts of the package that a file imports, but for the common ones."""
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
    return found - COMMON


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_a_part_imports_only_what_it_may(part: str) -> None:
    for path in files_of(part):
        extra = imports_of(path) - ALLOWED[part] - {part}
        assert not extra, (
            f"{path.relative_to(PACKAGE)} imports {sorted(extra)}; {part} may import {sorted(ALLOWED[part])}"
        )


def test_every_part_is_in_the_table() -> None:
    parts = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    parts |= {path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    assert parts - COMMON - ENTRY == set(ALLOWED)


@pytest.mark.parametrize("part", sorted(COMMON - {"__version__"}))
def test_what_is_common_imports_no_part(part: str) -> None:
    assert imports_of(PACKAGE / f"{part}.py") == set()


def test_imports_between_parts_have_no_circle() -> None:
    waiting = {part: {i for path in files_of(part) for i in imports_of(path)} - {part} for part in ALLOWED}
    while free := {part for part, needs in waiting.items() if not needs & waiting.keys()}:
        waiting = {part: needs for part, needs in waiting.items() if part not in free}
    assert not waiting, f"each of these imports another one of them: {waiting}"


def test_the_op_the_losses_and_the_wall_need_torch_alone() -> None:
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"diffusers", "transformers", "accelerate", "decord", "av", "tyro", "safetensors"}:
            raise ImportError(f"{name} was imported")
sys.meta_path.insert(0, Refuse())
import contrastive_i2v.ops, contrastive_i2v.losses, contrastive_i2v.diffusion
import contrastive_i2v.system, contrastive_i2v.files, contrastive_i2v.randomness
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
