"""Inception against numbers that torch-fidelity 0.4.0's network gave for the same weights and images.

They were made once, by its FeatureExtractorInceptionV3 with features "2048" and "logits_unbiased", whose 566
parameter and buffer names are the names below; the real weights file can't be had offline.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.extractors.inception import Inception, resize_tensorflow
from contrastive_i2v.evaluation.extractors.inception_network import InceptionV3

# names and shapes as the public file has them
NAMES = {
    "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
    "Conv2d_4a_3x3.bn.running_var": (192,),
    "Mixed_5b.branch1x1.conv.weight": (64, 192, 1, 1),
    "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
    "Mixed_5d.branch_pool.conv.weight": (64, 288, 1, 1),
    "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
    "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
    "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
    "Mixed_6e.branch7x7dbl_2.conv.weight": (192, 192, 7, 1),
    "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
    "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
    "Mixed_7c.branch3x3dbl_3b.bn.bias": (384,),
    "fc.weight": (1008, 2048),
    "fc.bias": (1008,),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, fill_by_formula: Callable[[nn.Module], None]) -> Path:
    network = InceptionV3()
    fill_by_formula(network)
    path = tmp_path_factory.mktemp("inception") / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def extractor(weights: Path) -> Inception:
    return Inception(str(weights))


@pytest.fixture(scope="module")
def features(extractor: Inception) -> Tensor:
    return extractor(torch.stack([pattern(0), pattern(90)]))


def pattern(phase: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(40), torch.arange(56), indexing="ij")
    channels = [(5 * x + phase) % 256, (7 * y + 3 * phase) % 256, (x * y + 11 * phase) % 256]
    return torch.stack(channels).float() / 127.5 - 1


def test_the_names_are_those_of_the_public_weights() -> None:
    with torch.device("meta"):
        network = InceptionV3()
    state = network.state_dict()
    assert {name: tuple(state[name].shape) for name in NAMES} == NAMES
    assert len(state) == 566
    assert sum(value.numel() for value in network.parameters()) == 23_850_960


def test_features_are_torch_fidelitys(features: Tensor) -> None:
    expected = [
        [0.0725399, 1.4124826, 0.9923266, 1.3720640, 0.0361635, 2.1569231],
        [0.0540158, 1.4371266, 1.1036845, 1.3537529, 0.0417492, 2.0407758],
    ]
    assert features.shape == (2, 2048)
    torch.testing.assert_close(features[:, [0, 1, 3, 700, 1400, 2045]], torch.tensor(expected), atol=2e-5, rtol=2e-5)


def test_probabilities_are_torch_fidelitys(extractor: Inception, features: Tensor) -> None:
    probabilities = extractor.classify(features)
    top = probabilities.topk(3)
    assert top.indices.tolist() == [[572, 98, 479], [572, 98, 479]]
    expected = [[0.1076317, 0.0903276, 0.0608501], [0.1050035, 0.0785617, 0.0651664]]
    torch.testing.assert_close(top.values, torch.tensor(expected), atol=2e-6, rtol=2e-5)
    assert probabilities.shape == (2, 1008)
    alone = extractor.probabilities(pattern(90)[None])
    torch.testing.assert_close(alone, probabilities[1:], atol=1e-6, rtol=1e-4)


def test_the_resize_is_tensorflows() -> None:
    row = torch.tensor([0.0, 10.0]).view(1, 1, 1, 2)
    assert resize_tensorflow(row, 1, 4).flatten().tolist() == [0.0, 5.0, 10.0, 10.0]
    square = torch.tensor([[0.0, 4.0, 8.0], [30.0, 34.0, 38.0], [60.0, 64.0, 68.0]])[None, None]
    assert resize_tensorflow(square, 2, 2)[0, 0].tolist() == [[0.0, 6.0], [45.0, 51.0]]


def test_frames_are_rounded_to_8_bits_and_independent(extractor: Inception, features: Tensor) -> None:
    alone = extractor(pattern(0)[None] + 0.4 / 127.5)
    torch.testing.assert_close(alone, features[:1], atol=1e-5, rtol=1e-4)
    assert alone.dtype == torch.float32 and not alone.requires_grad


def test_it_says_what_it_is(extractor: Inception) -> None:
    about = extractor.about
    assert (about.name, about.dimension, about.stands_in_for) == ("inception", 2048, "")
    assert about.weights.startswith("pt_inception-2015-12-05-6726825d.pth, sha256 ")
    assert "TensorFlow" in about.resize and "299" in about.resize


def test_the_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth: doesn't fit InceptionV3: it lacks Conv2d_1a_3x3\.conv\.weight"):
        Inception(str(tmp_path / "other.pth"))
