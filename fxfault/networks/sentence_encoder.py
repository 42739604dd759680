"""all-MiniLM-L6-v2, a trained sentence encoder, quantised after training by Brevitas."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fxfault.data.torchvision_import import import_torchvision
from fxfault.networks.post_training import calibrate, check_width
from fxfault.networks.sentences import TOPICS, Sentences, packages


def quantised(weight_bit_width: int = 8, act_bit_width: int = 8) -> nn.Module:
    """The encoder of `pretrained` with the 36 linear layers of its blocks quantised.

    Each layer quantises its input, its weights (a scale for each output feature) and its bias.
    Embeddings, softmax, LayerNorm, GELU and the sums stay in floating point. It is calibrated on
    24 sentences (`fxfault.networks.sentences`).

    Args:
        weight_bit_width: bits of every weight, 2 to 8.
        act_bit_width: bits of the input of every linear layer, 2 to 8.
    """
    check_width("weight_bit_width", weight_bit_width)
    check_width("act_bit_width", act_bit_width)
    encoder = pretrained()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Brevitas calls its own graph package deprecated.
        from brevitas.graph import quantize as flow
        from brevitas.quant import Int8WeightPerChannelFloat

        layer, options = flow.LAYERWISE_COMPUTE_LAYER_MAP[nn.Linear]  # type: ignore[misc]
        widths = {
            "weight_quant": Int8WeightPerChannelFloat,
            "weight_bit_width": weight_bit_width,
            "input_bit_width": act_bit_width,
        }
        layers = {nn.Linear: (layer, {**options, **widths})}
        encoder.network.encoder = flow.layerwise_quantize(encoder.network.encoder, layers)
        return calibrate(encoder.eval(), [Sentences("train").tokens])


def topics(weight_bit_width: int = 8, act_bit_width: int = 8) -> nn.Module:
    """A classifier of sentences by topic on the quantised encoder.

    The score of a topic is the cosine similarity to the mean embedding of its four calibration
    sentences. The arguments are those of `quantised`.
    """
    encoder = quantised(weight_bit_width, act_bit_width)
    known = Sentences("train")
    with torch.no_grad():
        embeddings = encoder(known.tokens)
        means = [embeddings[known.labels == topic].mean(0) for topic in range(len(TOPICS))]
    head = nn.Linear(embeddings.shape[1], len(TOPICS), bias=False)
    head.weight = nn.Parameter(normalize(torch.stack(means)))
    return nn.Sequential(encoder, head).eval()


def pretrained() -> SentenceEncoder:
    """The encoder in floating point with its trained weights, in eval mode.

    Raises:
        DataError: a package is missing.
    """
    if importlib.util.find_spec("torchvision") is not None:
        import_torchvision()  # transformers imports it, too, and not all builds can be as they are.
    transformers, folder = packages("transformers")
    # Not `from_pretrained`, which prints.
    config = transformers.BertConfig.from_pretrained(
        str(folder), local_files_only=True, attn_implementation="eager"
    )
    network = transformers.BertModel(config, add_pooling_layer=False)
    trained = packages("safetensors.torch")[0].load_file(folder / "model.safetensors")
    kept = {key: value for key, value in trained.items() if not key.startswith("pooler.")}
    kept.pop("embeddings.position_ids", None)  # Older releases of transformers saved it.
    network.load_state_dict(kept)
    return SentenceEncoder(network).eval()


class SentenceEncoder(nn.Module):
    """A transformer, and the mean of its outputs over the tokens of a sentence.

    Args:
        network: a Hugging Face `BertModel`.

    Reference:
        Reimers and Gurevych, "Sentence-BERT", EMNLP 2019 (arXiv:1908.10084).
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeddings of length 1, shape (N, 384), of token ids, shape (N, L); 0 is no token."""
        ids = tokens.long()
        mask = (ids != 0).long()
        outputs = self.network(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(2).to(outputs.dtype)
        return normalize((outputs * weights).sum(1) / weights.sum(1), dim=1)
