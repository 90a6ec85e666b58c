"""Kernels run on a GPU where there is one, else in Triton's interpreter, which has to be chosen before triton is
imported. Also lets the tests here import `problems` and `compile_ahead`: importlib mode puts no test folder on the
path."""

import os
import sys
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "ops"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
