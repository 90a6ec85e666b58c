from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.extractors import raft as raft_module
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

    def forward(self, first: Tensor, second: Tensor, num_flow_updates: int = 12) -> Tensor:
        height, width = first.shape[-2:]
        x = torch.arange(width, dtype=torch.float32).expand(first.shape[0], height, width)
        y = torch.arange(height, dtype=torch.float32)[:, None].expand(first.shape[0], height, width)
        return torch.stack([x, y], dim=1)


class Refiner(nn.Module):
    """RAFT's call and loop: each iteration changes the flow by a convolution of it and the frames."""

    def __init__(self) -> None:
        super().__init__()
        self.update = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, image1: Tensor, image2: Tensor, num_flow_updates: int = 12) -> list[Tensor]:
        flow = torch.zeros_like(image1[:, :2])
        flows: list[Tensor] = []
        for _ in range(num_flow_updates):
            flow = flow + 0.1 * self.update(torch.cat([image1, image2, flow], dim=1))
            flows.append(flow)
        return flows


class Picky(nn.Module):
    """Takes the iterations, but frames of four channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 2, 1)

    def forward(self, first: Tensor, second: Tensor, num_flow_updates: int = 12) -> Tensor:
        return self.stem(first)


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> list[Refiner]:
    """In the place of torchvision, whose raft_large is a `Refiner`; those it made."""
    made: list[Refiner] = []

    def raft_large(weights: None) -> Refiner:
        made.append(Refiner())
        return made[-1]

    flows = ModuleType("torchvision.models.optical_flow")
    flows.raft_large = raft_large  # type: ignore[attr-defined]
    for name in ("torchvision", "torchvision.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, flows.__name__, flows)
    return made


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
    assert (about.name, about.dimension) == ("raft", 2)
    assert about.weights.startswith("raft.pt, sha256 ") and about.weights.endswith(", 20 iterations")
    assert about.stands_in_for == "RAFT raft_large_C_T_V1, which its file is not known to hold"


def random_refiner() -> Refiner:
    torch.manual_seed(0)
    return Refiner()


def pictures() -> tuple[Tensor, Tensor]:
    first, second = torch.rand(2, 1, 3, 128, 128, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return first, second


def test_twenty_iterations_reach_a_script_with_random_weights(tmp_path: Path) -> None:
    network, (first, second) = random_refiner(), pictures()
    with torch.no_grad():
        after = {count: network(first, second, num_flow_updates=count)[-1] for count in (12, 20)}
    flow = RAFT(script(tmp_path, network))(first, second)
    torch.testing.assert_close(flow, after[20])
    assert float((flow - after[12]).abs().max()) > 1e-3


def test_twenty_iterations_reach_a_state_dict_with_random_weights(tmp_path: Path, torchvision: list[Refiner]) -> None:
    network, (first, second) = random_refiner(), pictures()
    torch.save(network.state_dict(), tmp_path / "raft_large.pth")
    raft = RAFT(str(tmp_path / "raft_large.pth"))
    assert len(torchvision) == 1 and raft.network is torchvision[0]
    with torch.no_grad():
        torch.testing.assert_close(raft(first, second), network(first, second, num_flow_updates=20)[-1])
    assert raft.about.stands_in_for == "RAFT raft_large_C_T_V1, which its file is not known to hold"


def test_the_weights_of_the_published_numbers_are_known_and_others_refused(
    tmp_path: Path, torchvision: list[Refiner], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "raft_large.pth"
    torch.save(random_refiner().state_dict(), file)
    monkeypatch.setattr(raft_module, "file_hash", lambda path: "22a6c225" + 56 * "0")
    assert RAFT(str(file)).about.stands_in_for == ""
    monkeypatch.setattr(raft_module, "file_hash", lambda path: "ff5fadd5" + 56 * "0")
    with pytest.raises(InputError, match="holds raft_large_C_T_SKHT_V2, whose flow is another; expected .*C_T_V1"):
        RAFT(str(file))


def test_a_state_dict_of_another_network_is_refused(tmp_path: Path, torchvision: list[Refiner]) -> None:
    torch.save(nn.Conv2d(3, 3, 3).state_dict(), tmp_path / "raft_small.pth")
    with pytest.raises(InputError, match="doesn't fit Refiner"):
        RAFT(str(tmp_path / "raft_small.pth"))


def test_a_script_that_gives_no_flow_is_refused(tmp_path: Path) -> None:
    class Wrong(nn.Module):
        def forward(self, first: Tensor, second: Tensor, num_flow_updates: int = 12) -> Tensor:
            return first

    with pytest.raises(InputError, match=r"gave \[1, 3, 128, 128\] in place of a flow \[1, 2, 128, 128\]"):
        RAFT(script(tmp_path, Wrong()))(torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 128, 128))


def test_a_script_with_another_call_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takes no num_flow_updates, so it can't be run with 20 iterations"):
        RAFT(script(tmp_path, nn.ReLU()))
    source = script(tmp_path, Picky())
    with pytest.raises(InputError, match="could not be run as RAFT"):
        RAFT(source)(torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 128, 128))


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_a_state_dict_without_torchvision_says_what_else_is_accepted(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "raft_large.pth")
    with pytest.raises(InputError, match="needs the module torchvision.*or pass a TorchScript file"):
        RAFT(str(tmp_path / "raft_large.pth"))


def test_frames_of_two_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="first, second: expected one shape"):
        RAFT(script(tmp_path, Stub()))(torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 128, 136))
