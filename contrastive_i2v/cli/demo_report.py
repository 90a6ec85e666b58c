"""What the demo tells: the content of its page, `results.json`, and the table it prints."""

from __future__ import annotations

import math
import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_i2v import __version__
from contrastive_i2v.data.video import to_uint8, write_video
from contrastive_i2v.evaluation.compare import Measurement, Statistic, measure, summary, verdict
from contrastive_i2v.evaluation.report import Chart, HeldOutRow, Method, Report, Series
from contrastive_i2v.training.config import LossConfig, TrainConfig
from contrastive_i2v.training.logs import read_log

if TYPE_CHECKING:
    from contrastive_i2v.cli.demo import Options

BASE, STILL = "base", "still"
LABELS = {
    "contrastive": "contrastive",
    "baseline": "baseline",
    "literal": "literal",
    BASE: "no fine-tuning",
    STILL: "first frame repeated",
}
FPS = 5.0

Log = Sequence[Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the demo made."""

    options: Options
    runs: Mapping[str, Sequence[TrainConfig]]
    """Form -> its runs, one a seed."""
    captions: Sequence[str]
    truth: Tensor
    """`[N, F, 3, H, W]` in [-1, 1]."""
    videos: Mapping[str, Sequence[Tensor]]
    """Method -> the same shape, one a seed."""

    @cached_property
    def measured(self) -> dict[str, Measurement]:
        return {name: measure(each, self.truth) for name, each in self.videos.items()}

    @cached_property
    def verdict(self) -> list[str]:
        return verdict(self.measured, LABELS, forms=list(self.runs), baseline="baseline", still=STILL)

    @cached_property
    def logs(self) -> dict[str, list[Log]]:
        return {form: [read_log(run.output / "log.jsonl") for run in each] for form, each in self.runs.items()}


def build_report(outcome: Outcome, *, seconds: float) -> Report:
    """What the page shows; `seconds` is how long the command took."""
    forms, several = list(outcome.runs), outcome.options.seeds > 1
    rows = encode_videos(
        outcome.captions, {"truth": outcome.truth} | {LABELS[form]: outcome.videos[form][0] for form in forms}
    )
    methods = [
        Method(label=LABELS[name], style=name, measured=each, reference=name in (BASE, STILL))
        for name, each in outcome.measured.items()
    ]
    return Report(
        title="contrastive_i2v demo",
        summary="A first frame and a sentence become video. Copies of one model were fine-tuned on this machine, on "
        "the same clips, in the same order and with the same noise; only the loss differs. Here they go on from first "
        "frames of clips they never saw, each generated frame conditioning the next.",
        rows=rows,
        videos_note="Each row starts from the truth's first frame and its caption. This shape, colour and direction "
        "never occurred together in training." + " The videos are those of seed 0." * several,
        fps=FPS,
        methods=methods,
        verdict=outcome.verdict,
        charts=_charts(outcome),
        config=_config_lines(outcome, seconds),
        commands=_commands(outcome),
    )


def results(outcome: Outcome) -> dict[str, Any]:
    """Everything the page says, as plain numbers for JSON; null where a number isn't finite."""
    options = {name: str(v) if isinstance(v, Path) else v for name, v in asdict(outcome.options).items()}
    return {
        "options": options,
        "version": __version__,
        "torch": torch.__version__,
        "device": _device(),
        "captions": list(outcome.captions),
        "training_seconds": {
            form: [round(training_seconds(log, outcome.options.batch_size), 1) for log in each]
            for form, each in outcome.logs.items()
        },
        "spread": "standard deviation over seeds" if outcome.options.seeds > 1 else "standard error over clips",
        "methods": {
            name: {
                "error_by_frame": [_plain(each.frame_error(frame)) for frame in range(each.frames)],
                "error_by_clip": each.errors[:, :, 1:].mean(dim=2).tolist(),
                "mean_error": _plain(each.mean_error()),
                "motion_ratio": _plain(each.motion_ratio()),
            }
            for name, each in outcome.measured.items()
        },
        "verdict": outcome.verdict,
    }


def format_table(measured: Mapping[str, Measurement]) -> str:
    """The numbers as plain text: methods down, what was measured across."""
    rows = {name: summary(each) for name, each in measured.items()}
    lines = [["", *next(iter(rows.values()))]]
    for name, row in rows.items():
        lines.append([LABELS[name], *(_plus_minus(number) for number in row.values())])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def describe_loss(loss: LossConfig) -> str:
    """A loss in a line."""
    weights = {"target": loss.target_weight, "input": loss.input_weight}
    terms = [
        f"{'1/D' if weight is None else f'{weight:g}'} × cross entropy among {name} latents"
        for name, weight in weights.items()
        if weight != 0
    ]
    if not terms:
        return "diffusion loss alone"
    how = f"{'cosine' if loss.normalize else 'dot product'}, temperature {loss.temperature:g}"
    return f"diffusion loss + {' + '.join(terms)} ({how})"


def encode_videos(captions: Sequence[str], videos: Mapping[str, Tensor]) -> list[HeldOutRow]:
    """Every clip's videos as mp4, enlarged to about 192 pixels without smoothing."""
    scale = max(1, round(192 / next(iter(videos.values())).shape[-1]))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        for number, caption in enumerate(captions):
            encoded = {}
            for column, clips in videos.items():
                large = F.interpolate(clips[number], scale_factor=scale, mode="nearest")  # [F, 3, H, W]
                write_video(path, to_uint8(large), FPS)
                encoded[column] = path.read_bytes()
            rows.append(HeldOutRow(caption=caption, videos=encoded))
    return rows


def mean_curve(logs: Sequence[Log], key: str) -> list[tuple[float, float]]:
    """(step, mean over the runs) of a logged number, at the steps where a run logged it."""
    found: dict[float, list[float]] = {}
    for row in (row for log in logs for row in log):
        if math.isfinite(row.get(key, math.nan)):
            found.setdefault(row["step"], []).append(row[key])
    return [(step, sum(values) / len(values)) for step, values in sorted(found.items())]


def training_seconds(log: Log, batch_size: int) -> float:
    """Time spent in a run's steps, over all the commands it took."""
    seconds, last = 0.0, 0.0
    for row in log:
        if "samples_per_second" in row:
            seconds += (row["step"] - last) * batch_size / row["samples_per_second"]
            last = row["step"]
    return seconds


def _charts(outcome: Outcome) -> list[Chart]:
    forms = list(outcome.runs)

    def curves(key: str, among: Sequence[str]) -> list[Series]:
        lines = {form: mean_curve(outcome.logs[form], key) for form in among}
        return [
            Series(name=LABELS[form], style=form, points=line, smooth=5 if len(line) > 10 else 1)
            for form, line in lines.items()
            if line
        ]

    band = " Band: standard deviation over the seeds." * (outcome.options.seeds > 1)
    charts = [
        Chart(
            title="Error by frame",
            series=[_error_series(name, each) for name, each in outcome.measured.items()],
            x_label="frame",
            caption=f"Mean squared error against the truth, pixels in [−1, 1]. At frame 0, which is given, the "
            f"error is the autoencoder's.{band}",
            from_zero=True,
        ),
        Chart(
            title="Diffusion loss",
            series=curves("mse", forms),
            x_label="step",
            caption="Without the contrastive term. The forms share timesteps and noise, so the curves compare step by "
            "step. Thin: as logged; thick: smoothed.",
        ),
    ]
    # one chart a form: the cross entropies of a dot product and of a cosine have no scale in common
    terms = {form: series for form in forms if (series := curves("contrastive/target", [form]))}
    charts += [
        Chart(
            title="Contrastive term" + f" ({LABELS[form]})" * (len(terms) > 1),
            series=series,
            x_label="step",
            caption="Cross entropy of the right target latent among the batch's, before its weight.",
        )
        for form, series in terms.items()
    ]
    accuracy = Chart(
        title="Retrieval accuracy",
        series=curves("retrieval/target", forms),
        x_label="step",
        caption="Share of the batch whose denoised latent is most like its own target latent. Logged where the loss "
        "has a contrastive term.",
        from_zero=True,
    )
    return [*charts, accuracy]


def _error_series(name: str, measured: Measurement) -> Series:
    numbers = [measured.frame_error(frame) for frame in range(measured.frames)]
    return Series(
        name=LABELS[name],
        style=name,
        points=[(float(frame), number.mean) for frame, number in enumerate(numbers)],
        spread=[number.spread for number in numbers] if len(numbers[0].values) > 1 else (),
    )


def _config_lines(outcome: Outcome, seconds: float) -> dict[str, str]:
    options = outcome.options
    times = []
    for form, logs in outcome.logs.items():
        mean = sum(training_seconds(log, options.batch_size) for log in logs) / len(logs)
        times.append(f"{LABELS[form]} {_duration(mean)}")
    guidance = f"guidance {options.guidance_scale:g} to the prompt, {options.image_guidance_scale:g} to the image"
    return {
        "model": options.model,
        "clips": f"{options.train_clips} to train on, {options.test_clips} held out, {options.resolution} pixels",
        **{LABELS[form]: describe_loss(each[0].loss) for form, each in outcome.runs.items()},
        "training": f"{options.steps} steps of {options.batch_size} pairs, learning rate {options.learning_rate:g}",
        "seeds": ", ".join(str(seed) for seed in range(options.seeds)),
        "sampling": f"{options.frames} frames, {options.sampler_steps} steps a frame, {guidance}",
        "device": _device(),
        "time": f"training steps: {', '.join(times)}; the last command in all: {_duration(seconds)}",
        "version": f"contrastive_i2v {__version__}, torch {torch.__version__}",
    }


def _commands(outcome: Outcome) -> dict[str, str]:
    options = outcome.options
    defaults = type(options)()
    changed = [
        f"--{field.name.replace('_', '-')} {shlex.quote(str(getattr(options, field.name)))}"
        for field in fields(options)
        if field.name not in ("forms", "seeds") and getattr(options, field.name) != getattr(defaults, field.name)
    ]
    first = next(iter(outcome.runs.values()))[0]
    model, image = (
        shlex.quote(str(p)) for p in (first.output / "model", options.output / "clips" / "test" / "00000.mp4")
    )
    return {
        "Sample from what was trained here": f"contrastive-i2v sample --model {model} --image {image} "
        f"--prompt {shlex.quote(outcome.captions[0])} --frames 16 --steps {options.sampler_steps} "
        f"--guidance-scale {options.guidance_scale:g} --image-guidance-scale {options.image_guidance_scale:g}",
        "Tell differences from noise: three seeds, and the published form too": " ".join(
            ["contrastive-i2v demo", *changed, "--seeds 3 --forms contrastive baseline literal"]
        ),
        "See the training curves in TensorBoard": f"tensorboard --logdir {shlex.quote(str(options.output / 'runs'))}",
        "Train on your own videos, a folder with NAME.txt beside each NAME.mp4": "contrastive-i2v train --recipe "
        "tiny-contrastive --data.path YOUR_VIDEOS --output runs/mine",
        "The same from Stable Diffusion 1.5, on a GPU": "contrastive-i2v train --recipe contrastive --model "
        "stable-diffusion-v1-5/stable-diffusion-v1-5 --mixed-precision bf16 --data.path YOUR_VIDEOS --output runs/sd15",
    }


def _plain(statistic: Statistic) -> dict[str, Any]:
    mean, spread, *values = (
        v if math.isfinite(v) else None for v in (statistic.mean, statistic.spread, *statistic.values)
    )
    return {"mean": mean, "spread": spread, "by_seed": values}


def _plus_minus(number: Statistic) -> str:
    return f"{number.mean:.4f}" + (f" ± {number.spread:.4f}" if number.spread > 0 else "")


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, cores: {os.cpu_count()}, threads: {torch.get_num_threads()}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
