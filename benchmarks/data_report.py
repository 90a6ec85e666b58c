"""What docs/performance.md says of `python -m benchmarks.encoding`, `benchmarks.train_step` and
`benchmarks.transformer_step`, from their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.goals import bytes_text
from benchmarks.video_report import table

DECODING_GOAL, LOADING_GOAL, STEP_GOAL = 1.7, 20_000, 1.65


def performance(folder: Path) -> str:
    """The section; "" without results."""
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    parts = [encoding(name, found) for name, found in files.items() if name.startswith("encoding-")]
    steps = {name: found for name, found in files.items() if name.startswith("train-step-")}
    parts += [training_steps(steps)] if steps else []
    steps = {name: found for name, found in files.items() if name.startswith("transformer-step-")}
    parts += [transformer_steps(steps)] if steps else []
    return "\n\n".join(["## Data, and a whole training step", *parts]) if parts else ""


def encoding(name: str, found: dict[str, Any]) -> str:
    decoding, loading = found["decoding"]["frames_a_second"], found["loading"]
    videos = {who: rate["median"] for who, rate in decoding.items() if not who.startswith("diffusers")}
    ours = max(value for who, value in videos.items() if who.startswith("ours"))
    best = max((value, who) for who, value in videos.items() if not who.startswith("ours"))
    pairs = loading["pairs_a_second"]
    first, seconds = next(iter(loading["seconds_to_first_batch_of_a_million"].items()))
    rows = [
        [who, f"{rate['median']:,.0f} [{rate['least']:,.0f}, {rate['most']:,.0f}]"] for who, rate in decoding.items()
    ]
    return "\n\n".join(
        [
            f"### {name.removeprefix('encoding-')}: decoding and loading",
            f"Made by `python -m benchmarks.encoding`: {found['decoding']['frames']} frames of windows of 64-pixel "
            "clips, decoded, resized and batched, as the median [least, most] of rounds in turns. The example's rows "
            "read pictures, no video.",
            table(["", "frames a second"], rows),
            f"Ours over the best other reader of videos ({best[1]}): **{ours / best[0]:.2f}x**; the goal is "
            f"{DECODING_GOAL:g}x.",
            f"From shards a process reads **{pairs['no workers']['median']:,.0f}** latent pairs a second in batches of "
            f"16 (goal {LOADING_GOAL:,}); one worker hands over {pairs['1 worker']['median']:,.0f}. The first batch of "
            f"{first} is there after {seconds['median']:.2f} s.",
        ]
    )


def training_steps(steps: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, found in steps.items():
        parts = ", ".join(f"{part} {value:.0f}" for part, value in found["parts_of_the_example"].items())
        for who, value in found["milliseconds"].items():
            own = f"{value:.0f} ({parts})" if who.startswith("diffusers") else f"{value:.0f}"
            rows.append([name.removeprefix("train-step-"), who, own, f"{found['speed_up'][who]:.2f}x"])
    return "\n\n".join(
        [
            "### A training step beside diffusers' InstructPix2Pix example",
            "Made by `python -m benchmarks.train_step`: the packaged model, 16 pairs, in turns. What is gained is the "
            "encoders' time and a part of the optimizer's; the UNet takes the same in both, and bounds the rest. The "
            f"goal is {STEP_GOAL:g}x.",
            table(["", "step", "milliseconds", "the example's / this one's"], rows),
        ]
    )


def transformer_steps(steps: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, found in steps.items():
        for row in found["rows"]:
            trained = f"LoRA of rank {row['rank']}" if row["rank"] else "all weights"
            for who, value in row["milliseconds"].items():
                parts, memory = row["parts"][who], row["memory"][who]
                network = parts["forward"] + parts["backward"]
                rest = {part: took for part, took in parts.items() if part not in ("forward", "backward")}
                rest["other"] = value - network - sum(rest.values())
                beside = ", ".join(f"{part} {took:.1f}" for part, took in rest.items())
                rows.append(
                    [
                        name.removeprefix("transformer-step-"),
                        f"{trained}, of {row['parameters'] / 1e6:.1f} M",
                        who,
                        f"{value:.1f}",
                        f"{row['speed_up'][who]:.2f}x",
                        f"{network:.1f}",
                        f"{value - network:.1f} ({beside})",
                        f"{bytes_text(memory['stays'])} + {bytes_text(memory['tensors'])}",
                        bytes_text(memory["resident"]),
                    ]
                )
    header = ["", "trained", "step", "milliseconds", "finetrainers' / this one's", "forward and backward"]
    header += ["beside them", "tensors: stay + step", "resident, step"]
    return "\n\n".join(
        [
            "### A training step of Wan beside finetrainers'",
            "Made by `python -m benchmarks.transformer_step`: random weights, the same latents, encoded before, in "
            "turns; of one thread, processor time. Memory is of a process of its own: tensors that stay (weights and "
            "moments; of ours the frozen autoencoder and encoders too), how far a step raises that, and how far it "
            "raises the resident memory. The goal is the same time or less, and less memory. In bf16 finetrainers "
            "keeps weights, gradients and moments in bfloat16, ours float32, frozen ones bfloat16. With a clean first "
            "latent each token has "
            "a timestep of its own; finetrainers trains the same weights as text-to-video, with one for all.",
            table(header, rows),
        ]
    )
