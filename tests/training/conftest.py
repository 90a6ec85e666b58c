"""Lets the tests here import `runs` and `video_models`: importlib mode puts no test folder on the path."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
