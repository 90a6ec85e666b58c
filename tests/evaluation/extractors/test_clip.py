from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.extractors import clip
from contrastive_i2v.evaluation.extractors.clip import CLIP
from contrastive_i2v.evaluation.extractors.preparation import VBENCH_BACKGROUND


@pytest.fixture(scope="module")
def extractor(clip_folder: Path) -> CLIP:
    return CLIP(str(clip_folder))


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_image_embedding_is_the_projected_class_token(extractor: CLIP) -> None:
    frames = noise(2, 3, 16, 16)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    network = extractor.network
    with torch.no_grad():
        hidden = network.vision_model((((frames + 1) / 2) - mean) / std).last_hidden_state
        expected = network.visual_projection(network.vision_model.post_layernorm(hidden[:, 0]))
    torch.testing.assert_close(extractor(frames), expected, atol=1e-5, rtol=1e-4)


def test_the_text_embedding_is_the_projected_end_token(extractor: CLIP) -> None:
    network = extractor.network
    ids = [0, 2 + 2 * 2 + 1, 1]  # start, "c</w>", end: two tokens a letter, after the two special ones
    with torch.no_grad():
        hidden = network.text_model(torch.tensor([ids])).last_hidden_state  # [1, 3, 16], normed
        expected = network.text_projection(hidden[:, 2])
    torch.testing.assert_close(extractor.text(["c"]), expected, atol=1e-5, rtol=1e-4)


def test_padding_and_chunks_of_texts_do_not_matter(extractor: CLIP) -> None:
    texts = [letter * count for letter in "abcdefghijklmnopqrstuvwxyz" for count in (1, 2, 5)]
    together = extractor.text(texts)
    assert together.shape == (78, 12)
    alone = torch.cat([extractor.text([text]) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert float((together[0] - together[1]).abs().max()) > 1e-3


def test_a_text_over_the_limit_is_cut(extractor: CLIP) -> None:
    torch.testing.assert_close(extractor.text(["a" * 9]), extractor.text(["a" * 50]))


def test_only_the_central_square_is_seen(extractor: CLIP) -> None:
    wide = noise(1, 3, 16, 40)
    torch.testing.assert_close(extractor(wide), extractor(wide[..., 12:28]))


def test_one_network_behind_two_resize_rules(extractor: CLIP) -> None:
    wide = noise(2, 3, 24, 60)
    other = extractor.resized(VBENCH_BACKGROUND)
    torch.testing.assert_close(other(wide), extractor(VBENCH_BACKGROUND(wide, 16)))
    assert float((other(wide) - extractor(wide)).abs().max()) > 1e-4
    assert other.network is extractor.network and other.about.weights == extractor.about.weights
    assert (extractor.about.name, other.about.name) == ("clip", "clip, VBench background")
    assert other.about.resize == "shorter side to 16 by bicubic, no antialias, then the central square of 16"


def test_neither_chunks_nor_order_matter(extractor: CLIP) -> None:
    frames = noise(9, 3, 24, 24)
    together = extractor(frames)
    assert torch.equal(together, extractor(frames))
    alone = torch.cat([extractor(frame[None]) for frame in frames.flip(0)]).flip(0)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert together.dtype == torch.float32 and not together.requires_grad


def test_both_return_types_of_transformers() -> None:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    embedding = torch.ones(1, 2)
    assert clip._projected(embedding) is embedding
    assert clip._projected(BaseModelOutputWithPooling(pooler_output=embedding)) is embedding


def test_it_says_what_it_is(extractor: CLIP, clip_folder: Path) -> None:
    import hashlib

    digest = hashlib.sha256((clip_folder / "model.safetensors").read_bytes()).hexdigest()[:12]
    assert (extractor.about.name, extractor.about.dimension) == ("clip", 12)
    assert extractor.about.weights == f"{clip_folder.name}, sha256 {digest}"
    assert extractor.about.resize.startswith("shorter side to 16")


def test_missing_weights_are_not_made_up(clip_folder: Path, tmp_path: Path) -> None:
    for file in clip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(clip_folder / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 parameters .* visual_projection\.weight"):
        CLIP(str(tmp_path))


def test_a_folder_without_a_tokenizer(clip_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((clip_folder / name).read_bytes())
    with pytest.raises(InputError, match="no tokenizer; expected tokenizer.json or"):
        CLIP(str(tmp_path))


def test_a_wrong_shape_is_refused(extractor: CLIP) -> None:
    with pytest.raises(ValueError, match=r"frames: expected \[N, 3, H, W\]"):
        extractor(torch.zeros(1, 2, 3, 16, 16))


def test_it_is_frozen_in_eval_mode(extractor: CLIP) -> None:
    assert isinstance(extractor.network, nn.Module) and not extractor.network.training
