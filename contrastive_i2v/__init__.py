"""Contrastive fine-tuning of latent diffusion models: a still image and a sentence become a coherent video.

Nothing heavy is imported here, so `contrastive_i2v.ops` and `contrastive_i2v.losses` need torch alone.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from contrastive_i2v.pipeline import ImageToVideoPipeline, export_to_video

__all__ = ["ImageToVideoPipeline", "__version__", "export_to_video"]


def __getattr__(name: str) -> Any:
    if name in ("ImageToVideoPipeline", "export_to_video"):
        from contrastive_i2v import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
