"""The best clips of a folder by scores, as Emu Video's last stage is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from contrastive_i2v.data.frames import valid_frames
from contrastive_i2v.data.reading import probe_clip, read_clip
from contrastive_i2v.data.types import Clip
from contrastive_i2v.data.video import VideoError, as_size, resize_frames
from contrastive_i2v.evaluation.alignment import clipsim
from contrastive_i2v.evaluation.extractors.base import TextImageExtractor
from contrastive_i2v.evaluation.extractors.loading import load_clip
from contrastive_i2v.files import write_csv
from contrastive_i2v.training.config import DataConfig
from contrastive_i2v.training.quality import motion, sharpness
from contrastive_i2v.training.scores import ScoreTable

SCORES = "scores.csv"
"""The scores of every clip, and which were kept, in the run's folder."""
FRAMES = 8
"""Frames of a clip that are looked at, the first valid ones."""


def select_clips(
    clips: Sequence[Clip], config: DataConfig, *, file: Path, table: ScoreTable | None = None, progress: bool = True
) -> list[Clip]:
    """The share `config.keep` of the clips, at least one, with the best mean rank over the scores, in their order.

    Clips that can't be read stay: encoding names them.

    Args:
        file: gets the scores, as CSV.
        table: has the scores of all of them; None = they are measured, on a clip's first frames.
        progress: whether this process shows a bar and writes.
    """
    scored = _score_all(clips, config, progress=progress) if table is None else dict(enumerate(table.ranked(clips)))
    means = dict(zip(scored, mean_ranks(list(scored.values())), strict=True))
    ranked = sorted(scored, key=lambda row: (-means[row], row))
    best = set(ranked[: max(1, round(config.keep * len(ranked)))])
    if progress:
        _write(file, clips, scored, best)
    return [clip for number, clip in enumerate(clips) if number in best or number not in scored]


def _score_all(clips: Sequence[Clip], config: DataConfig, *, progress: bool) -> dict[int, dict[str, float]]:
    """The scores of each clip that can be read."""
    network = load_clip(config.clip)
    scored: dict[int, dict[str, float]] = {}
    for number, clip in enumerate(tqdm(clips, desc="scoring", unit="clip", disable=not progress)):
        try:
            indices = valid_frames(probe_clip(clip), clip, config.frames)[:FRAMES]
            pixels = resize_frames(read_clip(clip, indices), as_size(config.resolution))
        except VideoError:
            continue
        scored[number] = score(pixels, clip.caption, network)
    return scored


def score(pixels: Tensor, caption: str, network: TextImageExtractor | None = None) -> dict[str, float]:
    """What a clip is ranked by; more is better.

        motion, sharpness   of `quality`
        caption             `caption_similarity`, where a CLIP is given

    Args:
        pixels: [F, 3, H, W] in [-1, 1].
    """
    scores = {"motion": motion(pixels), "sharpness": sharpness(pixels)}
    if network is not None:
        scores["caption"] = caption_similarity(pixels, caption, network)
    return scores


def caption_similarity(pixels: Tensor, caption: str, network: TextImageExtractor) -> float:
    """The mean cosine of CLIP's features of the caption and of frames `[F, 3, H, W]` in [-1, 1]."""
    return float(clipsim(network(pixels)[None], network.text([caption])))


def mean_ranks(scores: Sequence[dict[str, float]]) -> list[float]:
    """The mean over the scores of a clip's rank in each, 0 = the lowest; equal values share the mean of their ranks."""
    if not scores:
        return []
    values = list(zip(*(one.values() for one in scores), strict=True))
    columns = torch.tensor(values, dtype=torch.float64)  # [scores, clips]
    ordered = columns.sort(dim=1).values
    below, upto = (torch.searchsorted(ordered, columns, right=right) for right in (False, True))
    ranks: list[float] = (below + (upto - below - 1) / 2).mean(0).tolist()
    return ranks


def _write(file: Path, clips: Sequence[Clip], scored: dict[int, dict[str, float]], best: set[int]) -> None:
    names = list(next(iter(scored.values()), {}))
    rows = (
        [clips[n].path, clips[n].caption, *(f"{scores[name]:.6g}" for name in names), int(n in best)]
        for n, scores in scored.items()
    )
    write_csv(file, ["path", "caption", *names, "kept"], rows)
