"""Contrastive fine-tuning of latent diffusion models: a still image and a sentence become a coherent video.

Nothing heavy is imported here, so `contrastive_i2v.ops` and `contrastive_i2v.losses` need torch alone.
"""

__version__ = "0.1.0"
