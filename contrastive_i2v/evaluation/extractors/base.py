"""What metrics ask of a network. An extractor is any object with these members; the ones we know are in `loading.py`.

Frames are float `[N, 3, H, W]` in [-1, 1] at any size: an extractor resizes for itself, and `about.resize` says how.
All run without gradients, in eval mode, on the device of their weights, and return float32 on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from contrastive_i2v.evaluation.results import Extractor


class ImageExtractor(Protocol):
    """One feature vector a frame."""

    about: Extractor

    def __call__(self, frames: Tensor) -> Tensor:
        """`[N, 3, H, W]` -> `[N, d]`."""
        ...


@runtime_checkable
class Classifier(ImageExtractor, Protocol):
    """An image extractor with a classification head, as the Inception Score needs."""

    def classify(self, features: Tensor) -> Tensor:
        """`[N, d]` of this extractor -> `[N, classes]`, rows summing to 1."""
        ...


class TextImageExtractor(ImageExtractor, Protocol):
    """Images and texts in one space (CLIP); not normalised."""

    def text(self, prompts: Sequence[str]) -> Tensor:
        """N prompts -> `[N, d]`."""
        ...


class VideoExtractor(Protocol):
    """One feature vector a video."""

    about: Extractor

    def __call__(self, videos: Tensor) -> Tensor:
        """`[N, F, 3, H, W]` -> `[N, d]`."""
        ...


class TextExtractor(Protocol):
    """One feature vector a text; not normalised."""

    about: Extractor

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """N texts -> `[N, d]`."""
        ...


class FlowExtractor(Protocol):
    """Optical flow between two frames."""

    about: Extractor

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Two `[N, 3, H, W]` -> displacement in pixels `[N, 2, H, W]` (x, y), from first to second."""
        ...
