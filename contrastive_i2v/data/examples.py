"""Clips become training examples: the raw latents of a window's frames with the prompt's text, encoded once.

A window that needs other frames of a cached clip encodes only those, and an interrupted run goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from contrastive_i2v.data.buckets import Bucket, nearest_bucket
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
from contrastive_i2v.data.reading import ClipReader, probe_clip
from contrastive_i2v.data.types import Clip, NoClipLeft, Skipped
from contrastive_i2v.data.video import VideoError, VideoInfo, as_size, resize_frames
from contrastive_i2v.errors import InputError, one_line
from contrastive_i2v.files import write_csv
from contrastive_i2v.system import ImageEmbeds, Size, System, Text, Window

SKIPPED = "skipped.csv"
"""The file that names everything that was left out, in the output folder of the run."""
FRAMES_AT_ONCE = 16
"""Frames resized, and encoded by an image codec, together; and the least that are decoded together."""
BYTES_AT_ONCE = 2**28
"""Of frames decoded together; those after them are decoded from the video's start or a keyframe again."""


class Example(NamedTuple):
    """One training example, or a batch of them (a leading B everywhere), as a DataLoader collates and pins it."""

    raw: Tensor
    """What the codec encoded of each frame, `[frames, R, h, w]`: a window's `frames`."""
    present: Tensor
    """bool `[frames]`; False where a frame before the clip's first, or after its last, is stood in for."""
    text: Text
    """The prompt's tensors, `[*]` each."""
    fps: Tensor
    """float32 `[]`: frames a second of the window."""
    group: Tensor
    """int64 `[]`: the video the example is from. Examples of one group are no negatives of each other."""
    image: ImageEmbeds = {}
    """What a system that sees pixels made of the given frames, `[*]` each; empty for others."""


def example_of(
    raw: Tensor, present: Tensor, text: Text, fps: Tensor, group: Tensor, image: ImageEmbeds | None = None
) -> Example:
    """An example of what the cache keeps: floating point numbers as float32, masks and indices as they are."""

    def widened(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}

    return Example(raw.float(), present, widened(text), fps, group, widened(image or {}))


class DrawnWindows(NamedTuple):
    """The windows of one clip."""

    windows: list[SampledWindow]
    frame_rate: float
    """Valid frames a second, as there are: a slow video has fewer than were asked for."""

    @property
    def every(self) -> list[SampledWindow]:
        """The windows, and those that follow each."""
        return [window for first in self.windows for window in (first, *first.following)]


@dataclass(frozen=True)
class WindowReader:
    """How windows are drawn from clips and their frames are read: the part of encoding that needs no model."""

    window: Window
    temporal_downscale: int
    """Of the codec."""
    size: Size
    config: FramesConfig
    seed: int
    following: int = 0
    buckets: tuple[Size, ...] = ()
    """In place of `size`: a clip has that of its `nearest_bucket`."""
    lengths: tuple[int, ...] = ()
    """In place of the window's own: a clip's windows have the most of these frames that it holds."""

    @classmethod
    def of(
        cls,
        system: System,
        resolution: int | Size,
        config: FramesConfig,
        *,
        seed: int,
        following: int = 0,
        buckets: Sequence[Size] = (),
        lengths: Sequence[int] = (),
    ) -> WindowReader:
        """Raises InputError for a resolution below 1, and for `following` windows of a system that has none."""
        size = as_size(resolution)
        if min(size) < 1:
            raise InputError(f"resolution: expected pixels >= 1, got {resolution}")
        if following and not (system.window.rolls and system.codec.temporal_downscale == 1):
            raise InputError(
                f"following={following}: the windows of {system.config.kind} don't follow each other; expected 0"
            )
        downscale = system.codec.temporal_downscale
        return cls(system.window, downscale, size, config, seed, following, tuple(buckets), tuple(lengths))

    def __call__(self, clip: Clip, cached: CachedClip | None = None) -> ClipFrames | Skipped:
        """The clip's windows and the frames that `cached` lacks for them; or why it gives none. Raises VideoError."""
        with ClipReader(clip) as video:
            return self._read(video, cached)

    def _read(self, video: ClipReader, cached: CachedClip | None) -> ClipFrames | Skipped:
        clip, header = video.clip, cached.info if cached else video.probe()
        own = self.fitted(clip, header)
        for info in (header, replace(header, frames=header.frames - 1)):
            drawn = own.draw(clip, info)
            if isinstance(drawn, Skipped):
                return drawn
            missing = own._missing(drawn.every, set(cached.rows) if cached else set())
            try:
                pixels = [_read_pixels(video, some, own.size, info) for some in missing]
                return ClipFrames(drawn, info, missing, pixels)
            except VideoError:
                if info is not header or max(map(max, missing)) != header.frames - 1:
                    raise  # else the container may overstate its length by one: draw again without that frame
        raise AssertionError("not reached")

    def fitted(self, clip: Clip, info: VideoInfo) -> WindowReader:
        """With the bucket and the length of a clip of this header; itself where there are none of them."""
        if not (self.buckets or self.lengths):
            return self
        plain = replace(self, buckets=(), lengths=())
        windows = [replace(self.window, length=length) for length in sorted(self.lengths)] or [self.window]
        held = [window for window in windows if replace(plain, window=window).skip_reason(clip, info) is None]
        size = self.buckets[nearest_bucket(info.height, info.width, self.buckets)] if self.buckets else self.size
        return replace(plain, size=size, window=held[-1] if held else windows[0])

    def skip_reason(self, clip: Clip, info: VideoInfo) -> str | None:
        """Why a clip of this header gives no window, or None."""
        least = frames_after_source(self.window, self.temporal_downscale) + 1
        return skip_reason(info, clip, self.config, least=least)

    def draw(self, clip: Clip, info: VideoInfo) -> DrawnWindows | Skipped:
        """The windows of a clip of this header; or why it gives none."""
        if reason := self.skip_reason(clip, info):
            return Skipped(clip.where, reason)
        windows = sample_windows(
            valid_frames(info, clip, self.config),
            self.window,
            self.config,
            clip_rng(clip, self.seed),
            temporal_downscale=self.temporal_downscale,
            following=self.following,
        )
        return DrawnWindows(windows, min(self.config.frame_rate, info.fps))

    def index(self, window: SampledWindow, clip: int, frame_rate: float) -> ExampleIndex:
        """Where a drawn window's example is found."""
        rows = [row for run in self._runs(window) for row in row_keys(run, self.temporal_downscale)]
        following = (self.index(one, clip, frame_rate) for one in window.following)
        return ExampleIndex(clip, tuple(rows), window.present, frame_rate / window.offset, tuple(following))

    def _runs(self, window: SampledWindow) -> list[tuple[int, ...]]:
        """The native frames that are encoded together: each alone by an image codec; the anchor, and the window, by a
        video codec."""
        if self.temporal_downscale == 1:
            return [(frame,) for frame in window.frames]
        anchors = int(self.window.anchor)
        return [(frame,) for frame in window.frames[:anchors]] + [window.frames[anchors:]]

    def _missing(self, drawn: Sequence[SampledWindow], cached: set[int]) -> list[tuple[int, ...]]:
        """Runs of native frames still to be encoded; for an image codec one run of all frames, rising."""
        runs = dict.fromkeys(run for window in drawn for run in self._runs(window))
        missing = [run for run in runs if not cached.issuperset(row_keys(run, self.temporal_downscale))]
        if self.temporal_downscale > 1:
            return missing
        return [tuple(sorted(frame for run in missing for frame in run))] * bool(missing)


class ClipFrames(NamedTuple):
    """What `WindowReader` reads of a clip."""

    drawn: DrawnWindows
    info: VideoInfo
    runs: list[tuple[int, ...]]
    """Native frames that are encoded together."""
    pixels: list[Tensor]
    """Of each run, float32 `[F, 3, height, width]` in [-1, 1]."""


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

    def __init__(
        self,
        clips: Sequence[Clip],
        files: Sequence[Path],
        examples: Sequence[ExampleIndex],
        sizes: Sequence[Size] | None = None,
        *,
        frames: int = 0,
    ) -> None:
        self.clips = list(clips)
        """The clips that gave examples."""
        self.files = list(files)
        """The cache file of each clip."""
        self.examples = list(examples)
        self.sizes = None if sizes is None else list(sizes)
        """The pixels of each clip; None = all clips are of one bucket."""
        self.frames = frames
        """Latent frames of an example whose window is the system's own."""
        videos: dict[Path, int] = {}
        self._groups = [videos.setdefault(clip.where, len(videos)) for clip in clips]

    @property
    def rates(self) -> list[float]:
        """Frames a second that its windows have."""
        return sorted({example.fps for example in self.examples})

    def buckets(self) -> dict[Bucket | None, list[int]]:
        """Examples by bucket, the buckets rising; under None where all are of one."""
        if self.sizes is None:
            return {None: list(range(len(self)))}
        found: dict[Bucket, list[int]] = {}
        for number, example in enumerate(self.examples):
            found.setdefault(Bucket(*self.sizes[example.clip], len(example.rows)), []).append(number)
        return {bucket: found[bucket] for bucket in sorted(found)}

    def videos(self, examples: Iterable[int]) -> int:
        """How many videos these examples are from."""
        return len({self._groups[self.examples[number].clip] for number in examples})

    @property
    def deepest(self) -> int:
        """Windows of the longest rollout that its windows are the truth of."""
        return 1 + max(len(example.following) for example in self.examples)

    def draw_rollouts(self, count: int, depth: int, generator: torch.Generator) -> list[int]:
        """Numbers of examples with which rollouts of `depth` windows begin, with repeats."""
        starts = [number for number, example in enumerate(self.examples) if len(example.following) >= depth - 1]
        return [starts[i] for i in torch.randint(len(starts), (count,), generator=generator)]

    def window(self, number: int, after: int) -> Example:
        """The example that comes `after` windows after another one."""
        first = self.examples[number]
        return self.read((first, *first.following)[after])

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
        text, image = (
            {name: value.clone() for name, value in tensors.items()}  # off the mapped file
            for tensors in (cached.text, cached.images.get(rows[-1], {}))
        )
        group = torch.tensor(self._groups[clip])
        return example_of(cached.raw, torch.tensor(present), text, torch.tensor(fps), group, image)


def encode_clips(
    clips: Sequence[Clip],
    system: System,
    *,
    cache_dir: str | Path,
    resolution: int | Size,
    frames: FramesConfig,
    seed: int,
    buckets: Sequence[Size] = (),
    lengths: Sequence[int] = (),
    following: int = 0,
    first: int = 0,
    progress: bool = True,
) -> tuple[ExampleDataset, list[Skipped]]:
    """Draw the windows of every clip and encode the frames they need, but for those the cache has.

    Returns the data set, in the clips' order, and the clips left out (a file that can't be decoded, a clip
    too long or too short) with the reasons. The windows depend on `seed` and the clip alone, not on its folder
    or its neighbours. `resolution` is what the codec sees: a square's side or (height, width), in pixels; where there
    are `buckets`, each clip has the size of its `nearest_bucket` in its place. Where there are `lengths`, its windows
    have the most of these frames that it holds, in place of the system's.
    `following` windows after each are encoded as well, as far as the clip goes on (for image codecs alone). It begins
    with clip `first`: processes that begin with other ones share the work of one cache, and none waits.

    Raises NoClipLeft when no clip can be used; InputError when `cache_dir` can't be written (what is encoded stays) and
    when the encoder gives values that aren't finite.
    """
    if not clips:
        raise InputError("clips: expected at least one clip, got none")
    read = WindowReader.of(system, resolution, frames, seed=seed, following=following, buckets=buckets, lengths=lengths)
    sizes = list(buckets) or [read.size]
    folders = [cache_folder(Path(cache_dir), system.fingerprint, size) for size in sizes]
    found: dict[int, tuple[Path, DrawnWindows, Size] | Skipped] = {}
    anew = 0
    order = [*range(first, len(clips)), *range(first)]
    for number in tqdm(order, desc="encoding", unit="clip", mininterval=0.5, disable=not progress):
        clip = clips[number]
        try:
            files = [clip_file(folder, clip) for folder in folders]
            mine = _reader_of(clip, files, read) if buckets or lengths else read
            file = files[sizes.index(mine.size)]
            cached = load_clip(file)
            anew += cached is None and file.exists()
            drawn = _encode_clip(clip, system, file, cached, mine)
        except VideoError as error:
            drawn = Skipped.because(clip.where, error)
        found[number] = drawn if isinstance(drawn, Skipped) else (file, drawn, mine.size)
    kept: list[Clip] = []
    files = []
    size_of: list[Size] = []
    indices: list[ExampleIndex] = []
    skipped: list[Skipped] = []
    for number, one in sorted(found.items()):
        if isinstance(one, Skipped):
            skipped.append(one)
            continue
        file, drawn, size = one
        indices += [read.index(window, len(kept), drawn.frame_rate) for window in drawn.windows]
        kept.append(clips[number])
        files.append(file)
        size_of.append(size)
    if anew and progress:
        print(
            f"encoded {anew} clips anew: their files in {folders[0].parent} were damaged, or an earlier version wrote "
            "them"
        )
    if not kept:
        raise NoClipLeft(skipped)
    own = system.window.frames
    return ExampleDataset(kept, files, indices, size_of if buckets or lengths else None, frames=own), skipped


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


def none_left_in(file: Path, error: NoClipLeft, before: Sequence[Skipped] = (), *, write: bool = True) -> InputError:
    """Write what was left out, `before` first, and return the error that says where; only that without `write`."""
    if write:
        write_skipped(file, [*before, *error.skipped])
    return InputError(f"{error}; all of them are in {file}")


def write_skipped(path: Path, skipped: Sequence[Skipped]) -> None:
    """Write what was left out as CSV with the columns path and reason; an earlier run's file is replaced.

    Where nothing was left out and there is no such file, none is made. Raises InputError when it can't be written.
    """
    if not skipped and not path.exists():
        return

    write_csv(path, ["path", "reason"], [(one.path, one.reason) for one in skipped])


def encode_clip_frames(
    clip: Clip, system: System, size: Size, frames: Sequence[int], *, given: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Native frames of a clip as the training sees them, past the cache: for previews.

    Returns pixels `[F, 3, height, width]` in [-1, 1] and raw latents `[n, R, h, w]` of those at the places `given`,
    each encoded for itself, the last frame for places after it; float32, on the CPU. Raises VideoError naming the file,
    InputError when the encoder's values aren't finite.
    """
    with ClipReader(clip) as video:
        pixels = _read_pixels(video, frames, size)
    runs = [pixels[min(place, len(pixels) - 1)][None] for place in given or [0]]
    raw = torch.cat(encode_runs(runs, system, [clip] * len(runs)))
    return pixels, raw[: len(given)].float()


def _reader_of(clip: Clip, files: Sequence[Path], read: WindowReader) -> WindowReader:
    """Fitted to the clip's header as one of its cache files has it, or the video. Raises VideoError."""
    cached = next(filter(None, (load_clip(file, ()) for file in files)), None)
    return read.fitted(clip, cached.info if cached else probe_clip(clip))


def _encode_clip(
    clip: Clip, system: System, file: Path, cached: CachedClip | None, read: WindowReader
) -> DrawnWindows | Skipped:
    """The clip's windows, their frames in the cache; or why it gives none."""
    found = read(clip, cached)
    if isinstance(found, Skipped) or not found.runs:
        return found if isinstance(found, Skipped) else found.drawn
    raw = torch.cat(encode_runs(found.pixels, system, [clip] * len(found.runs)))
    rows = [row for some in found.runs for row in row_keys(some, read.temporal_downscale)]
    text = cached.text if cached else encode_captions([clip], system)[0]
    images = encode_images(list(zip(found.runs, found.pixels, strict=True)), system, clip)
    store_clip(file, CachedClip(rows, raw, text, found.info, images), clip)
    return found.drawn


def _read_pixels(video: ClipReader, frames: Sequence[int], size: Size, info: VideoInfo | None = None) -> Tensor:
    """Native frames `[F, 3, height, width]` in [-1, 1]; `info` is the video's header where it is known."""
    at_once = FRAMES_AT_ONCE
    if info is not None:
        at_once = max(at_once, BYTES_AT_ONCE // max(3 * info.height * info.width, 1))
    native = (video.read(frames[i : i + at_once]) for i in range(0, len(frames), at_once))
    parts = [resize_frames(part, size) for some in native for part in torch.split(some, FRAMES_AT_ONCE)]
    return torch.cat(parts)


@torch.no_grad()
def encode_runs(
    runs: Sequence[Tensor], system: System, clips: Sequence[Clip], *, at_once: int = FRAMES_AT_ONCE
) -> list[Tensor]:
    """Runs of frames that belong together, `[F, 3, H, W]` each -> what the codec makes of each, `[f, R, h, w]`.

    An image codec gets `at_once` frames together, whichever run they are of; a video codec runs of one length, as many
    as have no more frames. Raises InputError naming the clip of a run whose latents aren't finite.
    """
    downscale = system.codec.temporal_downscale
    if downscale == 1:
        parts = torch.split(torch.cat(list(runs)), at_once)
        encoded = torch.cat([_encode(part[None], system)[0] for part in parts])
        found = list(torch.split(encoded, [len(run) for run in runs]))
    else:
        found = [torch.empty(0)] * len(runs)
        for length in sorted({len(run) for run in runs}):
            places = [place for place, run in enumerate(runs) if len(run) == length]
            for some in torch.split(torch.tensor(places), max(1, at_once // length)):
                for place, raw in zip(some, _encode(torch.stack([runs[i] for i in some]), system), strict=True):
                    found[int(place)] = raw
    for raw, clip in zip(found, clips, strict=True):
        _require_finite(raw, "the encoder's latents", clip)
    return found


@torch.no_grad()
def encode_images(runs: Sequence[tuple[Sequence[int], Tensor]], system: System, clip: Clip) -> dict[int, ImageEmbeds]:
    """What a system that sees pixels makes of each window's given frames, by the window's last row; none for others.

    Args:
        runs: of one clip, native frames and their pixels `[F, 3, H, W]`, as a video codec encodes them together.

    Raises InputError naming the clip where a value isn't finite.
    """
    downscale, found = system.codec.temporal_downscale, {}
    for frames, pixels in runs if system.sees_pixels else ():
        if len(frames) == 1:  # an anchor
            continue
        given, length = 1 + (system.window.past - 1) * downscale, (len(frames) - 1) // downscale + 1
        image = {name: value[0].cpu() for name, value in system.encode_image(pixels[None, :given], length).items()}
        for name, value in image.items():
            _require_finite(value, name, clip)
        found[row_keys(frames, downscale)[-1]] = image
    return found


def _encode(pixels: Tensor, system: System) -> Tensor:
    """`[B, F, 3, H, W]` -> `[B, f, R, h, w]`."""
    raw = system.codec.encode(pixels).detach().cpu()
    frames = (pixels.shape[1] - 1) // system.codec.temporal_downscale + 1
    if raw.dim() != 5 or raw.shape[:2] != (len(pixels), frames):
        raise ValueError(
            f"codec.encode: expected [{len(pixels)}, {frames}, R, h, w] of pixels {tuple(pixels.shape)}, "
            f"got [{', '.join(map(str, raw.shape))}]"
        )
    return raw


@torch.no_grad()
def encode_captions(clips: Sequence[Clip], system: System) -> list[Text]:
    """Each clip's prompt as tensors `[*]`. Raises InputError naming the clip whose text isn't finite."""
    text = {name: value.detach().cpu() for name, value in system.encode_text([one.caption for one in clips]).items()}
    for name, values in text.items():
        if len(values) != len(clips):
            raise ValueError(
                f"encode_text: expected {name} [{len(clips)}, *] of {len(clips)} prompts, got {tuple(values.shape)}"
            )
        for clip, value in zip(clips, values, strict=True):
            if value.is_floating_point():
                _require_finite(value, f"{name} of {clip.caption!r}", clip)
    return [{name: values[i].clone() for name, values in text.items()} for i in range(len(clips))]


def _require_finite(values: Tensor, what: str, clip: Clip) -> None:
    if not bool(torch.isfinite(values).all()):
        raise InputError(
            f"{clip.where}: {what} hold NaN or infinity in {values.dtype}; nothing of it was cached. "
            f"Encode in float32 (a half-precision VAE overflows), or check the weights"
        )
