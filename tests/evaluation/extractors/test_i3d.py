from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.extractors.i3d import I3D


class Stub(nn.Module):
    """The call of StyleGAN-V's file; the first features say what came in."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.dimension = dimension

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        features = torch.zeros(x.shape[0], self.dimension)
        if rescale and resize and return_features:
            pixels = x / 255 * 2 - 1
            features[:, 0] = pixels.mean(dim=[1, 2, 3, 4])
            features[:, 1] = x.shape[2]
            features[:, 2] = pixels[:, :, 0].mean(dim=[1, 2, 3])
            features[:, 3] = pixels[:, 2].mean(dim=[1, 2, 3])
            features[:, 4] = x.shape[0]
        return features


def script(tmp_path: Path, module: nn.Module) -> str:
    path = tmp_path / "i3d_torchscript.pt"
    torch.jit.script(module).save(str(path))
    return str(path)


def test_the_file_gets_what_it_expects(tmp_path: Path) -> None:
    videos = torch.full((2, 12, 3, 4, 6), -1.0)
    videos[0, :, 2] = 1  # blue
    videos[1, 0] = 1  # the first frame
    features = I3D(script(tmp_path, Stub(400)))(videos)
    torch.testing.assert_close(features[:, 0], torch.tensor([-1 + 2 / 3, -1 + 2 / 12]))
    assert features[:, 1].tolist() == [12, 12]
    torch.testing.assert_close(features[:, 2], torch.tensor([-1 + 2 / 3, 1.0]))
    torch.testing.assert_close(features[:, 3], torch.tensor([1.0, -1 + 2 / 12]))
    assert features.dtype == torch.float32 and not features.requires_grad


def test_pixels_are_rounded_to_8_bits(tmp_path: Path) -> None:
    features = I3D(script(tmp_path, Stub(400)))(torch.full((1, 10, 3, 4, 4), 0.4 / 127.5))
    torch.testing.assert_close(features[0, 0], torch.tensor(128 / 127.5 - 1))


def test_chunks_hold_few_frames_and_keep_the_order(tmp_path: Path) -> None:
    videos = torch.linspace(-1, 1, 5).view(5, 1, 1, 1, 1).expand(5, 30, 3, 4, 4)
    features = I3D(script(tmp_path, Stub(400)))(videos)
    assert features[:, 4].tolist() == [2, 2, 2, 2, 1]  # 64 frames at once on a CPU
    assert bool((features[:, 0].diff() > 0.4).all())


def test_it_says_what_it_is(tmp_path: Path) -> None:
    about = I3D(script(tmp_path, Stub(400))).about
    assert (about.name, about.dimension, about.stands_in_for) == ("i3d", 400, "")
    assert about.weights.startswith("i3d_torchscript.pt, sha256 ")


def test_nine_frames_are_too_few(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"F >= 10, got \[1, 9, 3, 8, 8\]"):
        I3D(script(tmp_path, Stub(400)))(torch.zeros(1, 9, 3, 8, 8))


def test_a_file_with_other_features_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gave \[1, 7\] for 1 videos; expected i3d_torchscript\.pt"):
        I3D(script(tmp_path, Stub(7)))(torch.zeros(1, 10, 3, 8, 8))


def test_a_file_with_another_call_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be run as I3D"):
        I3D(script(tmp_path, nn.ReLU()))(torch.zeros(1, 10, 3, 8, 8))


def test_a_file_that_is_not_torchscript_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=r"weights\.pt: not readable as TorchScript"):
        I3D(str(tmp_path / "weights.pt"))
