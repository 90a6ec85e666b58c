"""Frames a second at equal quality: calibrated rollouts against `StableDiffusionInstructPix2PixPipeline`.

    OMP_NUM_THREADS=2 python -m benchmarks.rollout_speed WORK && python -m benchmarks report

Both roll the packaged model out over held-out clips of moving shapes, with the same noise. The pipeline goes frame by
frame, what it made being its next image, and isn't charged for what its user can avoid: latents stay latents, and the
text is encoded once. Its own default is 100 steps at guidance 7.5 and 1.5; its best setting is chosen on validation
clips from a grid, by the calibration's objective and rule (of what is within 0.02 of the best, the cheapest), which is
how the rollout's is chosen. Quality is this package's evaluation of the same clips in batches of 16. A time is from the
given frames' latents to the pixels of some new frames, all rows in turns; frames cost the same wherever they are in a
video, so few are timed, but for keyframes, where it is the whole video. The same command goes on where it was stopped.

`--keyframes MODEL` adds rows of a calibrated model that was trained for them, as long as `--model` was on pairs alone;
`--rows` measures some rows beside the pipeline's best.

    WORK/validation, WORK/test    clips that no training has seen
    WORK/calibration, WORK/grid   what was tried on the validation clips
    WORK/quality                  the evaluation: report.html, report.json, videos
    WORK/times.json               seconds, round by round
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import environment, rollout_report
from contrastive_i2v.cli.trainings import available_networks
from contrastive_i2v.data.shapes import ShapesConfig, make_shapes
from contrastive_i2v.data.video import to_uint8
from contrastive_i2v.evaluation.calibration import TOLERANCE, CalibrationConfig, Clips, Search, calibrate, stamp_of
from contrastive_i2v.evaluation.generators import Batch, Generator, Method
from contrastive_i2v.evaluation.results import Evaluated, Report, finite_or_null
from contrastive_i2v.evaluation.suite import evaluate
from contrastive_i2v.evaluation.videos import ReferenceSet, read_reference_set
from contrastive_i2v.files import write_whole
from contrastive_i2v.models import load_system
from contrastive_i2v.models.loading import locate
from contrastive_i2v.randomness import frame_generator
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.sampling import rollout
from contrastive_i2v.system import Dtype, System, Text

MODEL = "tiny"
DEFAULT, BEST, CALIBRATED = "pipeline, defaults", rollout_report.BEST, "rollout, calibrated"
VALIDATION_SEED, TEST_SEED = 777, 4242
GUIDANCE = ((1.0, 1.0), (1.5, 1.0), (1.5, 1.5), (7.5, 1.5))
"""Text and image, in the grid of the pipeline's best."""
INTERVAL = (0.0, 0.5)

Make: TypeAlias = Callable[[Tensor, Text, int, Sequence[int]], Tensor]
"""(given frames [B, C, h, w], text, frames, seeds) -> normalised latents [B, frames, C, h, w]."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured."""

    clips: int = 64
    validation: int = 32
    frames: int = 16
    steps: tuple[int, ...] = (1, 2, 4, 8, 20)
    """Of the grid."""
    default_steps: int = 100
    timed_frames: int = 3
    batches: tuple[int, ...] = (1, 16)
    rounds: int = 7


QUICK = Size(clips=3, validation=3, frames=4, steps=(1, 2), default_steps=3, timed_frames=1, batches=(1, 2), rounds=2)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way of making the videos."""

    name: str
    sampler: Sampler
    dtype: Dtype = "float32"
    compiled: bool = False
    model: str = MODEL

    def frames(self, size: Size) -> int:
        """How many new frames are timed."""
        return size.frames - 1 if self.sampler.keyframe_stride > 1 else size.timed_frames

    @property
    def by_pipeline(self) -> bool:
        return self.name.startswith("pipeline")

    def load(self) -> tuple[System, Make]:
        """A system of its own, whose codec shows the latents, and what makes them."""
        system = load_system(self.model, dtype=getattr(torch, self.dtype))
        if self.by_pipeline:
            return system, pipeline_loop(system, self.sampler, self.model)
        system = system.compile() if self.compiled else system
        return system, lambda own, text, frames, seeds: rollout(
            system, own, text, frames=frames, seeds=seeds, sampler=self.sampler
        )


def pipeline_loop(system: System, sampler: Sampler, model: str) -> Make:
    """diffusers' pipeline, frame after frame, on the same weights and from the same noise as `rollout`."""
    from diffusers import StableDiffusionInstructPix2PixPipeline

    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(locate(model))
    pipeline.to(system.device, torch.float32).set_progress_bar_config(disable=True)
    null = system.encode_text([""])["prompt_embeds"]

    def make(own: Tensor, text: Text, frames: int, seeds: Sequence[int]) -> Tensor:
        video = [system.codec.normalize(own.float())]
        for place in range(1, frames):
            made = pipeline(
                image=system.codec.denormalize(video[-1]),
                prompt_embeds=text["prompt_embeds"],
                negative_prompt_embeds=null.expand_as(text["prompt_embeds"]),
                num_inference_steps=sampler.steps,
                guidance_scale=sampler.guidance_scale,
                image_guidance_scale=sampler.image_guidance_scale,
                generator=[frame_generator(seed, place) for seed in seeds],
                output_type="latent",
            )
            video.append(made.images)
        return torch.stack(video, dim=1)

    return make


def generator(row: Row) -> Generator:
    """The row's videos, for the evaluation."""
    system, make = row.load()

    @torch.no_grad()
    def generate(batch: Batch) -> Tensor:
        own = system.codec.sample(system.codec.encode(batch.first[:, None].to(system.device).float() / 127.5 - 1))[:, 0]
        latents = make(own, system.encode_text(batch.prompts), batch.frames, batch.seeds)
        return to_uint8(system.codec.decode(latents)).cpu()

    return generate


class PipelineClips(Clips):
    """Held-out clips, as the pipeline rolls them out."""

    model = MODEL

    @torch.no_grad()
    def generate(self, sampler: Sampler) -> Tensor:
        make, size, parts = pipeline_loop(self.system, sampler, self.model), self.config.batch_size, []
        for start in range(0, len(self.own), size):
            rows = slice(start, start + size)
            text = {name: value[rows] for name, value in self.text.items()}
            seeds = [self.seed_of(name) for name in self.names[rows]]
            parts.append(make(self.own[rows, 0], text, self.own.shape[1], seeds))
        return torch.cat(parts)


def choose_rollout(folder: Path, model: str, reference: ReferenceSet) -> Sampler:
    """The rollout's calibrated setting."""
    config, system = CalibrationConfig(batch_size=16), load_system(model)
    return calibrate(system, reference, config, folder=folder)[0].chosen.sampler


def choose_pipeline(folder: Path, model: str, reference: ReferenceSet, size: Size) -> Sampler:
    """The pipeline's best of the grid."""
    config, system = CalibrationConfig(batch_size=16), load_system(model)
    clips = PipelineClips(system, reference, config)
    clips.model = model
    search = Search(clips, config, folder, stamp_of(system, reference, config))
    search.default = search.at(search.base)
    grid = [
        Sampler(steps=steps, guidance_scale=text, image_guidance_scale=image)
        for steps, (text, image) in product(size.steps, GUIDANCE)
    ]
    trials = [search.at(sampler) for sampler in tqdm(grid, desc="the pipeline's grid", unit="setting")]
    enough = min(trial.objective for trial in trials) + TOLERANCE
    best = min((t for t in trials if t.objective <= enough), key=lambda t: (network_rows(t.sampler), t.objective))
    return best.sampler


def network_rows(sampler: Sampler) -> int:
    """Of a frame by the pipeline, whose guidance always takes three branches."""
    return sampler.steps * (3 if sampler.guidance_scale > 1 else 1)


def rows_of(calibrated: Sampler, best: Sampler, size: Size, model: str, keyed: tuple[str, Sampler] | None) -> list[Row]:
    """What is compared."""
    own = replace(load_system(model, device="cpu").sampler, steps=8, prediction_scale=1.0, prediction_slope=0.0)
    guided = replace(own, guidance_scale=1.5, image_guidance_scale=1.5)
    alike = "rollout, as the pipeline's best"
    rows = [
        Row(name=DEFAULT, sampler=Sampler(steps=size.default_steps, guidance_scale=7.5, image_guidance_scale=1.5)),
        Row(name=BEST, sampler=best),
        Row(name=alike, sampler=best),
        Row(name=f"{alike}, compiled, bfloat16", sampler=best, dtype="bfloat16", compiled=True),
        Row(name="rollout, 8 steps", sampler=own),
        Row(name=CALIBRATED, sampler=calibrated),
        Row(name=f"{CALIBRATED}, compiled", sampler=calibrated, compiled=True),
        Row(name=f"{CALIBRATED}, bfloat16", sampler=calibrated, dtype="bfloat16"),
        Row(name=f"{CALIBRATED}, compiled, bfloat16", sampler=calibrated, dtype="bfloat16", compiled=True),
        Row(name="rollout, 8 steps, guidance 1.5", sampler=guided),
        Row(name="rollout, 8 steps, guidance 1.5 in an interval", sampler=replace(guided, guidance_interval=INTERVAL)),
    ]
    rows = [replace(row, model=model) for row in rows]
    if keyed is not None:
        few = replace(keyed[1], steps=best.steps)
        for name, sampler in (("keyframes, calibrated", keyed[1]), ("keyframes, as many steps as the pipeline", few)):
            row = Row(name=name, sampler=sampler, model=keyed[0])
            rows += [row, replace(row, name=f"{name}, compiled, bfloat16", dtype="bfloat16", compiled=True)]
    return rows


def judge(work: Path, rows: Sequence[Row], reference: ReferenceSet, batch: int) -> Report:
    """The evaluation of all rows; videos that were made before are kept."""
    warnings: list[str] = []
    methods = [
        Method(
            row.name, "pipeline" if row.by_pipeline else "checkpoint", {"row": str(row)}, partial(generator, row), (0,)
        )
        for row in rows
    ]
    return evaluate(
        reference,
        methods,
        available_networks(MODEL, warnings, light=True),
        work / "quality",
        title="Speed at equal quality",
        command=f"python -m benchmarks.rollout_speed {work}",
        batch_size=batch,
        umap=False,
        warnings=warnings,
    )


def clock(work: Path, rows: Sequence[Row], reference: ReferenceSet, size: Size) -> dict[str, dict[str, list[float]]]:
    """Seconds by batch size and row, a number a round; rounds that were finished before are kept."""
    file = work / "times.json"
    whole = " ".join(map(str, (*rows, size.timed_frames, environment.device_name(load_system(MODEL).device.type))))
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if found.get("of") != whole:
        found = {"of": whole, "seconds": {}}
    for batch in size.batches:
        times = found["seconds"].setdefault(str(batch), {row.name: [] for row in rows})
        done = len(times[rows[0].name])
        if done >= size.rounds:
            continue
        torch.compiler.reset()  # or the second batch would be compiled for any size, and be slower
        runs = {row.name: timed(row, reference, batch) for row in rows}
        for row in tqdm(rows, desc=f"warming up, batch {batch}", unit="row"):
            runs[row.name](row.frames(size) if row.sampler.keyframe_stride > 1 else 1)
        for _ in tqdm(range(done, size.rounds), desc=f"timing, batch {batch}", unit="round"):
            seconds = {row.name: runs[row.name](row.frames(size)) for row in rows}
            for name, taken in seconds.items():
                times[name].append(taken)
            write_whole(file, lambda part: part.write_text(json.dumps(found), encoding="utf-8"))
    return dict(found["seconds"])


@torch.no_grad()
def timed(row: Row, reference: ReferenceSet, batch: int) -> Callable[[int], float]:
    """Seconds that a batch takes for so many new frames, pixels included."""
    system, make = row.load()
    clips = [reference.clips[number % len(reference.clips)] for number in range(batch)]
    text = system.encode_text([clip.caption for clip in clips])
    height, width = (side // system.codec.downscale for side in reference.size)
    own = torch.randn(batch, system.codec.channels, height, width, generator=torch.Generator().manual_seed(0))
    own = own.to(system.device)

    @torch.no_grad()
    def run(frames: int) -> float:
        began = time.perf_counter()
        to_uint8(system.codec.decode(make(own, text, 1 + frames, range(batch))[:, 1:])).cpu()
        return time.perf_counter() - began

    return run


def results(
    report: Report, rows: Sequence[Row], times: dict[str, dict[str, list[float]]], size: Size
) -> dict[str, Any]:
    """Everything that the page says, for a results file; numbers that aren't there are null."""
    pairs = {(one.metric, one.a, one.b): one.estimate for one in report.differences}

    def gap(metric: str, name: str) -> list[float] | None:
        """Less the pipeline's best, on the same clips."""
        if (found := pairs.get((metric, name, BEST))) is not None:
            return [found.value, found.low, found.high]
        found = pairs.get((metric, BEST, name))
        return None if found is None else [-found.value, -found.high, -found.low]

    def figures(row: Row, method: Evaluated) -> dict[str, Any]:
        metrics = {metric.name: metric for metric in method.metrics}
        shown = sorted({1, size.frames // 2, size.frames - 1})
        quality = {
            name: {"value": [one.value, one.low, one.high], "over best": gap(name, row.name)}
            for name in ("frame_mse", "fvd", "motion_ratio")
            if name in metrics and (one := metrics[name].estimate)
        }
        curve = metrics["frame_mse"].per_frame
        return {
            "name": row.name,
            "setting": str(row.sampler),
            "error at": {str(k): curve[k] for k in shown},
            "quality": quality,
            "timed_frames": row.frames(size),
            "seconds": {batch: seconds[row.name] for batch, seconds in times.items()},
        }

    found = finite_or_null(
        {
            "about": environment.describe(load_system(MODEL).device.type),
            "clips": len(report.methods[0].clips),
            "validation": size.validation,
            "timed_frames": size.timed_frames,
            "rows": [figures(row, method) for row, method in zip(rows, report.methods, strict=True)],
        }
    )
    assert isinstance(found, dict)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rollout_speed", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("work", type=Path)
    parser.add_argument("--clips", type=int, help="held-out clips; None = 64")
    parser.add_argument("--model", default=MODEL, help="a plain InstructPix2Pix that the pipeline opens")
    parser.add_argument("--keyframes", help="a model that was trained for keyframes")
    parser.add_argument("--steps", type=int, nargs="+", help="of the pipeline's grid; None = 1, 2, 4, 8, 20")
    parser.add_argument("--rows", nargs="+", help="names of rows; None = all")
    parser.add_argument("--quick", action="store_true", help="a few clips, steps and frames: does it work?")
    parser.add_argument(
        "--json", type=Path, help="None = benchmarks/results/rollout/DEVICE.json, quick WORK/quick.json"
    )
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else Size()
    size = replace(size, clips=options.clips or size.clips, steps=tuple(options.steps or size.steps))
    sets = {"validation": (VALIDATION_SEED, size.validation), "test": (TEST_SEED, size.clips)}
    references = {}
    for name, (seed, clips) in sets.items():
        make_shapes(options.work / name, ShapesConfig(train_clips=0, test_clips=clips, seed=seed))
        references[name] = read_reference_set(
            options.work / name / "test", frames=size.frames, resolution=load_system(options.model).size, limit=clips
        )
    validation = references["validation"]
    calibrated = choose_rollout(options.work / "calibration", options.model, validation)
    best = choose_pipeline(options.work / "grid", options.model, validation, size)
    keyed = None
    if options.keyframes:
        keyed = options.keyframes, load_system(options.keyframes).sampler
    rows = rows_of(calibrated, best, size, options.model, keyed)
    if options.rows:
        if unknown := set(options.rows) - {row.name for row in rows}:
            parser.error(f"--rows: {min(unknown)!r} is none of {', '.join(row.name for row in rows)}")
        rows = [row for row in rows if row.name == BEST or row.name in options.rows]
    report = judge(options.work, rows, references["test"], max(size.batches))
    found = results(report, rows, clock(options.work, rows, references["test"], size), size)
    found["parameters"] = sum(value.numel() for value in load_system(options.model).network.parameters())
    device = environment.slug(found["about"]["device"]["name"])
    own = environment.ROOT / "benchmarks" / "results" / "rollout" / f"{device}.json"
    file = options.json or (options.work / "quick.json" if options.quick else own)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda part: part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8"))
    print(rollout_report.device(found), file, sep="\n\n")


if __name__ == "__main__":
    main()
