"""Gathering in one process, and what it refuses; several processes are in test_distributed.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from contrastive_i2v.losses import gather_bank


def test_one_process_keeps_its_latents_and_their_precision() -> None:
    latents, groups = torch.randn(3, 4, 2, 2), torch.tensor([0, 0, 1])
    out = gather_bank(latents, groups)
    assert torch.equal(out.latents, latents) and out.latents.dtype == torch.float32
    assert torch.equal(out.groups, groups) and out.positives.tolist() == [0, 1, 2] and out.loss_scale == 1


@pytest.mark.parametrize(
    ("latents", "more", "message"),
    [
        (torch.ones(2, 3, requires_grad=True), {}, "latents requires a gradient.*detach"),
        (torch.ones(2, 3, dtype=torch.int64), {}, "latents is torch.int64"),
        (torch.ones(3), {}, r"latents is torch.float32 \[3\]: expected floating \[B, \*latent\]"),
        (torch.ones(0, 3), {}, "at least one row"),
        (torch.ones(2, 3), {"groups": torch.ones(2)}, r"groups is torch.float32 \[2\]: expected torch.int64 \[2\]"),
        (torch.ones(2, 3), {"groups": torch.arange(3)}, r"groups is torch.int64 \[3\]"),
        (torch.ones(2, 3), {"sizes": [3]}, r"sizes is \[3\]: expected .* and 2 for rank 0"),
        (torch.ones(2, 3), {"sizes": [2, 2]}, "each of the 1 ranks"),
    ],
)
def test_bad_input_is_refused(latents: torch.Tensor, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gather_bank(latents, **more)
