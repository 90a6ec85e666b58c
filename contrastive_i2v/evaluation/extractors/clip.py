"""CLIP: images and texts in one space, for CLIP score, CLIPSIM, temporal coherency and background consistency.

No package carries its weights: pass a folder that `CLIPModel.save_pretrained` wrote, or a hub id such as
openai/clip-vit-base-patch32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from contrastive_i2v.evaluation.extractors.preparation import (
    CLIP_MEAN,
    CLIP_STD,
    ResizableNetwork,
    normalise,
)
from contrastive_i2v.evaluation.extractors.text import encode_texts
from contrastive_i2v.evaluation.extractors.weights import describe_pretrained, load_pretrained, load_tokenizer, require
from contrastive_i2v.evaluation.results import Extractor


class CLIP(ResizableNetwork):
    """The projected image and text embeddings of a CLIPModel, not normalised.

        image(x) = visual_projection(pool(vision_model(normalise(resize(x)))))
        text(s)  = text_projection(pool(text_model(tokens(s))))

    resize is CLIP's own unless `resized` gives another that ends in a square of the network's size. Frames are
    normalised with OpenAI's constants. Radford et al., "Learning Transferable Visual Models From
    Natural Language Supervision" (2021).
    """

    def __init__(self, source: str, device: str | torch.device = "cpu") -> None:
        """Raises InputError when `source` can't be loaded or lacks parameters."""
        self.device = torch.device(device)
        transformers = require("transformers", "transformers", "clip")
        model = load_pretrained(transformers.CLIPModel.from_pretrained, source, "clip")
        self.network = model.to(self.device)
        self.tokenizer = load_tokenizer(source, "clip")
        self.size = int(model.config.vision_config.image_size)
        self.max_tokens = int(model.config.text_config.max_position_embeddings)
        self.about = Extractor(
            name="clip",
            dimension=int(model.config.projection_dim),
            weights=describe_pretrained(source, model),
            resize=self.resize.describe(self.size),
        )

    def text(self, prompts: Sequence[str]) -> Tensor:
        """N prompts -> `[N, d]`; what goes beyond the model's token limit (77) is cut off."""
        return encode_texts(self._text, self.tokenizer, prompts, self.max_tokens, self.device)

    def _features(self, frames: Tensor) -> Tensor:
        pixels = normalise(self.resize(frames, self.size), CLIP_MEAN, CLIP_STD)
        return _projected(self.network.get_image_features(pixel_values=pixels))

    def _text(self, tokens: dict[str, Tensor]) -> Tensor:
        return _projected(self.network.get_text_features(**tokens))


def _projected(output: Any) -> Tensor:
    """transformers before 5 returns the embedding itself, from 5 on an output whose pooler_output it is."""
    embedding: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return embedding
