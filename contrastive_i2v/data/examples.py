"""Clips become training examples: the raw latents of a window's frames with the prompt's text, encoded once.

A window that needs other frames of a cached clip encodes only those, and an interrupted run goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from contrastive_i2v.data.cache import CachedClip, cache_folder, clip_file, load_clip, row_keys, store_clip
from contrastive_i2v.data.frames import (
    FramesConfig,
    SampledWindow,
    clip_rng,
    frames_after_source,
    sample_windows,
    skip_reason,
    valid_frames,
)
from contrastive_i2v.data.reading import probe_clip, read_clip
from contrastive_i2v.data.types import Clip, NoClipLeft, Skipped
from contrastive_i2v.data.video import VideoError, as_size, resize_frames
from contrastive_i2v.errors import InputError, one_line
from contrastive_i2v.files import write_csv
from contrastive_i2v.system import Size, System, Text

SKIPPED = "skipped.csv"
"""The file that names everything that was left out, in the output folder of the run."""
FRAMES_AT_ONCE = 16
"""Frames decoded and, by an image codec, encoded together."""


class Example(NamedTuple):
    """One training example, or a batch of them (a leading B everywhere), as a DataLoader collates and pins it."""

    raw: Tensor
    """What the codec encoded of each frame, `[frames, R, h, w]`: the anchor, if the window has one, and the window."""
    present: Tensor
    """bool `[frames]`; False where a frame before the clip's first is stood in for by a repeated one."""
    text: Text
    """The prompt's tensors, `[*]` each."""
    fps: Tensor
    """float32 `[]`: frames a second of the window."""
    group: Tensor
    """int64 `[]`: the video the example is from. Examples of one group are no negatives of each other."""


class DrawnWindows(NamedTuple):
    """The windows of one clip."""

    windows: list[SampledWindow]
    frame_rate: float
    """Valid frames a second, as there are: a slow video has fewer than were asked for."""


class ExampleIndex(NamedTuple):
    """Where an example is from: `dataset.clips[clip]`, and which rows of its cache file."""

    clip: int
    rows: tuple[int, ...]
    present: tuple[bool, ...]
    fps: float
    following: tuple[ExampleIndex, ...] = ()
    """The examples that a rollout from this one makes next."""


class ExampleDataset(Dataset[Example]):
    """Examples read from the cache as they are asked for, as float32.

    Nothing is held in memory: the files are small, mapped, and kept by the system's page cache, so the data
    set may be larger than the memory and goes to DataLoader workers as it is.
    """

    def __init__(self, clips: Sequence[Clip], files: Sequence[Path], examples: Sequence[ExampleIndex]) -> None:
        self.clips = list(clips)
        """The clips that gave examples."""
        self.files = list(files)
        """The cache file of each clip."""
        self.examples = list(examples)
        videos: dict[Path, int] = {}
        self._groups = [videos.setdefault(clip.where, len(videos)) for clip in clips]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.read(self.examples[index])

    def read(self, index: ExampleIndex) -> Example:
        """An example that is one of `examples`, or follows one. Raises InputError for damage in the cache."""
        clip, rows, present, fps, _ = index
        cached = load_clip(self.files[clip], rows)
        if cached is None:
            raise InputError(
                f"{self.files[clip]}: this cached latent is gone or damaged since the run began; "
                f"start again to encode it anew"
            )
        return Example(
            raw=cached.raw.float(),
            present=torch.tensor(present),
            text={name: _float(value).clone() for name, value in cached.text.items()},  # off the mapped file
            fps=torch.tensor(fps),
            group=torch.tensor(self._groups[clip]),
        )


def encode_clips(
    clips: Sequence[Clip],
    system: System,
    *,
    cache_dir: str | Path,
    resolution: int | Size,
    frames: FramesConfig,
    seed: int,
    following: int = 0,
    progress: bool = True,
) -> tuple[ExampleDataset, list[Skipped]]:
    """Draw the windows of every clip and encode the frames they need, but for those the cache has.

    Returns the data set, in the clips' order, and the clips left out (a file that can't be decoded, a clip
    too long or too short) with the reasons. The windows depend on `seed` and the clip alone, not on its folder
    or its neighbours. `resolution` is what the codec sees: a square's side or (height, width), in pixels.
    `following` windows after each are encoded as well, as far as the clip goes on (for image codecs alone).

    Raises NoClipLeft when no clip can be used; InputError when `cache_dir` can't be written (what is encoded stays) and
    when the encoder gives values that aren't finite.
    """
    if not clips:
        raise InputError("clips: expected at least one clip, got none")
    size = as_size(resolution)
    if min(size) < 1:
        raise InputError(f"resolution: expected pixels >= 1, got {resolution}")
    folder = cache_folder(Path(cache_dir), system.fingerprint, size)
    kept: list[Clip] = []
    files: list[Path] = []
    indices: list[ExampleIndex] = []
    skipped: list[Skipped] = []
    anew = 0
    for clip in tqdm(clips, desc="encoding", unit="clip", mininterval=0.5, disable=not progress):
        try:
            file = clip_file(folder, clip)
            cached = load_clip(file)
            anew += cached is None and file.exists()
            drawn = _encode_clip(clip, system, file, cached, size, frames, seed, following)
        except VideoError as error:
            skipped.append(Skipped.because(clip.where, error))
            continue
        if isinstance(drawn, Skipped):
            skipped.append(drawn)
            continue
        indices += [_index(window, len(kept), drawn.frame_rate, system) for window in drawn.windows]
        kept.append(clip)
        files.append(file)
    if anew and progress:
        print(f"encoded {anew} clips anew: their files in {folder} were damaged, or an earlier version wrote them")
    if not kept:
        raise NoClipLeft(skipped)
    return ExampleDataset(kept, files, indices), skipped


def report_skipped(skipped: Sequence[Skipped], *, show: int = 10, file: Path | None = None) -> str:
    """What was left out and why, a line each, the first `show`; "" when nothing was.

    Args:
        file: names all of them, as `write_skipped` wrote it.
    """
    if not skipped:
        return ""
    lines = [f"left out {len(skipped)} clip{'s' if len(skipped) > 1 else ''}:"]
    lines += [f"  {one_line(s.path)}: {one_line(s.reason)}" for s in skipped[:show]]
    if len(skipped) > show:
        lines.append(f"  and {len(skipped) - show} more")
    if file is not None:
        lines.append(f"  all of them: {file}")
    return "\n".join(lines)


def write_skipped(path: Path, skipped: Sequence[Skipped]) -> None:
    """Write what was left out as CSV with the columns path and reason; an earlier run's file is replaced.

    Where nothing was left out and there is no such file, none is made. Raises InputError when it can't be written.
    """
    if not skipped and not path.exists():
        return

    write_csv(path, ["path", "reason"], [(one.path, one.reason) for one in skipped])


def encode_clip_frames(clip: Clip, system: System, size: Size, frames: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Native frames of a clip as the training sees them, past the cache: for previews.

    Returns pixels `[F, 3, height, width]` in [-1, 1] and raw latents `[f, R, h, w]`, float32, on the
    CPU. Raises VideoError naming the file, InputError when the encoder's values aren't finite.
    """
    pixels = _read_pixels(clip, frames, size)
    return pixels, _encode(pixels, system, clip).float()


def _encode_clip(
    clip: Clip,
    system: System,
    file: Path,
    cached: CachedClip | None,
    size: Size,
    config: FramesConfig,
    seed: int,
    following: int,
) -> DrawnWindows | Skipped:
    """The clip's windows, their frames in the cache; or why it gives none."""
    header = cached.info if cached else probe_clip(clip)
    least = frames_after_source(system.window, system.codec.temporal_downscale) + 1
    for info in (header, replace(header, frames=header.frames - 1)):
        if reason := skip_reason(info, clip, config, least=least):
            return Skipped(clip.where, reason)
        valid, rng = valid_frames(info, clip, config), clip_rng(clip, seed)
        downscale = system.codec.temporal_downscale
        windows = sample_windows(valid, system.window, config, rng, temporal_downscale=downscale, following=following)
        drawn = DrawnWindows(windows, min(config.frame_rate, info.fps))
        needed = [window for first in windows for window in (first, *first.following)]
        missing = _missing(needed, set(cached.rows) if cached else set(), system)
        if not missing:
            return drawn
        try:
            pixels = [_read_pixels(clip, some, size) for some in missing]
            break
        except VideoError:
            if info is not header or max(map(max, missing)) != header.frames - 1:
                raise  # else the container may overstate its length by one: draw again without that frame

    raw = torch.cat([_encode(part, system, clip) for part in pixels])
    rows = [row for some in missing for row in row_keys(some, downscale)]
    store_clip(file, CachedClip(rows, raw, cached.text if cached else _text(system, clip), info), clip)
    return drawn


def _runs(window: SampledWindow, system: System) -> list[tuple[int, ...]]:
    """The native frames that are encoded together: each alone by an image codec; the anchor, and the window, by a video
    codec."""
    if system.codec.temporal_downscale == 1:
        return [(frame,) for frame in window.frames]
    anchors = int(system.window.anchor)
    return [(frame,) for frame in window.frames[:anchors]] + [window.frames[anchors:]]


def _index(window: SampledWindow, clip: int, frame_rate: float, system: System) -> ExampleIndex:
    rows, following = _row_keys(window, system), (_index(one, clip, frame_rate, system) for one in window.following)
    return ExampleIndex(clip, tuple(rows), window.present, frame_rate / window.offset, tuple(following))


def _row_keys(window: SampledWindow, system: System) -> list[int]:
    return [row for run in _runs(window, system) for row in row_keys(run, system.codec.temporal_downscale)]


def _missing(drawn: Sequence[SampledWindow], cached: set[int], system: System) -> list[tuple[int, ...]]:
    """Runs of native frames that are still to be encoded; for an image codec one run of all frames, rising."""
    downscale = system.codec.temporal_downscale
    runs = dict.fromkeys(run for window in drawn for run in _runs(window, system))
    missing = [run for run in runs if not cached.issuperset(row_keys(run, downscale))]
    return [tuple(sorted(frame for run in missing for frame in run))] * bool(missing) if downscale == 1 else missing


def _read_pixels(clip: Clip, frames: Sequence[int], size: Size) -> Tensor:
    """Native frames `[F, 3, height, width]` in [-1, 1]."""
    starts = range(0, len(frames), FRAMES_AT_ONCE)
    return torch.cat([resize_frames(read_clip(clip, frames[i : i + FRAMES_AT_ONCE]), size) for i in starts])


@torch.no_grad()
def _encode(pixels: Tensor, system: System, clip: Clip) -> Tensor:
    """Frames `[F, 3, H, W]` that belong together -> `[f, R, h, w]`."""
    downscale = system.codec.temporal_downscale
    parts = torch.split(pixels, FRAMES_AT_ONCE) if downscale == 1 else [pixels]
    raw = torch.cat([system.codec.encode(part[None])[0].detach().cpu() for part in parts])
    expected = (len(pixels) - 1) // downscale + 1
    if raw.dim() != 4 or len(raw) != expected:
        raise ValueError(
            f"codec.encode: expected [1, {expected}, R, h, w] of pixels {tuple(pixels.shape)}, "
            f"got [1, {', '.join(map(str, raw.shape))}]"
        )
    _require_finite(raw, "the encoder's latents", clip)
    return raw


@torch.no_grad()
def _text(system: System, clip: Clip) -> Text:
    text = {name: value.detach().cpu() for name, value in system.encode_text([clip.caption]).items()}
    for name, value in text.items():
        if len(value) != 1:
            raise ValueError(f"encode_text: expected {name} [1, *] of one prompt, got {tuple(value.shape)}")
        if value.is_floating_point():
            _require_finite(value, f"{name} of {clip.caption!r}", clip)
    return {name: value[0] for name, value in text.items()}


def _float(value: Tensor) -> Tensor:
    """Floating point numbers as float32; masks and indices as they are."""
    return value.float() if value.is_floating_point() else value


def _require_finite(values: Tensor, what: str, clip: Clip) -> None:
    if not bool(torch.isfinite(values).all()):
        raise InputError(
            f"{clip.where}: {what} hold NaN or infinity in {values.dtype}; nothing of it was cached. "
            f"Encode in float32 (a half-precision VAE overflows), or check the weights"
        )
