"""Dense inverse search: the offline optical flow, from OpenCV. A proxy for RAFT in the dynamic degree."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from contrastive_i2v.data.video import to_uint8
from contrastive_i2v.evaluation.extractors.preparation import check_frames
from contrastive_i2v.evaluation.extractors.weights import require
from contrastive_i2v.evaluation.results import Extractor

NAME = "dis"
PACKAGE = "opencv-python-headless"
LEAST_SIDE = 16


class DISFlow:
    """Optical flow by dense inverse search, at full resolution.

    It needs no weights. Where a frame has no texture the flow is a guess, so a dynamic degree on it is a proxy.
    Kroeger et al., "Fast Optical Flow using Dense Inverse Search" (2016).
    """

    def __init__(self) -> None:
        """Raises InputError when OpenCV is missing."""
        self.opencv = require("cv2", PACKAGE, NAME)
        self.search = self.opencv.DISOpticalFlow_create(self.opencv.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self.search.setFinestScale(0)
        self.about = Extractor(
            name=NAME,
            dimension=2,
            weights=f"none; the algorithm of OpenCV {self.opencv.__version__}",
            resize="none; frames as 8-bit grey",
            stands_in_for="RAFT",
        )

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Two `[N, 3, H, W]` in [-1, 1], H, W >= 16 -> displacement in pixels `[N, 2, H, W]` (x, y), first to second.

        Raises ValueError for another shape, type or NaN.
        """
        check_pair(first, second, LEAST_SIDE)
        flows = [self.search.calc(a, b, None) for a, b in zip(self._grey(first), self._grey(second), strict=True)]
        return torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2).contiguous()

    def _grey(self, frames: Tensor) -> list[np.ndarray]:
        pixels = to_uint8(frames).permute(0, 2, 3, 1).contiguous().cpu().numpy()  # [N, H, W, 3]
        return [self.opencv.cvtColor(image, self.opencv.COLOR_RGB2GRAY) for image in pixels]


def check_pair(first: Tensor, second: Tensor, least_side: int) -> None:
    """Raise ValueError unless both are finite float `[N, 3, H, W]` of one shape with H, W >= least_side."""
    check_frames(first, "first")
    check_frames(second, "second")
    if first.shape != second.shape:
        raise ValueError(f"first, second: expected one shape, got {list(first.shape)} and {list(second.shape)}")
    if min(first.shape[-2:]) < least_side:
        raise ValueError(f"first: expected sides of at least {least_side} pixels, got {list(first.shape)}")
