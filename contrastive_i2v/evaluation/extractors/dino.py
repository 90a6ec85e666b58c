"""DINO ViT: image features without labels, for subject consistency.

No package carries its weights: pass a folder that `ViTModel.save_pretrained` wrote, or a hub id such as
facebook/dino-vitb16.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_i2v.evaluation.extractors.preparation import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ResizableNetwork,
    normalise,
)
from contrastive_i2v.evaluation.extractors.weights import describe_pretrained, load_pretrained, require
from contrastive_i2v.evaluation.results import Extractor


class DINO(ResizableNetwork):
    """The class token of the last layer of a ViT, after its layer norm.

        features(x) = ViT(normalise(resize(x))).last_hidden_state[:, 0]

    resize is the central square unless `resized` gives another: VBench's metrics each have their own. Frames that
    aren't square give another number of patches, for which the position embeddings are interpolated as the authors'
    code does it, the scale a tenth of a patch larger than the ratio of the sides; pixels beyond the last whole patch
    are not seen.

    Caron et al., "Emerging Properties in Self-Supervised Vision Transformers" (2021).
    """

    def __init__(self, source: str, device: str | torch.device = "cpu") -> None:
        """Raises InputError when `source` can't be loaded or lacks parameters."""
        self.device = torch.device(device)
        transformers = require("transformers", "transformers", "dino")
        load = partial(transformers.ViTModel.from_pretrained, add_pooling_layer=False)
        model = load_pretrained(load, source, "dino")
        model.embeddings.interpolate_pos_encoding = partial(_interpolated_positions, model.embeddings)
        self.network = model.to(self.device)
        self.size = int(model.config.image_size)
        self.about = Extractor(
            name="dino",
            dimension=int(model.config.hidden_size),
            weights=describe_pretrained(source, model),
            resize=self.resize.describe(self.size),
        )

    def _features(self, frames: Tensor) -> Tensor:
        pixels = normalise(self.resize(frames, self.size), IMAGENET_MEAN, IMAGENET_STD)
        tokens: Tensor = self.network(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
        return tokens[:, 0]  # of [n, 1 + patches, d]


def _interpolated_positions(embeddings: Any, tokens: Tensor, height: int, width: int) -> Tensor:
    """Position embeddings `[1, 1 + patches, d]` for frames of height x width, as facebookresearch/dino makes them.

    transformers' own method scales by the exact ratio, which shifts where the grid is read by up to a tenth of a patch.
    """
    positions: Tensor = embeddings.position_embeddings  # [1, 1 + side^2, d]
    if tokens.shape[1] == positions.shape[1] and height == width:
        return positions
    side, patch = math.isqrt(positions.shape[1] - 1), embeddings.patch_size
    grid = positions[:, 1:].mT.reshape(1, -1, side, side)  # [1, d, side, side]
    scale = ((height // patch + 0.1) / side, (width // patch + 0.1) / side)
    grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).mT], dim=1)
