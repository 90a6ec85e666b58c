from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.extractors.raft import RAFT


class Stub(nn.Module):
    """The call of torchvision's RAFT: a list of flows, the last about the frames' size and difference."""

    def forward(self, image1: Tensor, image2: Tensor, num_flow_updates: int = 12) -> list[Tensor]:
        count, _, height, width = image1.shape
        flow = torch.zeros(count, 2, height, width)
        flow[:, 0] = width
        flow[:, 1] = height * (image2 - image1).mean(dim=[1, 2, 3])[:, None, None]
        return [torch.full_like(flow, 999.0), flow]


class PositionStub(nn.Module):
    """One flow: at each pixel, its own position."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        height, width = first.shape[-2:]
        x = torch.arange(width, dtype=torch.float32).expand(first.shape[0], height, width)
        y = torch.arange(height, dtype=torch.float32)[:, None].expand(first.shape[0], height, width)
        return torch.stack([x, y], dim=1)


def script(tmp_path: Path, module: nn.Module) -> str:
    path = tmp_path / "raft.pt"
    torch.jit.script(module).save(str(path))
    return str(path)


def test_the_last_flow_counts_and_small_frames_are_enlarged(tmp_path: Path) -> None:
    frames = torch.zeros(3, 3, 64, 80)
    second = torch.stack([torch.full((3, 64, 80), value) for value in (0.0, 0.5, 1.0)])
    flow = RAFT(script(tmp_path, Stub()))(frames, second)
    assert flow.shape == (3, 2, 64, 80)
    assert flow[:, 0].unique().tolist() == [80.0]  # the network saw 2 x 80, and the flow is halved
    torch.testing.assert_close(flow[:, 1].mean(dim=(1, 2)), torch.tensor([0.0, 32.0, 64.0]))


def test_padding_comes_at_the_end_and_goes_again(tmp_path: Path) -> None:
    flow = RAFT(script(tmp_path, PositionStub()))(torch.zeros(1, 3, 130, 141), torch.zeros(1, 3, 130, 141))
    assert flow.shape == (1, 2, 130, 141)
    assert flow[0, 0, 0].tolist() == list(range(141))
    assert flow[0, 1, :, 0].tolist() == list(range(130))
    seen = RAFT(script(tmp_path, Stub()))(torch.zeros(1, 3, 130, 141), torch.zeros(1, 3, 130, 141))
    assert float(seen[0, 0, 0, 0]) == 144  # the next multiple of 8


def test_the_average_flow_of_an_enlarged_pixel(tmp_path: Path) -> None:
    flow = RAFT(script(tmp_path, PositionStub()))(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))
    expected = (torch.arange(32) * 4 + 1.5) / 4  # four enlarged pixels 4 i .. 4 i + 3
    torch.testing.assert_close(flow[0, 0, 5], expected)


def test_it_says_what_it_is(tmp_path: Path) -> None:
    about = RAFT(script(tmp_path, Stub())).about
    assert (about.name, about.dimension, about.stands_in_for) == ("raft", 2, "")
    assert about.weights.startswith("raft.pt, sha256 ")


def test_a_script_that_gives_no_flow_is_refused(tmp_path: Path) -> None:
    class Wrong(nn.Module):
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return first

    with pytest.raises(InputError, match=r"gave \[1, 3, 128, 128\] in place of a flow \[1, 2, 128, 128\]"):
        RAFT(script(tmp_path, Wrong()))(torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 128, 128))


def test_a_script_with_another_call_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be run as RAFT"):
        RAFT(script(tmp_path, nn.ReLU()))(torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 128, 128))


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_a_state_dict_without_torchvision_says_what_else_is_accepted(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "raft_large.pth")
    with pytest.raises(InputError, match="needs the module torchvision.*or pass a TorchScript file"):
        RAFT(str(tmp_path / "raft_large.pth"))


def test_frames_of_two_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="first, second: expected one shape"):
        RAFT(script(tmp_path, Stub()))(torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 128, 136))
