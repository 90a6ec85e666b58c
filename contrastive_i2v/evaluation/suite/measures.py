"""What is looked at in a batch of videos, and kept on disk: pixels, motion, and the features of each network.

A measure maps videos `[B, F, 3, H, W]` in [-1, 1], the true ones of the same clips and their captions to tensors with a
leading B. It knows nothing of metrics, which come from what it kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from contrastive_i2v.evaluation.extractors.base import (
    Classifier,
    FlowExtractor,
    ImageExtractor,
    TextImageExtractor,
    VideoExtractor,
)
from contrastive_i2v.evaluation.extractors.preparation import (
    VBENCH_BACKGROUND,
    VBENCH_I2V_BACKGROUND,
    VBENCH_I2V_SUBJECT,
    VBENCH_SUBJECT,
    ResizableNetwork,
)
from contrastive_i2v.evaluation.extractors.shapes_reader import ShapesReader
from contrastive_i2v.evaluation.fidelity import lpips, psnr, ssim
from contrastive_i2v.evaluation.frames import frame_mse, motion
from contrastive_i2v.evaluation.results import Extractor
from contrastive_i2v.evaluation.spectra import spatial_high_share, temporal_high_share
from contrastive_i2v.evaluation.temporal import flicker_by_frame, is_dynamic, pixel_coherence
from contrastive_i2v.files import digest


class LatentEncoder(Protocol):
    """Frames to latents, as a model's VAE does it."""

    about: Extractor

    def __call__(self, frames: Tensor) -> Tensor:
        """`[N, 3, H, W]` in [-1, 1] -> `[N, C, h, w]`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The networks of an evaluation; a metric whose network is None is left out."""

    image: ImageExtractor | None = None
    """FID, KID and, where it classifies, the Inception Score; the subject's consistency unless `subject` is there."""
    subject: ImageExtractor | None = None
    """Subject consistency and I2V subject, DINO by the benchmark's definition."""
    i2v_background: ImageExtractor | None = None
    """I2V background, DreamSim by the benchmark's definition; else `clip`, or `image`."""
    video: VideoExtractor | None = None
    clip: TextImageExtractor | None = None
    flow: FlowExtractor | None = None
    latents: LatentEncoder | None = None
    shapes: ShapesReader | None = None
    """Whether captions hold, on the generated clips of shapes."""
    lpips: Any = None
    """An `lpips.LPIPS` module."""


@dataclass(frozen=True)
class Measure:
    """One look at videos, and the name of the folder that keeps what it saw."""

    key: str
    compute: Callable[[Tensor, Tensor, Sequence[str]], Mapping[str, Tensor]]
    against_truth: bool = False
    """Compares with the true videos, so it has nothing to say of these themselves."""
    finite: bool = True
    """Whether infinity is a fault; it isn't in a PSNR."""
    extractor: str = ""
    """Key into Report.extractors."""


def build_measures(networks: Networks, *, frame_rate: float) -> dict[str, Measure]:
    """The measures that these networks allow, by role; dynamic degree and the shapes' motion need the frames' rate."""
    measures = {
        "motion": Measure("motion-1", _motion),
        "spectra": Measure("spectra-1", _spectra),
        "fidelity": Measure("fidelity-2", _fidelity, against_truth=True, finite=False),
    }
    if networks.lpips is not None:
        network = networks.lpips
        measures["lpips"] = Measure("lpips-1", lambda v, t, p: {"distance": lpips(v, t, network)}, against_truth=True)
    computes: dict[str, Callable[..., Mapping[str, Tensor]]] = {
        "clip": _clip,
        "video": _video,
        "flow": partial(_flow, frame_rate),
        "latents": _latents,
        "shapes": partial(_shapes, frame_rate),
    }
    for role, network in networks_by_role(networks).items():
        key = network_key(role, network.about) + f"-{frame_rate:g}" * (role in ("flow", "shapes"))
        measures[role] = Measure(key, partial(computes.get(role, _image), network), extractor=network.about.name)
    return measures


def networks_by_role(networks: Networks) -> dict[str, Any]:
    """The networks that are there, by the role of their measure.

    VBench resizes frames in another way for each of its consistencies. A network that can be run with another rule
    (DINO, CLIP) has a role for each, "subject", "background", "i2v_subject" and "i2v_background"; with any other these
    metrics read the features that are there under "subject", "clip" or "image".
    """
    roles = ("image", "subject", "clip", "video", "flow", "latents", "shapes")
    given = {role: getattr(networks, role) for role in roles}
    subject, background = networks.subject or networks.image, networks.clip or networks.image
    if isinstance(subject, ResizableNetwork):
        given["subject"] = subject.resized(VBENCH_SUBJECT)
        given["i2v_subject"] = subject.resized(VBENCH_I2V_SUBJECT)
    if isinstance(background, ResizableNetwork):
        given["background"] = background.resized(VBENCH_BACKGROUND)
        given["i2v_background"] = background.resized(VBENCH_I2V_BACKGROUND)
    given["i2v_background"] = networks.i2v_background or given.get("i2v_background")
    return {role: network for role, network in given.items() if network is not None}


def network_key(role: str, about: Extractor) -> str:
    """A folder name that changes with the role, the network's weights and what it does to frames."""
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in about.name)
    return f"{role}-{name}-{digest([about.name, about.weights, about.resize, about.dimension])[:8]}"


def _motion(videos: Tensor, truth: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    return {
        "flicker": flicker_by_frame(videos),  # [B, F - 1]
        "pixel_coherence": pixel_coherence(videos),  # [B, F - 1]
        "motion": motion(videos),  # [B]
    }


def _spectra(videos: Tensor, truth: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    return {"spatial": spatial_high_share(videos), "temporal": temporal_high_share(videos)}  # [B, F], [B]


def _fidelity(videos: Tensor, truth: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    return {"mse": frame_mse(videos, truth), "psnr": psnr(videos, truth), "ssim": ssim(videos, truth)}  # [B, F] each


def _image(network: ImageExtractor, videos: Tensor, truth: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    found = {"features": _by_frame(network, videos)}
    if isinstance(network, Classifier):
        found["probabilities"] = _by_frame(network.classify, found["features"])
    return found


def _clip(network: TextImageExtractor, videos: Tensor, truth: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    return {"features": _by_frame(network, videos), "text": network.text(prompts)}


def _video(network: VideoExtractor, videos: Tensor, truth: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    return {"features": network(videos)}


def _flow(
    fps: float, network: FlowExtractor, videos: Tensor, truth: Tensor, prompts: Sequence[str]
) -> dict[str, Tensor]:
    found = [is_dynamic(video, partial(_distinct, network), fps) for video in videos]
    return {
        "dynamic": torch.tensor([one.dynamic for one in found], dtype=torch.float64),
        "magnitudes": torch.tensor([one.magnitudes for one in found], dtype=torch.float64),  # [B, pairs]
    }


def _latents(encode: LatentEncoder, videos: Tensor, truth: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    return {"latents": _by_frame(encode, videos)}


def _shapes(
    fps: float, reader: ShapesReader, videos: Tensor, truth: Tensor, prompts: Sequence[str]
) -> dict[str, Tensor]:
    return reader(videos, fps)


def _by_frame(network: Callable[[Tensor], Tensor], videos: Tensor) -> Tensor:
    """`[B, F, ...]` -> `[B, F, ...]`."""
    found = _distinct(network, videos.flatten(0, 1))
    return found.reshape(*videos.shape[:2], *found.shape[1:])


def _distinct(network: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`network(*inputs)` over rows, of which equal ones, as a still video has, go through it once."""
    places: dict[tuple[bytes, ...], int] = {}
    rows = zip(*inputs, strict=True)
    place = torch.tensor([places.setdefault(tuple(x.numpy().tobytes() for x in row), len(places)) for row in rows])
    first = torch.tensor([int((place == index).nonzero()[0]) for index in range(len(places))])
    return network(*(x[first] for x in inputs))[place]
