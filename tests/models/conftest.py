"""Lets the tests here import `temporal_oracle` and `video_models`: importlib mode puts no test folder on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
