"""DreamSim's place, held by made-up networks: its weights are in no package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.extractors.dreamsim import DreamSim
from contrastive_i2v.evaluation.extractors.loading import load_background
from contrastive_i2v.evaluation.extractors.preparation import VBENCH_I2V_BACKGROUND
from contrastive_i2v.evaluation.suite.measures import Networks, networks_by_role


class Embed(nn.Module):
    """As the package's `embed`: features, squeezed, less their mean, of unit length; it takes two frames or more."""

    def forward(self, pixels: Tensor) -> Tensor:
        features = pixels[:, :, ::56, ::56].flatten(1).squeeze()
        centred = (features.T - features.mean(dim=1)).T
        return (centred.T / centred.norm(dim=1)).T


class OneNumber(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.mean()


class Picky(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 2, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.stem(pixels)


def saved(network: nn.Module, path: Path) -> str:
    """By tracing, as the docstring says, where the network runs."""
    size = (2, 3, 224, 224)
    made = torch.jit.script(network) if isinstance(network, Picky) else torch.jit.trace(network, torch.rand(size))
    made.save(str(path))
    return str(path)


def test_features_are_those_of_the_file_behind_vbenchs_rule(tmp_path: Path) -> None:
    network = load_background(f"dreamsim:{saved(Embed(), tmp_path / 'embed.pt')}")
    frames = torch.rand(5, 3, 20, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = Embed()((VBENCH_I2V_BACKGROUND(frames, 224) + 1) / 2)
    torch.testing.assert_close(network(frames), expected)
    torch.testing.assert_close(network(frames[:1]), expected[:1])  # alone, too
    assert network.about.name == "dreamsim, VBench I2V background" and network.about.dimension == 48
    assert "embed.pt, sha256" in network.about.weights and "not known to hold" in network.about.stands_in_for
    roles = networks_by_role(Networks(image=DreamSim(str(tmp_path / "embed.pt")), i2v_background=network))
    assert roles["i2v_background"] is network


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no network")
    for name, said in (
        ("nothing.pt", "nothing.pt does not exist; expected a TorchScript file"),
        ("text.pt", "not readable as TorchScript"),
        (Path(saved(OneNumber(), tmp_path / "one.pt")).name, r"one.pt: gave \[\] of 2 frames; expected"),
        (Path(saved(Picky(), tmp_path / "picky.pt")).name, r"picky.pt: could not be run as DreamSim \(.*4"),
    ):
        with pytest.raises(InputError, match=said):
            load_background(f"dreamsim:{tmp_path / name}")
    with pytest.raises(InputError, match="I2V background extractor 'dreamsim' doesn't say where its weights are"):
        load_background("dreamsim")
