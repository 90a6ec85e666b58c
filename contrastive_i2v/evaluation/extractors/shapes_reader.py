"""Reads what a caption of the generated clips says off their frames: the shape, its colour, and where it moves.

A classifier for the clips of `data/shapes.py` alone, whose weights ship with the package (`shapes/README.md` has its
measured accuracy); `contrastive-i2v train --recipe shapes-reader` trains them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive_i2v.data.shapes import COLOURS, DIRECTIONS, SHAPES
from contrastive_i2v.evaluation.extractors.preparation import check_videos, in_chunks, stretch
from contrastive_i2v.evaluation.extractors.weights import describe_file, load_state_dict, read_state_dict
from contrastive_i2v.evaluation.results import Extractor

NAME = "shapes-reader"
WEIGHTS = Path(__file__).parent / "shapes" / "model.safetensors"
SIZE = 64
FRAME_RATE = 5.0
"""Of the pairs of frames that it was trained on."""
MOTIONS = (*DIRECTIONS, "still")
AT_ONCE = 32


class ShapesNetwork(nn.Module):
    """Two small convolutional networks: one looks at a frame, the other at two frames, 1/5 s apart.

    Their padding is circular, as the clips' frames are: a shape that leaves on one side and returns on the other is
    seen whole.
    """

    def __init__(self) -> None:
        super().__init__()
        self.appearance = _tower(3, len(SHAPES) + len(COLOURS))
        self.motion = _tower(6, len(MOTIONS))

    def forward(self, frames: Tensor, earlier: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of shapes `[N, 6]` and colours `[N, 8]` of `frames [N, 3, 64, 64]`, and of motions `[N, 5]` from
        `earlier` to them."""
        shape, colour = self.look(frames)
        return shape, colour, self.motion(torch.cat([earlier, frames], dim=1))

    def look(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of shapes and colours."""
        shape, colour = self.appearance(frames).split([len(SHAPES), len(COLOURS)], dim=1)
        return shape, colour


class ShapesReader:
    """Probabilities of shape, colour and motion, frame by frame.

    The lag of a motion is that of training, 1/5 s, to whole frames: `round(frame_rate / 5)`, at least 1.
    """

    def __init__(self, device: str | torch.device = "cpu", weights: Path = WEIGHTS) -> None:
        """Raises InputError where the weights are missing or don't fit."""
        self.device = torch.device(device)
        network = ShapesNetwork()
        state = {name: value.float() for name, value in read_state_dict(weights).items()}
        load_state_dict(network, state, weights)
        self.network = network.eval().to(self.device)
        self.about = Extractor(
            name=NAME,
            dimension=len(SHAPES) + len(COLOURS) + len(MOTIONS),
            weights=describe_file(weights),
            resize=f"antialiased bicubic to {SIZE} x {SIZE}, aspect not kept",
        )

    def __call__(self, videos: Tensor, frame_rate: float = FRAME_RATE) -> dict[str, Tensor]:
        """Read videos `[N, F, 3, H, W]` in [-1, 1].

        Returns:
            shape `[N, F, 6]`, colour `[N, F, 8]`, and motion `[N, F - lag, 5]`, of which row t is from frame t to frame
            t + lag: probabilities in the order of SHAPES, COLOURS and MOTIONS. F <= lag leaves motion empty.

        Raises:
            ValueError: another shape, or a NaN.
        """
        check_videos(videos)
        count, length = videos.shape[:2]
        lag = frames_apart(frame_rate)
        frames = videos.flatten(0, 1)
        if frames.shape[-2:] != (SIZE, SIZE):
            frames = in_chunks(lambda x: stretch(x, SIZE, SIZE), frames, limit=AT_ONCE, device=self.device)
        looked = in_chunks(self._look, frames, limit=AT_ONCE, device=self.device).reshape(count, length, -1)
        videos = frames.reshape(count, length, *frames.shape[1:])
        motion = torch.zeros(count, 0, len(MOTIONS))
        if length > lag:
            pairs = torch.cat([videos[:, :-lag], videos[:, lag:]], dim=2).flatten(0, 1)
            moved = in_chunks(lambda x: self.network.motion(x).softmax(dim=1), pairs, limit=AT_ONCE, device=self.device)
            motion = moved.reshape(count, length - lag, -1)
        return {"shape": looked[..., : len(SHAPES)], "colour": looked[..., len(SHAPES) :], "motion": motion}

    def _look(self, frames: Tensor) -> Tensor:
        return torch.cat([logits.softmax(dim=1) for logits in self.network.look(frames)], dim=1)


def frames_apart(frame_rate: float) -> int:
    """Frames between the two that a motion is read from."""
    return max(1, round(frame_rate / FRAME_RATE))


def _tower(channels: int, outputs: int) -> nn.Module:
    def block(before: int, after: int, stride: int) -> nn.Module:
        convolution = nn.Conv2d(before, after, 3, stride, padding=1, padding_mode="circular", bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())

    layers = [block(channels, 24, 2), block(24, 48, 2), block(48, 64, 1), block(64, 96, 2), block(96, 96, 1)]
    return nn.Sequential(*layers, MeanAndMost(), nn.Linear(2 * 96, outputs))


class MeanAndMost(nn.Module):
    """Mean and maximum over the places: `[N, C, h, w]` -> `[N, 2C]`."""

    def forward(self, maps: Tensor) -> Tensor:
        most = F.adaptive_max_pool2d(maps, 1).flatten(1)
        return torch.cat([maps.mean(dim=(2, 3)), most], dim=1)
