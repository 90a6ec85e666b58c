from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.extractors.dino import DINO
from contrastive_i2v.evaluation.extractors.preparation import VBENCH_SUBJECT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of 16-d tokens with random weights; with a pooler, as facebook/dino-vitb16 has."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=4
    )
    path = tmp_path_factory.mktemp("dino")
    ViTModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def extractor(folder: Path) -> DINO:
    return DINO(str(folder))


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_feature_is_the_class_token(extractor: DINO, folder: Path) -> None:
    from transformers import ViTModel

    frames = noise(2, 3, 16, 16)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        pixels = ((frames + 1) / 2 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        expected = ViTModel.from_pretrained(folder).eval()(pixel_values=pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(extractor(frames), expected, atol=1e-5, rtol=1e-4)


def test_only_the_central_square_is_seen(extractor: DINO) -> None:
    tall = noise(1, 3, 40, 16)
    torch.testing.assert_close(extractor(tall), extractor(tall[..., 12:28, :]))


def test_vbench_sees_the_whole_frame_and_places_patches_as_the_authors_do(extractor: DINO, folder: Path) -> None:
    """16 x 26: 4 x 6 patches, the last two columns of pixels unseen; positions from a 4 x 4 grid."""
    from transformers import ViTModel

    wide = (noise(1, 3, 16, 26) * 127.5).round() / 127.5
    found = extractor.resized(VBENCH_SUBJECT)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    network = ViTModel.from_pretrained(folder).eval()
    grid = network.embeddings.position_embeddings[:, 1:].reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, scale_factor=(4.1 / 4, 6.1 / 4), mode="bicubic")
    positions = torch.cat(
        [network.embeddings.position_embeddings[:, :1], grid.permute(0, 2, 3, 1).reshape(1, 24, 16)], dim=1
    )
    with torch.no_grad():
        pixels = ((wide + 1) / 2 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        patches = network.embeddings.patch_embeddings(pixels)  # [1, 24, 16]
        tokens = torch.cat([network.embeddings.cls_token, patches], dim=1) + positions
        expected = network.layernorm(_through(network, tokens))[:, 0]
    torch.testing.assert_close(found(wide), expected, atol=1e-5, rtol=1e-4)
    assert (extractor.about.name, found.about.name) == ("dino", "dino, VBench subject")
    assert found.about.resize == VBENCH_SUBJECT.describe(16) and found.network is extractor.network
    assert float((extractor(wide) - found(wide)).abs().max()) > 1e-3


def _through(network: torch.nn.Module, tokens: Tensor) -> Tensor:
    """The layers of a transformers ViT, before or after version 5."""
    layers = network.encoder.layer if hasattr(network, "encoder") else network.layers
    for layer in layers:  # type: ignore[union-attr]
        tokens = layer(tokens)
        tokens = tokens[0] if isinstance(tokens, tuple) else tokens
    return tokens


def test_neither_chunks_nor_order_matter(extractor: DINO) -> None:
    frames = noise(9, 3, 24, 24)
    together = extractor(frames)
    assert torch.equal(together, extractor(frames))
    alone = torch.cat([extractor(frame[None]) for frame in frames.flip(0)]).flip(0)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert together.dtype == torch.float32 and not together.requires_grad


def test_it_says_what_it_is(extractor: DINO, folder: Path) -> None:
    assert (extractor.about.name, extractor.about.dimension) == ("dino", 16)
    assert extractor.about.weights.startswith(f"{folder.name}, sha256 ")


def test_another_kind_of_model_is_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="its weights lack"):
        DINO(str(tmp_path))
