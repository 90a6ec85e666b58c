"""I3D trained on Kinetics-400, the network of FVD, from StyleGAN-V's TorchScript file.

No package carries it: the user passes the file `i3d_torchscript.pt`. TorchScript holds a program that runs when it
is loaded and called, so pass only a file you trust.
"""

from __future__ import annotations

import torch
from torch import Tensor

from contrastive_i2v.data.video import to_uint8
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.extractors.preparation import check_videos, frames_at_once, in_chunks
from contrastive_i2v.evaluation.extractors.weights import describe_file, existing_file, load_script
from contrastive_i2v.evaluation.results import Extractor

EXPECTED = "i3d_torchscript.pt, as released with StyleGAN-V"
LEAST_FRAMES = 10
"""Shorter videos leave nothing after I3D's temporal strides."""


class I3D:
    """400-d features of a video: I3D's logits before the softmax.

        features(x) = i3d(round(255 (x + 1) / 2), rescale=True, resize=True, return_features=True)

    The file takes `[N, 3, F, H, W]` in [0, 255], and rescales to [-1, 1] and resizes to 224 x 224 by itself. Carreira
    and Zisserman, "Quo Vadis, Action Recognition?" (2017); Unterthiner et al., "Towards Accurate Generative Models
    of Video" (2018); Skorokhodov et al., "StyleGAN-V" (2022).
    """

    def __init__(self, source: str, device: str | torch.device = "cpu") -> None:
        """Raises InputError when the file is missing or isn't TorchScript."""
        self.device = torch.device(device)
        self.path = existing_file(source, "i3d", EXPECTED)
        self.network = load_script(self.path, self.device)
        self.about = Extractor(
            name="i3d",
            dimension=400,
            weights=describe_file(self.path),
            resize="rounded to 8 bits, then as the file does it: bilinear to 224 x 224, aspect not kept",
        )

    def __call__(self, videos: Tensor) -> Tensor:
        """`[N, F, 3, H, W]` in [-1, 1] with F >= 10 -> `[N, 400]`.

        Raises:
            ValueError: another shape, type or NaN.
            InputError: the file doesn't give 400 features a video.
        """
        check_videos(videos, least=LEAST_FRAMES)
        limit = 8 * frames_at_once(self.device) // videos.shape[1]
        return in_chunks(self._features, videos, limit=limit, device=self.device)

    def _features(self, videos: Tensor) -> Tensor:
        pixels = to_uint8(videos).float().transpose(1, 2).contiguous()  # [n, 3, F, H, W]
        try:
            features: Tensor = self.network(pixels, rescale=True, resize=True, return_features=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-300:]
            raise InputError(f"{self.path}: could not be run as I3D ({reason}); expected {EXPECTED}") from error
        if features.shape != (len(videos), self.about.dimension):
            raise InputError(f"{self.path}: gave {list(features.shape)} for {len(videos)} videos; expected {EXPECTED}")
        return features
