"""The video systems beside each other, and Emu Video's parts each against its absence.

    python -m benchmarks.video_systems WORK

Everything trains from the packaged model on the project's own moving shapes and is measured on held-out ones, so that
the command needs nothing but two cores and some hours. The same command goes on where it was stopped; `--only NAME`
trains those runs alone (several processes may share the work), `--compare` measures what is trained.

    WORK/clips               shapes, 800 to train on and 64 held out
    WORK/runs/NAME           the trainings
    WORK/systems, WORK/emu   the two comparisons: report.html, report.json
    WORK/real-footage        the systems on the seconds of real clips that docs/real_footage.py holds out
    WORK/between.json        the interpolation model beside paths through latents, on true keyframes
    WORK/interpolated        Emu Video's own 8 frames at 5 a second as 16 of 20 a second, by the model and by a path
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

FRAMES = 15
"""Of every video: two windows of 8, the second one from the first one's last frame."""


@dataclass(frozen=True)
class Run:
    """A training: a recipe, the run that its model comes from, steps, and options on top."""

    recipe: str
    steps: int
    start: str | None = None
    options: tuple[str, ...] = ()


STAGE, NO_ZERO_SNR = "tiny-emu-video", ("--system.zero-terminal-snr", "False")
CONTRASTIVE = ("--loss.target-weight", "0.2")
FORCING = ("--system.frame-timesteps", "True", "--system.past-frames", "3")
RUNS: dict[str, Run] = {
    "baseline": Run("tiny-baseline", 400),
    "contrastive": Run("tiny-contrastive", 400),
    "consisti2v": Run("tiny-consisti2v", 700),
    "consisti2v-seed1": Run("tiny-consisti2v", 700, options=("--seed", "1")),
    "consisti2v-seed2": Run("tiny-consisti2v", 700, options=("--seed", "2")),
    "consisti2v-contrastive": Run("tiny-consisti2v", 700, options=CONTRASTIVE),
    "consisti2v-contrastive-seed1": Run("tiny-consisti2v", 700, options=(*CONTRASTIVE, "--seed", "1")),
    "consisti2v-contrastive-seed2": Run("tiny-consisti2v", 700, options=(*CONTRASTIVE, "--seed", "2")),
    "consisti2v-forcing": Run("tiny-consisti2v", 700, options=FORCING),
    "consisti2v-forcing-seed1": Run("tiny-consisti2v", 700, options=(*FORCING, "--seed", "1")),
    "consisti2v-forcing-seed2": Run("tiny-consisti2v", 700, options=(*FORCING, "--seed", "2")),
    "emu-image": Run(f"{STAGE}/image", 500),
    "emu-low": Run(f"{STAGE}/low", 250, "emu-image"),
    "emu": Run(f"{STAGE}/high", 350, "emu-low"),
    # about as long as a ConsistI2V takes
    "emu-long": Run(f"{STAGE}/high", 1000, "emu-low"),
    "emu-tuned": Run(f"{STAGE}/fine-tune", 80, "emu"),
    "emu-longer": Run(f"{STAGE}/fine-tune", 80, "emu", ("--data.keep", "1")),
    # a step at 32 pixels takes a third of one at 64: 250 of them are 80
    "emu-one-stage": Run(f"{STAGE}/high", 430, "emu-image"),
    "emu-all-trained": Run(f"{STAGE}/high", 350, "emu-low-all-trained", ("--system.freeze-spatial", "False")),
    "emu-low-all-trained": Run(f"{STAGE}/low", 250, "emu-image", ("--system.freeze-spatial", "False")),
    "emu-direct": Run(f"{STAGE}/high", 350, "emu-low-direct", ("--system.factorised", "False")),
    "emu-low-direct": Run(f"{STAGE}/low", 250, "emu-image", ("--system.factorised", "False")),
    "emu-image-signal": Run(f"{STAGE}/image", 500, options=NO_ZERO_SNR),
    "emu-low-signal": Run(f"{STAGE}/low", 250, "emu-image-signal", NO_ZERO_SNR),
    "emu-signal": Run(f"{STAGE}/high", 350, "emu-low-signal", NO_ZERO_SNR),
    "ltx-base": Run("tiny-ltx-base", 2500),
    "ltx-video": Run("tiny-ltx-video", 1500, "ltx-base"),
    "emu-interpolation": Run(f"{STAGE}/interpolation", 150, "emu"),
}
SYSTEMS = {
    "baseline": "baseline",
    "contrastive": "contrastive",
    "consisti2v": "consisti2v",
    "consisti2v-no-frameinit": "consisti2v?frame_init=false",
    "consisti2v-seed1": "consisti2v-seed1",
    "consisti2v-seed1-no-frameinit": "consisti2v-seed1?frame_init=false",
    "consisti2v-seed2": "consisti2v-seed2",
    "consisti2v-seed2-no-frameinit": "consisti2v-seed2?frame_init=false",
    "consisti2v-contrastive": "consisti2v-contrastive",
    "emu-video": "emu-long",
    "ltx-video": "ltx-video",
}
EMU = {
    "emu-video": "emu",
    "tuned-on-the-best": "emu-tuned",
    "tuned-on-all": "emu-longer",
    "one-stage": "emu-one-stage",
    "all-trained": "emu-all-trained",
    "text-to-video": "emu-direct",
    "signal-at-the-end": "emu-signal",
}


def call(*arguments: object) -> None:
    """A command on one thread; its failure ends the whole."""
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    command = [sys.executable, "-m", "contrastive_i2v", *map(str, arguments)]
    if subprocess.run(command, env=environment).returncode:
        sys.exit(f"failed: {' '.join(command)}")


def train(work: Path, name: str) -> None:
    """Train a run and what it starts from, but for what is trained."""
    run, output = RUNS[name], work / "runs" / name
    if (output / "model" / "system.json").exists():
        return
    if run.start:
        train(work, run.start)
    if run.recipe == "tiny-ltx-base":  # it makes clips of its own
        return call("train", "--recipe", run.recipe, "--steps", run.steps, "--output", output)
    data = ["--data.path", work / "clips/train", "--data.cache-dir", work / "latents"]
    data += ["--data.validation-path", work / "clips/test", "--preview.every", 500, "--preview.frames", FRAMES]
    start = ["--model", work / "runs" / run.start] if run.start else []
    data += ["--no-calibration"]  # the clips that are reported on choose nothing
    resume = ["--resume"] if (output / "checkpoints").exists() else []
    call(
        "train", "--recipe", run.recipe, "--steps", run.steps, "--output", output, *data, *start, *run.options, *resume
    )


def compare(work: Path, output: str, methods: dict[str, str], data: str = "clips", frames: int = FRAMES) -> None:
    """Measure what is trained of the methods, and the two baselines that need no training."""
    trained = {
        name: spec for name, spec in methods.items() if (work / "runs" / spec.partition("?")[0] / "model").exists()
    }
    specs = [f"{name}={work / 'runs' / spec}" for name, spec in trained.items()]
    options = ["--data", work / data / "test", "--train-data", work / data / "train", "--frames", frames]
    options += ["--output", work / output]
    call("compare", *options, "--methods", *specs, "first-frame", "retrieval")


def table(report: Path, against: str = "first-frame") -> list[str]:
    """A comparison as a markdown table: error over the frames and at some of them, video distance, motion, and error
    less that of another method, paired by clip. Frame 1 is the given one."""
    from contrastive_i2v.evaluation.results import load_report
    from contrastive_i2v.evaluation.statistics import paired_bootstrap

    methods = {one.name: {m.name: m for m in one.metrics} for one in load_report(report).methods}
    frames = len(methods["first-frame"]["frame_mse"].per_frame)
    shown = [1, frames // 2, frames - 1]
    heads = ["", "mean error", *(f"frame {k + 1}" for k in shown), f"error - {against}'s", "video distance", "motion"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    other = torch.tensor(methods[against]["frame_mse"].per_clip)
    for name, found in methods.items():
        error, distance, motion = found["frame_mse"], found["fvd"].estimate, found["motion_ratio"].estimate
        gap = paired_bootstrap(torch.tensor(error.per_clip), other)
        cells = [f"{error.estimate.value:.4f}", *(f"{error.per_frame[k]:.4f}" for k in shown)]
        cells.append("" if name == against else f"{gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]")
        cells += [f"{distance.value:.1f} [{distance.low:.0f}, {distance.high:.0f}]", f"{motion.value:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def frame_init_effect(report: Path) -> list[str]:
    """What FrameInit changes in ConsistI2V, paired over training seeds with Student's t."""
    from contrastive_i2v.evaluation.results import load_report
    from contrastive_i2v.evaluation.statistics import paired_difference

    methods = {one.name: {m.name: m for m in one.metrics} for one in load_report(report).methods}
    names = [name for name in ("consisti2v", "consisti2v-seed1", "consisti2v-seed2") if name in methods]
    lines = []
    for metric in ("frame_mse", "fvd", "kvd", "motion_ratio", "subject_consistency"):
        if metric in methods[names[0]]:
            values = [[methods[n + end][metric].estimate.value for n in names] for end in ("", "-no-frameinit")]
            gap = paired_difference(*values)
            lines.append(
                f"{metric}: {values[0]} with, {values[1]} without: {gap.value:+.4g} [{gap.low:.4g}, {gap.high:.4g}]"
            )
    return lines


def real_clips(folder: Path) -> None:
    """Three real clips, and the seconds of them that are held out."""
    if not folder.exists():
        subprocess.run([sys.executable, Path(__file__).parents[1] / "docs/real_footage.py", folder], check=True)


@torch.no_grad()
def between(work: Path) -> None:
    """Errors of the frames between true keyframes, by the interpolation model and by paths through the latents.

    37 true frames at 20 a second of every held-out clip, every 4th of them given; measured are the frames between the
    first keyframe and the last, in pixels in [-1, 1], against the truth as the autoencoder shows it.
    """
    from contrastive_i2v.data.frames import FramesConfig, valid_frames
    from contrastive_i2v.data.sources.folder import read_folder
    from contrastive_i2v.data.video import probe, read_frames, resize_frames
    from contrastive_i2v.evaluation.statistics import bootstrap, paired_bootstrap
    from contrastive_i2v.models import load_system
    from contrastive_i2v.sampling import fill_in, resample_trajectory

    system = load_system(work / "runs/emu-interpolation", device="cpu")
    window, gap = system.window, system.window.given[0]
    rest = [place for place in range(gap, window.given[-1]) if place not in window.given]
    errors: dict[str, list[Tensor]] = {}
    for number, clip in enumerate(read_folder(work / "clips/test")[0]):
        indices = valid_frames(probe(clip.path), clip, FramesConfig(frame_rate=20.0))[: window.length]
        pixels = resize_frames(read_frames(clip.path, indices), system.size)
        own = system.codec.sample(system.codec.encode(pixels[None]))  # [1, 37, C, h, w]
        latents, given = system.codec.normalize(own)[0], own[:, list(window.given)]
        truth = system.codec.decode(latents[None])[0]
        made = {"interpolation model": fill_in(system, given, system.encode_text([clip.caption]), seeds=[number])[0]}
        for path in ("linear", "catmull-rom"):
            filled = resample_trajectory(latents[list(window.given)], (len(window.given) - 1) * gap + 1, path)
            made[path] = torch.cat([latents[:gap], filled, latents[-gap:]])
        made["nearest keyframe"] = latents[[min(window.given, key=lambda k: abs(k - i)) for i in range(window.length)]]
        for name, video in made.items():
            error = (system.codec.decode(video[None])[0] - truth)[rest].square().mean()
            errors.setdefault(name, []).append(error)
    table = {name: torch.stack(values) for name, values in errors.items()}
    ours = table["interpolation model"]
    found = {
        name: {"mse": asdict(bootstrap(values)), "against the model": asdict(paired_bootstrap(values, ours))}
        for name, values in table.items()
    }
    (work / "between.json").write_text(json.dumps(found, indent=2) + "\n")
    for name, row in found.items():
        print(name, row)


@torch.no_grad()
def interpolate(work: Path, clips: int = 32) -> None:
    """Videos of 20 frames a second from Emu Video's 5, by the interpolation model and by a path, compared."""
    from contrastive_i2v.data.frames import FramesConfig, valid_frames
    from contrastive_i2v.data.sources.folder import read_folder
    from contrastive_i2v.data.video import probe, read_frames, resize_frames, to_uint8, write_video
    from contrastive_i2v.models import load_system
    from contrastive_i2v.sampling import fill_in, resample_trajectory, rollout

    folders = {name: work / "interpolated" / "videos-of" / name for name in ("interpolation-model", "path")}
    if not folders["path"].exists():
        video, between = (load_system(work / "runs" / name, device="cpu") for name in ("emu-long", "emu-interpolation"))
        gap, codec = between.window.given[0], video.codec
        for number, clip in enumerate(read_folder(work / "clips/test")[0][:clips]):
            first = valid_frames(probe(clip.path), clip, FramesConfig())[:1]
            pixels = resize_frames(read_frames(clip.path, first), video.size)
            text, count = video.encode_text([clip.caption]), len(between.window.given)
            own = codec.sample(codec.encode(pixels[None]))[:, 0]
            keys = rollout(video, own, text, frames=count, seeds=[number])
            made = fill_in(between, codec.denormalize(keys), text, seeds=[number])[:, gap:-gap]
            path = resample_trajectory(keys[0], (count - 1) * gap + 1)[None]
            for folder, latents in zip(folders.values(), (made, path), strict=True):
                frames = to_uint8(codec.decode(latents[:, :16])[0])
                write_video(folder / f"{clip.path.stem}.mp4", frames, fps=20.0)
    specs = [f"{name}={folder}" for name, folder in folders.items()]
    options = ["--data", work / "clips/test", "--frames", 16, "--frame-rate", 20, "--clips", clips]
    options += ["--latents", "tiny", "--output", work / "interpolated"]
    call("compare", *options, "--methods", *specs, "first-frame")


def main() -> None:
    """Draw the clips, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", nargs="*", choices=list(RUNS), help="runs to train; all where none is named")
    parser.add_argument("--compare", action="store_true", help="train nothing, measure what is trained")
    options = parser.parse_args()
    work = options.work.absolute()
    if not (work / "clips").exists():
        call("shapes", "--output", work / "clips", "--train-clips", 800, "--test-clips", 64, "--seed", 11)
    if not options.compare:
        for name in options.only or RUNS:
            train(work, name)
    if options.compare or not options.only:
        compare(work, "systems", SYSTEMS)
        compare(work, "emu", EMU)
        real_clips(work / "real")
        compare(work, "real-footage", SYSTEMS, "real", frames=5)
        if (work / "runs/emu-interpolation/model").exists():
            between(work)
            interpolate(work)
        for name in ("systems", "emu", "real-footage", "interpolated"):
            against = "emu-video" if name == "emu" else "first-frame"
            print(f"\n{name}", *table(work / name / "report.json", against), sep="\n")
        print("", *frame_init_effect(work / "systems/report.json"), sep="\n")


if __name__ == "__main__":
    main()
