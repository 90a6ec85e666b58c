"""A moved crop of a still image: the coarse video that FrameInit makes a camera move from."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from contrastive_i2v.data.video import resize_frames
from contrastive_i2v.errors import InputError
from contrastive_i2v.system import Size

Camera = Literal["pan-left", "pan-right", "zoom-in", "zoom-out"]
ZOOM = 2.0
"""From the widest crop to the narrowest."""


def move_camera(image: Tensor, camera: Camera, *, frames: int, size: Size) -> Tensor:
    """Crops of one shape, the size's, that move evenly over the image.

    A pan goes from one end of the image to the other at its full height; a zoom goes between the largest crop and one
    of half its sides, in the middle.

    Args:
        image: uint8 [1, 3, H, W].
        frames: at least 1.
        size: (height, width) of the result.

    Returns:
        [frames, 3, height, width] in [-1, 1].

    Raises:
        InputError: an image no wider than the crop, for a pan.
    """
    height, width = image.shape[-2:]
    scale = min(height / size[0], width / size[1])
    tall, wide = scale * size[0], scale * size[1]  # the largest crop
    if camera.startswith("pan") and width - wide < 1:
        raise InputError(
            f"camera {camera}: the image is {width}x{height}, and a frame of {size[1]}x{size[0]} has its whole width; "
            "expected a wider image, to move over"
        )
    crops = []
    for place in torch.linspace(0, 1, frames).tolist() if frames > 1 else [0.0]:
        along = place if camera in ("pan-right", "zoom-in") else 1 - place
        part = 1.0 if camera.startswith("pan") else ZOOM**-along
        crop_height, crop_width = max(1, round(part * tall)), max(1, round(part * wide))
        top = (height - crop_height) // 2
        left = round(along * (width - crop_width)) if camera.startswith("pan") else (width - crop_width) // 2
        crops.append(resize_frames(image[..., top : top + crop_height, left : left + crop_width], size))
    return torch.cat(crops)
