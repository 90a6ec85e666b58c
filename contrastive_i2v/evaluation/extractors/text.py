"""Texts through a tokenizer and an encoder, in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

AT_ONCE = 64


def encode_texts(
    encode: Callable[[dict[str, Tensor]], Tensor],
    tokenizer: Any,
    texts: Sequence[str],
    max_tokens: int,
    device: torch.device,
) -> Tensor:
    """N texts -> `[N, d]` float32 on the CPU, 64 at a time, each cut to `max_tokens`.

    Args:
        encode: input_ids and attention_mask, both [n, L] -> [n, d].

    Raises:
        ValueError: no text, or one string in place of a sequence of them.
    """
    if isinstance(texts, str) or not texts:
        raise ValueError(f"texts: expected a sequence of at least one string, got {texts!r}")
    parts = []
    with torch.no_grad():
        for start in range(0, len(texts), AT_ONCE):
            tokens = tokenizer(
                list(texts[start : start + AT_ONCE]),
                padding=True,
                truncation=True,
                max_length=max_tokens,
                return_tensors="pt",
            )
            inputs = {name: tokens[name].to(device) for name in ("input_ids", "attention_mask")}
            parts.append(encode(inputs).float().cpu())
    return torch.cat(parts)
