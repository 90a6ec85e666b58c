"""The fused contrastive diffusion loss and its backends. Needs torch alone; the compiled extension is
optional."""

from contrastive_i2v.ops._backends import available_backends, build_info
from contrastive_i2v.ops.functional import ContrastiveDiffusionLossOutput, contrastive_diffusion_loss

__all__ = [
    "ContrastiveDiffusionLossOutput",
    "available_backends",
    "build_info",
    "contrastive_diffusion_loss",
]
