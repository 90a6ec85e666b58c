"""Do the same seeds still give the same bits? `python -m benchmarks.bitwise WORK [--record]`.

Trains the packaged model through the command line for 50 steps (contrastive and baseline, with and without an averaged
copy of the weights) and rolls it out over 8 frames (with and without guidance, and through a stochastic scheduler),
then holds a hash of every result against `benchmarks/bitwise.json`. `--record` writes that file anew, which belongs
into the commit *before* a change that must leave the bits alone. Bits depend on the processor and on torch, so a file
that another machine recorded is refused. One thread, so that no sum depends on how work is divided.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import torch
from safetensors.torch import load_file

from contrastive_i2v.data.shapes import ShapeScene, ShapesConfig, render_scene, sample_scene

RECORDED = Path(__file__).with_name("bitwise.json")
TRAININGS = {
    "contrastive": ["--recipe", "tiny-contrastive"],
    "baseline": ["--recipe", "tiny-baseline"],
    "contrastive, no average": ["--recipe", "tiny-contrastive", "--ema-decay", "0"],
    "baseline, no average": ["--recipe", "tiny-baseline", "--ema-decay", "0"],
}
ROLLOUTS = {
    "no guidance": ["--steps", "8", "--guidance-scale", "1", "--image-guidance-scale", "1"],
    "guidance": ["--steps", "4", "--guidance-scale", "7.5", "--image-guidance-scale", "1.5"],
    "stochastic": ["--steps", "4", "--guidance-scale", "2", "--image-guidance-scale", "1.5", "--scheduler", "ddpm"],
}


def machine() -> dict[str, str]:
    """What the bits depend on beside the code."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")][:1]
    return {
        "torch": torch.__version__,
        "processor": model[0].split(":")[1].strip() if model else "unknown",
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def hashes(work: Path) -> dict[str, str]:
    """sha256 of every training's weights and every rollout's latents."""
    config = ShapesConfig(train_clips=24, test_clips=2, seed=3)
    for split, count in (("train", config.train_clips), ("test", config.test_clips)):
        for index in range(count):
            write_clip(work / "clips" / split / f"{index:05d}.mp4", sample_scene(config, split, index))
    found = {}
    for number, (name, options) in enumerate(TRAININGS.items()):
        output = work / f"run{number}"
        data = ["--data.path", work / "clips" / "train", "--data.cache-dir", work / "latents"]
        command("train", *options, *data, "--output", output, "--steps", 50, "--checkpoint-every", 50)
        weights = load_file(output / "model" / "unet" / "diffusion_pytorch_model.safetensors")
        found[f"weights: {name}"] = digest(weights)
    image = work / "clips" / "test" / "00000.mp4"
    for number, (name, options) in enumerate(ROLLOUTS.items()):
        for model in ("tiny", work / "run0" / "model"):
            output = work / f"rollout{number}-{Path(model).name}"
            given = ["--model", model, "--image", image, image, "--prompt", "a red star moves up quickly", "a ring"]
            command("sample", *given, *options, "--frames", 8, "--seed", 5, "--formats", "latents", "--output", output)
            which = "packaged" if model == "tiny" else "trained"
            for file in sorted(output.glob("*.safetensors")):
                found[f"rollout: {name}, {which} model, video {int(file.stem)}"] = digest(load_file(file))
    return found


def write_clip(path: Path, scene: ShapeScene) -> None:
    """One clip with its caption; x264 gives the same bytes each time only without macroblock trees."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".txt").write_text(scene.caption)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "14", "preset": "ultrafast", "threads": "1"})
        stream.height = stream.width = 64
        for frame in render_scene(scene, frames=80, size=64).permute(0, 2, 3, 1).contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def command(*arguments: object) -> None:
    """Run a command of the installed package, on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    call = [sys.executable, "-m", "contrastive_i2v", *map(str, arguments)]
    done = subprocess.run(call, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(call)}\n{done.stdout}{done.stderr}")


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """sha256 over names, shapes and bytes, in order of the names."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.contiguous().view(torch.uint8).numpy())
    return total.hexdigest()


def main() -> int:
    """0 where every hash is the recorded one, 1 where one differs, 2 where they can't be compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="an empty folder for clips, runs and rollouts")
    parser.add_argument("--record", type=Path, nargs="?", const=RECORDED, help="write the hashes there")
    options = parser.parse_args()
    if options.record is None and json.loads(RECORDED.read_text())["machine"] != machine():
        print(f"{RECORDED}: recorded on {json.loads(RECORDED.read_text())['machine']}, this is {machine()}")
        return 2
    found = hashes(options.work)
    if options.record is not None:
        options.record.write_text(json.dumps({"machine": machine(), "hashes": found}, indent=1) + "\n")
        return 0
    recorded = json.loads(RECORDED.read_text())["hashes"]
    changed = [name for name in recorded | found if recorded.get(name) != found.get(name)]
    print("\n".join([f"changed: {name}" for name in changed] or [f"all {len(found)} hashes are the recorded ones"]))
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
