"""Quantise a trained network by Brevitas' post-training flow.

The flow is that of Brevitas' documentation: merge batch norms, quantise the graph, calibrate the
activations, correct the biases.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fxfault.errors import DataError


def quantise_graph(
    network: nn.Module, batches: Iterable[Tensor], *, weight_bit_width: int, act_bit_width: int
) -> nn.Module:
    """Quantise a traceable network: per-channel weights, per-tensor activations.

    Input, activation functions, sums and the output of the last layer are quantised, the biases to
    32 bits. Layers of `nn.ZeroPad2d` stay in front of their convolutions.

    Args:
        network: trained network of convolutions, linear layers, BatchNorms, ReLU or ReLU6, and
            sums; it is not changed.
        batches: inputs to calibrate with.
        weight_bit_width: bits of every weight, 2 to 8.
        act_bit_width: bits of every activation, 2 to 8.

    Returns:
        The quantised network, in eval mode.

    Raises:
        DataError: a width is out of range.
    """
    check_width("weight_bit_width", weight_bit_width)
    check_width("act_bit_width", act_bit_width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Brevitas calls its own graph package deprecated.
        from brevitas.graph.quantize import preprocess_for_quantize, quantize

        graph = preprocess_for_quantize(network, relu6_to_relu=False)
        pads = _take_out_padding(graph)
        maps = _maps(weight_bit_width, act_bit_width)
        quantised = quantize(graph, **maps)
        _put_back_padding(quantised, pads)
        return calibrate(quantised.eval(), list(batches))


def check_width(key: str, bits: object) -> None:
    """Raise a `DataError` if a bit width is not an integer from 2 to 8.

    >>> check_width("act_bit_width", 1)
    Traceback (most recent call last):
    fxfault.errors.DataError: act_bit_width is 1; it must be an integer from 2 to 8
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise DataError(f"{key} is {bits!r}; it must be an integer from 2 to 8")


def calibrate(quantised: nn.Module, batches: list[Tensor]) -> nn.Module:
    """Set the scales of activations and correct the biases; return the network."""
    from brevitas.graph.calibrate import bias_correction_mode, calibration_mode

    with torch.no_grad():
        with calibration_mode(quantised):
            for batch in batches:
                quantised(batch)
        modules: Iterable[Any] = quantised.modules()
        for module in modules:
            # Brevitas 0.13 leaves this set on quantisers that several layers share, which then
            # pass floats through.
            if getattr(module, "observer_only", False):
                module.observer_only = False
        with bias_correction_mode(quantised):
            for batch in batches:
                quantised(batch)
    return quantised.eval()


def _maps(weight_bits: int, act_bits: int) -> dict[str, Any]:
    """Brevitas' own maps of layers to quantised layers, with other widths."""
    import brevitas.nn as qnn
    from brevitas.graph import quantize as flow
    from brevitas.quant import Int8WeightPerChannelFloat

    weights = {"weight_quant": Int8WeightPerChannelFloat, "weight_bit_width": weight_bits}
    layers = {
        kind: (target[0], {**target[1], **weights})
        for kind in (nn.Conv2d, nn.Linear)
        for target in [flow.COMPUTE_LAYER_MAP[kind]]
    }
    width = {"bit_width": act_bits}
    identities = {k: (c, {**o, **width}) for k, (c, o) in flow.QUANT_IDENTITY_MAP.items()}
    acts = {
        kind: (qnn.QuantReLU, {**flow.QUANT_ACT_MAP[kind][1], **width})
        for kind in (nn.ReLU, nn.ReLU6)
    }
    return {
        "compute_layer_map": layers,
        "quant_identity_map": identities,
        "quant_act_map": acts,
    }


def _take_out_padding(graph: Any) -> dict[str, str]:
    """Remove padding layers, as Brevitas would quantise their outputs a second time.

    Returns:
        Name of the padding layer by the name of the convolution that it belongs to.
    """
    pads = {}
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and isinstance(graph.get_submodule(node.target), nn.ZeroPad2d):
            (convolution,) = node.users
            pads[convolution.target] = node.target
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.recompile()
    return pads


def _put_back_padding(quantised: Any, pads: dict[str, str]) -> None:
    graph = quantised.graph
    for node in list(graph.nodes):
        if node.op == "call_module" and node.target in pads:
            with graph.inserting_before(node):
                pad = graph.call_module(pads[node.target], (node.args[0],))
            node.replace_input_with(node.args[0], pad)
    quantised.recompile()
