"""DINO ViT: image features without labels, for subject consistency.

No package carries its weights: pass a folder that `ViTModel.save_pretrained` wrote, or a hub id such as
facebook/dino-vitb16.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from contrastive_i2v.evaluation.extractors.preparation import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FrameNetwork,
    centre_square,
    normalise,
)
from contrastive_i2v.evaluation.extractors.weights import describe_pretrained, load_pretrained, require
from contrastive_i2v.evaluation.results import Extractor


class DINO(FrameNetwork):
    """The class token of the last layer of a ViT, after its layer norm.

        features(x) = ViT(normalise(resize(x))).last_hidden_state[:, 0]

    VBench takes DINO ViT-B/16 but resizes bilinearly without antialiasing and doesn't crop, so numbers are close to
    its own, not equal. Caron et al., "Emerging Properties in Self-Supervised Vision Transformers" (2021).
    """

    def __init__(self, source: str, device: str | torch.device = "cpu") -> None:
        """Raises InputError when `source` can't be loaded or lacks parameters."""
        self.device = torch.device(device)
        transformers = require("transformers", "transformers", "dino")
        load = partial(transformers.ViTModel.from_pretrained, add_pooling_layer=False)
        model = load_pretrained(load, source, "dino")
        self.network = model.to(self.device)
        self.size = int(model.config.image_size)
        self.about = Extractor(
            name="dino",
            dimension=int(model.config.hidden_size),
            weights=describe_pretrained(source, model),
            resize=f"shorter side to {self.size} by antialiased bicubic, then the central square",
        )

    def _features(self, frames: Tensor) -> Tensor:
        pixels = normalise(centre_square(frames, self.size), IMAGENET_MEAN, IMAGENET_STD)
        tokens: Tensor = self.network(pixel_values=pixels).last_hidden_state  # [n, 1 + patches, d]
        return tokens[:, 0]
