"""Representation alignment: features inside the network are pulled towards a frozen encoder's of the clean frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive_i2v.errors import InputError


class RepresentationAlignmentLoss(nn.Module):
    """Minus the cosine of projected features and the encoder's patch tokens.

        loss = - mean_{b, n} cos(resize(MLP(h))_{b, n}, y_{b, n})

    The MLP has three linear layers with SiLU between them, and sees every place for itself; what it gives is resized to
    the places n of the targets (bilinear, antialiased where these are fewer). The gradient goes to h and the MLP.

    Args:
        features: D, channels of h.
        targets: E, channels of y.
        width: of the MLP's hidden layers; None = twice the larger of D and E. The source has 2048 for 1152 and 768.

    Sources: Yu et al., "Representation Alignment for Generation" (arXiv 2410.06940), with a weight of 0.5; for a UNet
    the middle's features, resized after the MLP, of Tian et al., "U-REPA" (arXiv 2503.18414).
    """

    def __init__(self, features: int, targets: int, *, width: int | None = None) -> None:
        super().__init__()
        width = width or 2 * max(features, targets)
        self.projection = nn.Sequential(
            nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, targets)
        )

    def forward(self, features: Tensor, targets: Tensor) -> Tensor:
        """Loss of one batch: scalar in [-1, 1], float32 at least.

        Args:
            features: [B, D, h, w].
            targets: [B, E, h', w'].

        Raises:
            InputError: features and targets that aren't maps of as many samples.
        """
        if features.dim() != 4 or targets.dim() != 4 or len(features) != len(targets):
            raise InputError(
                f"features {tuple(features.shape)} and targets {tuple(targets.shape)}; expected [B, D, h, w] and "
                "[B, E, h', w']"
            )
        wide = features.to(torch.promote_types(features.dtype, torch.float32)).movedim(1, -1)
        projected = self.projection(wide).movedim(-1, 1)
        if projected.shape[2:] != targets.shape[2:]:
            projected = F.interpolate(projected, size=targets.shape[2:], mode="bilinear", antialias=True)
        return -F.cosine_similarity(projected, targets.to(projected.dtype), dim=1).mean()
