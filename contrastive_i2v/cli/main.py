"""`contrastive-i2v COMMAND`: picks the command, and turns bad input into one line."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence

from contrastive_i2v import __version__
from contrastive_i2v.cli.allocator import keep_freed_memory
from contrastive_i2v.errors import DivergedError, InputError, RankLostError

COMMANDS = {
    "demo": "make clips, fine-tune with and without the contrastive loss, and open the page that compares them",
    "train": "fine-tune a model on a folder of captioned videos",
    "plan": "print what a training needs before it runs, and what makes it fit in so many gigabytes",
    "sample": "turn still images and prompts into videos",
    "interpolate": "give rollouts and videos another frame rate, along their path in latent space",
    "evaluate": "measure a model's videos of held-out clips, with intervals, into a report",
    "compare": "measure several models on the same clips, and say which differences are real",
    "merge": "write a model with its adapters (LoRA) merged into its weights",
    "calibrate": "choose the steps, scale and guidance that a trained model is sampled with, on held-out clips",
    "study": "let people compare two folders of videos in the browser, and count their votes",
    "experiment": "train with and without the contrastive term over several seeds, and compare",
    "filter": "score the clips of a dataset, so that training can choose among them",
    "encode": "fill the cache of latents and prompt embeddings that training reads",
    "shapes": "write captioned clips of moving shapes, to try things on",
    "footage": "write captioned clips of the real world, from files that installed packages carry",
    "random-model": "write a tiny model with random weights, to try a family's paths on",
    "info": "print versions, devices, and what was built",
}

USAGE = f"""contrastive-i2v {__version__}: a still image and a sentence become a coherent video

usage: contrastive-i2v COMMAND [OPTIONS]      (COMMAND --help lists its options)

{chr(10).join(f"  {name:<12}{text}" for name, text in COMMANDS.items())}

Start with:  contrastive-i2v demo
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for bad input, 3 for a diverged training, 4 where another process of
    the run was lost, 128 and the signal's number (Ctrl-C: 130) when interrupted."""
    command, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    if command in ("--help", "-h", "help"):
        print(USAGE)
        return 0
    if command == "--version":
        print(__version__)
        return 0
    if command not in COMMANDS:
        print(f"error: no command {command!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a package that it can do without
    keep_freed_memory()
    try:
        module = importlib.import_module(f"contrastive_i2v.cli.{command.replace('-', '_')}")
        if transformers := sys.modules.get("transformers"):
            transformers.utils.logging.disable_progress_bar()  # a bar for each part loaded says nothing here
        module.run(rest)
    except InputError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 2
    except DivergedError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 3
    except RankLostError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 4
    except OSError as error:  # a full disk, a folder that can't be written
        if error.filename is None and error.errno is None:
            raise
        print(f"\nerror: {error.filename or 'a file'}: {error.strerror}; what was finished is kept", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(
            "\ninterrupted: what was finished is kept; the same command goes on (train: with --resume)", file=sys.stderr
        )
        return 128 + getattr(error, "number", signal.SIGINT)
    return 0
