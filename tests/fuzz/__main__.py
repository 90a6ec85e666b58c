"""`python tests/fuzz` fuzzes every target, `... TARGET` one of them, `... TARGET FILE` replays an input."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from fuzzing import TARGETS, fuzz, load, report


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/fuzz", description=__doc__)
    parser.add_argument("target", nargs="?", choices=TARGETS, help="default: every one, in turn")
    parser.add_argument("file", nargs="?", type=Path, help="an input to replay")
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.file:
        with tempfile.TemporaryDirectory() as folder:
            load(options.target, Path(folder)).check(options.file.read_bytes())
        print("keeps its promises")
        return 0
    failures = 0
    for name in [options.target] if options.target else TARGETS:
        counts: dict[str, int] = {}
        for failure in fuzz(name, options.seed, options.seconds, counts):
            failures += 1
            print(report(name, options.seed, failure), flush=True)
        print(f"{name}: {counts.get(name, 0)} inputs in {options.seconds:g} s, seed {options.seed}", flush=True)
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
