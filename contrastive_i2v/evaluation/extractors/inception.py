"""Inception v3 as FID, KID and IS know it, from the weights file that pytorch-fid and torch-fidelity share.

No package carries it: the user passes the file `pt_inception-2015-12-05-6726825d.pth` (pytorch-fid's name for it;
torch-fidelity calls the same weights `weights-inception-2015-12-05-6726825d.pth`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from contrastive_i2v.data.video import to_uint8
from contrastive_i2v.evaluation.extractors.inception_network import SIZE, InceptionV3
from contrastive_i2v.evaluation.extractors.preparation import FrameNetwork
from contrastive_i2v.evaluation.extractors.weights import (
    describe_file,
    existing_file,
    load_state_dict,
    read_state_dict,
)
from contrastive_i2v.evaluation.results import Extractor

EXPECTED = (
    "pt_inception-2015-12-05-6726825d.pth, as released by pytorch-fid (torch-fidelity releases the same weights as "
    "weights-inception-2015-12-05-6726825d.pth)"
)


class Inception(FrameNetwork):
    """The 2048-d pool3 features and the 1008 classes of the original FID network.

        features(x) = pool3((resize(round(255 (x + 1) / 2), 299) - 128) / 128)
        probabilities(x) = softmax(features(x) @ W^T)

    Frames are rounded to 8 bits, as images on a disk are, and resized as TensorFlow 1 did, so that the numbers
    compare with the literature's. The probabilities leave the bias of the last layer out, as the Inception Score
    always has. Heusel et al., "GANs Trained by a Two Time-Scale Update Rule" (2017).
    """

    def __init__(self, source: str, device: str | torch.device = "cpu") -> None:
        """Raises InputError when the file is missing or holds other weights."""
        self.device = torch.device(device)
        path = existing_file(source, "inception", EXPECTED)
        with torch.random.fork_rng(devices=[]):
            network = InceptionV3()
        load_state_dict(network, read_state_dict(path), path)
        self.network = network.float().eval().to(self.device)
        self.about = Extractor(
            name="inception",
            dimension=2048,
            weights=describe_file(path),
            resize=f"rounded to 8 bits, TensorFlow 1 bilinear to {SIZE} x {SIZE}, not antialiased, aspect not kept",
        )

    def classify(self, features: Tensor) -> Tensor:
        """`softmax(features @ W^T)`: features `[N, 2048]` -> probabilities `[N, 1008]`, without the network."""
        with torch.no_grad():
            logits = features.to(self.device, torch.float32) @ self.network.fc.weight.T  # [N, 1008]
            return logits.softmax(dim=1).cpu()

    def probabilities(self, frames: Tensor) -> Tensor:
        """`[N, 3, H, W]` -> `[N, 1008]`; rows sum to 1."""
        return self.classify(self(frames))

    def _features(self, frames: Tensor) -> Tensor:
        pixels: Tensor = self.network((resize_tensorflow(to_uint8(frames).float(), SIZE, SIZE) - 128) / 128)
        return pixels


def resize_tensorflow(frames: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resize as TensorFlow 1's `resize_bilinear` does it: pixel i of the output lies at i * size / new_size.

    torch's bilinear puts it at (i + 1/2) * size / new_size - 1/2, which shifts the features enough to move FID.

    Args:
        frames: [N, C, H, W].

    Returns:
        [N, C, height, width].
    """
    rows = _interpolation(frames.shape[-2], height, frames)  # [height, H]
    columns = _interpolation(frames.shape[-1], width, frames)  # [width, W]
    return rows @ frames @ columns.T


def _interpolation(size: int, new_size: int, like: Tensor) -> Tensor:
    """The matrix `[new_size, size]` whose row i weighs the two pixels around `i * size / new_size`."""
    position = torch.arange(new_size, device=like.device, dtype=torch.float32) * (size / new_size)
    low = position.long()
    high = (low + 1).clamp(max=size - 1)
    weight = position - low
    matrix = torch.zeros(new_size, size, device=like.device)
    matrix.scatter_add_(1, low[:, None], (1 - weight)[:, None])
    matrix.scatter_add_(1, high[:, None], weight[:, None])
    return matrix.to(like.dtype)
