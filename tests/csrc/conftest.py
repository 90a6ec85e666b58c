"""Lets the tests here import `emulator` and, from tests/ops, `problems`: importlib mode puts no folder on the path."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "ops"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
