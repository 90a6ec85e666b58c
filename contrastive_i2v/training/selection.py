"""The best clips of a folder by scores, as Emu Video's last stage is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from contrastive_i2v.data.frames import valid_frames
from contrastive_i2v.data.reading import probe_clip, read_clip
from contrastive_i2v.data.types import Clip
from contrastive_i2v.data.video import VideoError, as_size, resize_frames, to_uint8
from contrastive_i2v.evaluation.alignment import clipsim
from contrastive_i2v.evaluation.extractors.base import TextImageExtractor
from contrastive_i2v.evaluation.extractors.loading import load_clip
from contrastive_i2v.files import write_csv
from contrastive_i2v.training.config import DataConfig

SCORES = "scores.csv"
"""The scores of every clip, and which were kept, in the run's folder."""
FRAMES = 8
"""Frames of a clip that are looked at, the first valid ones."""


def select_clips(clips: Sequence[Clip], config: DataConfig, *, file: Path, progress: bool = True) -> list[Clip]:
    """The share `config.keep` of the clips, at least one, with the best mean rank over the scores, in their order.

    Clips that can't be read stay: encoding names them.

    Args:
        file: gets the scores, as CSV.
        progress: whether this process shows a bar and writes.
    """
    network = load_clip(config.clip)
    scored: dict[int, dict[str, float]] = {}
    for number, clip in enumerate(tqdm(clips, desc="scoring", unit="clip", disable=not progress)):
        try:
            indices = valid_frames(probe_clip(clip), clip, config.frames)[:FRAMES]
            pixels = resize_frames(read_clip(clip, indices), as_size(config.resolution))
        except VideoError:
            continue
        scored[number] = score(pixels, clip.caption, network)
    rows = list(scored)
    means = mean_ranks([scored[row] for row in rows])
    best = sorted(rows, key=lambda row: (-means[rows.index(row)], row))[: max(1, round(config.keep * len(rows)))]
    if progress:
        _write(file, clips, scored, set(best))
    return [clip for number, clip in enumerate(clips) if number in best or number not in scored]


def score(pixels: Tensor, caption: str, network: TextImageExtractor | None = None) -> dict[str, float]:
    """What a clip is ranked by; more is better.

        motion      mean |x_{i+1} - x_i| over pixels in [-1, 1]
        sharpness   variance over a frame of the Laplacian of its luma, averaged over frames
        caption     mean cosine of CLIP's features of the caption and of the frames, where a CLIP is given

    Args:
        pixels: [F, 3, H, W] in [-1, 1].
    """
    luma = (pixels * pixels.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    kernel = pixels.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    laplacian = F.conv2d(luma, kernel.view(1, 1, 3, 3))  # [F, 1, H - 2, W - 2]
    scores = {
        "motion": float(pixels.diff(dim=0).abs().mean()) if len(pixels) > 1 else 0.0,
        "sharpness": float(laplacian.flatten(1).var(dim=1, unbiased=False).mean()),
    }
    if network is not None:
        scores["caption"] = float(clipsim(network(to_uint8(pixels))[None], network.text([caption])))
    return scores


def mean_ranks(scores: Sequence[dict[str, float]]) -> list[float]:
    """The mean over the scores of a clip's rank in each, 0 = the lowest; equal values share the mean of their ranks."""
    if not scores:
        return []
    columns = torch.tensor([list(one.values()) for one in scores], dtype=torch.float64)  # [clips, scores]
    below = (columns[None] < columns[:, None]).sum(1)
    alike = (columns[None] == columns[:, None]).sum(1) - 1
    ranks: list[float] = (below + alike / 2).mean(1).tolist()
    return ranks


def _write(file: Path, clips: Sequence[Clip], scored: dict[int, dict[str, float]], best: set[int]) -> None:
    names = list(next(iter(scored.values()), {}))
    rows = (
        [clips[n].path, clips[n].caption, *(f"{scores[name]:.6g}" for name in names), int(n in best)]
        for n, scores in scored.items()
    )
    write_csv(file, ["path", "caption", *names, "kept"], rows)
