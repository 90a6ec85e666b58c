"""Times what lies between two calls of the denoiser: `guided_step` against diffusers' eager guidance and step.

    python -m benchmarks.guided_step --shapes 1,4,64,64 8,4,64,64 --json out.json

"step" ends with the latents; "step+input" ends with the denoiser's next input, scaled and once for each branch. The
contenders take turns, so that a busy machine slows them all. A result that is further from float64 than diffusers' (by
more than float32's spacing) is refused and not timed. Inputs stay in the cache where they fit.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from benchmarks.environment import device_name
from contrastive_i2v.ops import guided_step as ops
from contrastive_i2v.sampling import linear_steps, three_way_guidance

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS = {
    "ddim": lambda: diffusers.DDIMScheduler(**NOISE, clip_sample=False),
    "euler": lambda: diffusers.EulerDiscreteScheduler(**NOISE),
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
}
STEPS, AT = 50, 25  # the step that is timed
GUIDANCE, IMAGE_GUIDANCE = 7.5, 1.5


def theirs(scheduler: Any, latents: Tensor, predictions: Tensor, with_input: bool) -> Tensor:
    """One turn of the loop of diffusers' InstructPix2Pix pipeline, without the denoiser."""
    full, image, uncond = predictions.to(latents.dtype).chunk(3)
    guided = three_way_guidance(uncond, image, full, GUIDANCE, IMAGE_GUIDANCE)
    latents = scheduler.step(guided, scheduler.timesteps[AT], latents, return_dict=False)[0]
    if not with_input:
        return latents
    batch = torch.cat([latents] * 3)
    if hasattr(scheduler, "scale_model_input"):
        batch = scheduler.scale_model_input(batch, scheduler.timesteps[AT + 1])
    return batch


def contenders(
    name: str, latents: Tensor, predictions: Tensor, with_input: bool, backends: list[str]
) -> dict[str, Callable[[], Tensor]]:
    scheduler = SCHEDULERS[name]()
    linear = linear_steps(scheduler, STEPS)
    assert linear is not None
    scheduler.set_timesteps(STEPS, device=latents.device)
    # Euler's latents are in its own units, ours in the model's
    to_input, back = 1.0, 1.0
    if name == "euler":
        to_input, back = (float((scheduler.sigmas[i] ** 2 + 1) ** -0.5) for i in (AT, AT + 1))
        scheduler.is_scale_input_called = True
    ours_latents = latents * to_input
    scales = linear.scales[AT]
    if not with_input:
        scales = (scales[0] / back, scales[1] / back)

    def run_theirs() -> Tensor:
        if name != "ddim":
            scheduler._step_index = AT
        return theirs(scheduler, latents, predictions, with_input)

    def run_ours(backend: str) -> Callable[[], Tensor]:
        def run() -> Tensor:
            return ops.guided_step(
                ours_latents,
                predictions,
                *scales,
                guidance_scale=GUIDANCE,
                image_guidance_scale=IMAGE_GUIDANCE,
                copies=3 if with_input else 1,
                backend=backend,
            )

        return run

    return {"diffusers": run_theirs, **{f"ours:{backend}": run_ours(backend) for backend in backends}}


def truth(name: str, latents: Tensor, predictions: Tensor, with_input: bool) -> Tensor:
    """In float64, by way of x0 in the scheduler's own units."""
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(STEPS)
    full, image, uncond = predictions.double().chunk(3)
    e, x = three_way_guidance(uncond, image, full, GUIDANCE, IMAGE_GUIDANCE), latents.double()
    if name == "ddim":
        t = int(scheduler.timesteps[AT])
        abar, before = (float(scheduler.alphas_cumprod[i]) for i in (t, t - 1000 // STEPS))
        x = before**0.5 * (x - (1 - abar) ** 0.5 * e) / abar**0.5 + (1 - before) ** 0.5 * e
    else:
        sigma, after = (float(scheduler.sigmas[i]) for i in (AT, AT + 1))
        x = x + (after - sigma) * e
        x = x / (after**2 + 1) ** 0.5 if with_input and name == "euler" else x
    return x.repeat(3 if with_input else 1, 1, 1, 1)


def time_in_turns(runs: dict[str, Callable[[], Tensor]], device: str, seconds: float) -> dict[str, dict[str, float]]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds * len(runs)
    while time.perf_counter() < end:
        for name, run in runs.items():
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            times[name].append((time.perf_counter() - start) * 1e6)
    levels = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    figures = {}
    for name, taken in times.items():
        p20, median, p80 = torch.tensor(taken[len(taken) // 10 :], dtype=torch.float64).quantile(levels).tolist()
        figures[name] = {"median_us": round(median, 2), "p20_us": round(p20, 2), "p80_us": round(p80, 2)}
    return figures


def measure(arguments: argparse.Namespace) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    dtype = DTYPES[arguments.dtype]
    for shape in arguments.shapes:
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(shape, generator=generator)
        common = torch.randn(shape, generator=generator).repeat(3, 1, 1, 1)
        predictions = (common + 0.05 * torch.randn(common.shape, generator=generator)).to(dtype)
        for name in arguments.schedulers:
            for with_input in (False, True):
                exact = truth(name, latents, predictions, with_input)
                on_device = latents.to(arguments.device), predictions.to(arguments.device)
                runs = contenders(name, *on_device, with_input, arguments.backends)
                errors = {one: float((run().cpu() - exact).norm() / exact.norm()) for one, run in runs.items()}
                bar = errors["diffusers"] + torch.finfo(torch.float32).eps
                work = "step+input" if with_input else "step"
                where = f"{'x'.join(map(str, shape)):>12s}  {name:5s} {work:10s}"
                for one in [one for one in runs if not errors[one] <= bar]:
                    print(f"{where}  {one:15s} refused: error {errors[one]:.1e} is above {bar:.1e}")
                    del runs[one]
                figures = time_in_turns(runs, arguments.device, arguments.seconds)
                for one, figure in figures.items():
                    ratio = figures["diffusers"]["median_us"] / figure["median_us"]
                    print(
                        f"{where}  {one:15s} {figure['median_us']:10.1f} us  [{figure['p20_us']:.1f}, "
                        f"{figure['p80_us']:.1f}]  {ratio:5.2f}x  error {errors[one]:.1e}"
                    )
                    about = {"shape": shape, "scheduler": name, "work": work, "provider": one, "error": errors[one]}
                    rows.append({**about, **figure})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guided_step", description=__doc__)
    parser.add_argument(
        "--shapes", nargs="+", type=lambda text: tuple(map(int, text.split(","))), help="of the latents",
        default=[(1, 4, 64, 64), (2, 4, 64, 64), (4, 4, 64, 64), (8, 4, 64, 64), (8, 4, 128, 128)],
    )  # fmt: skip
    parser.add_argument("--schedulers", nargs="+", choices=SCHEDULERS, default=["ddim", "euler"])
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the predictions")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--backends", nargs="+", choices=ops.BACKENDS, default=["reference", "cpu"])
    parser.add_argument("--seconds", type=float, default=1.0, help="time that each contender takes")
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    with torch.no_grad():
        rows = measure(arguments)
    if arguments.json:
        about = {
            "device": device_name(arguments.device), "torch": torch.__version__, "diffusers": diffusers.__version__,
            "dtype": arguments.dtype, "guidance": [GUIDANCE, IMAGE_GUIDANCE], "cache": "hot",
        }  # fmt: skip
        arguments.json.write_text(json.dumps({**about, "results": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
