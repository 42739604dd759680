"""The operations that the insert pass puts into a graph.

`fault_inject` strikes one value, an activation or the words that `stored_weight` and `stored_bias`
read; `begin_forward` moves the clock. The cost follows the number of hits: only elements that are
hit are read, converted and written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx.node import has_side_effect

from fxfault.faults.torch_versions import is_exporting
from fxfault.quantisers.quant_tensors import plain
from fxfault.quantisers.stored_words import clean_bias, clean_weight
from fxfault.sites.fault_sites import FaultSites
from fxfault.sites.site import FaultSite
from fxfault.strike.calls import inject_compiled
from fxfault.strike.moments import begin, moment_of, refuse_recording
from fxfault.strike.operators import begin_compiled
from fxfault.strike.strikes import strike_values, with_value


@has_side_effect  # type: ignore[untyped-decorator]
def begin_forward(sites: FaultSites, *inputs: Any) -> None:
    """Move the clock of a model's sites at the start of a forward of the whole model.

    Args:
        sites: the model's sites.
        inputs: the model's inputs; the batch size is the leading dimension of the tensor that
            has most dimensions.
    """
    if torch.compiler.is_dynamo_compiling():
        if is_exporting():
            refuse_recording(sites)
        begin_compiled(sites.clock.handle.number, inputs)
    else:
        begin(sites, inputs)


def fault_inject(x: Any, site: FaultSite) -> Any:
    """Strike a quantised activation with the faults of a site.

    If the site is not armed, the function returns `x` itself.

    Args:
        x: the output of the activation layer: an `IntQuantTensor` of any shape in float16,
            bfloat16, float32 or float64, or its plain value if the layer has handed the
            `IntQuantTensor` over (`fxfault.passes.layer_outputs`). If the site has float words, a
            `FloatQuantTensor` or a plain tensor.
        site: the site to strike.

    Returns:
        The faulty activation, with the type and memory format of `x`.

    Raises:
        SiteError: the value has no integer word, or its dtype cannot hold the codes.
    """
    if torch.compiler.is_dynamo_compiling():
        return inject_compiled(x, site)
    activation = x if site.output is None else site.output.take(x)
    moment = None if activation is None else moment_of(site)
    if moment is None:  # Not armed, or the layer has struck it before its hooks ran.
        if site.edges is not None and activation is not None:
            site.edges.note((site,), activation, plain(activation))
        return x
    value = strike_values(activation, site, moment)
    if site.edges is not None:
        site.edges.note((site,), activation, value)
    is_clean = value is getattr(activation, "value", activation)
    return x if is_clean else with_value(x, activation, value)


def stored_weight(layer: Any) -> Any:
    """Read the quantised weight of a layer, as its memory stores it.

    >>> from brevitas.nn import QuantLinear
    >>> stored_weight(QuantLinear(4, 2, bias=False, weight_bit_width=4)).value.shape
    torch.Size([2, 4])

    Args:
        layer: a layer with a weight quantiser.

    Returns:
        An `IntQuantTensor` of the shape of the weight; if the layer does not quantise its weight,
        the weight.
    """
    return clean_weight(layer)


def stored_bias(layer: Any, input: Any, weight: Any) -> Any:
    """Read the quantised bias of a layer, as its memory stores it.

    Args:
        layer: a layer with a bias quantiser.
        input: the input of the layer: the scale of the bias may be that of the accumulator, which
            is the scale of the input times that of the weight.
        weight: the quantised weight of the layer.

    Returns:
        An `IntQuantTensor` of the shape of the bias.
    """
    return clean_bias(layer, input, weight)
