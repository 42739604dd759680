"""Operators that replace `fault_inject` and `begin_forward` in compiled code.

`torch.compile` calls these operators and does not look into them. They read the state of the fault
sites when they are called. No setting is a constant of the compiled code, so a changed setting
needs no new compilation.

    begin_forward_(handle!, inputs)     moves the clock
    strike_(values!, ..., handle!, i)   writes the faults of site i in place, if it is armed
    strike(values, ..., handle, i)      returns a faulty copy, for values that need a gradient
    keep_(handle!, hits)                keeps a `strike` alive even if its values are not used

`handle` (`fxfault.sites.handles`) leads to the sites. All but `strike` are declared to write to it,
though none does: compiler and autograd may neither drop nor reorder operators that write to an
input, so all of them run, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxfault.quantisers.quant_tensors import IntQuantTensor
from fxfault.sites.handles import owner_of
from fxfault.strike.moments import begin
from fxfault.strike.strikes import overwrite

_PARAMETERS = "Tensor scale, Tensor zero_point, Tensor bit_width, Tensor signed"
_SCHEMAS = (
    "begin_forward_(Tensor(a!) handle, Tensor[] inputs) -> ()",
    f"strike_(Tensor(a!) values, {_PARAMETERS}, Tensor(b!) handle, int index) -> ()",
    f"strike(Tensor values, {_PARAMETERS}, Tensor handle, int index, bool keep_hits) "
    "-> (Tensor, Tensor)",
    "keep_(Tensor(a!) handle, Tensor hits) -> ()",
)

_library = torch.library.Library("fxfault", "DEF")
for _schema in _SCHEMAS:
    # Positions are row-major by shape, whatever the strides are.
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout))


def begin_compiled(handle: Tensor, inputs: Sequence[Any]) -> None:
    """Call the operator that moves the clock, in code that is being compiled.

    Args:
        handle: the number of the sites' handle.
        inputs: the model's inputs; only the tensors among them are passed on.
    """
    tensors = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)]
    torch.ops.fxfault.begin_forward_(handle, tensors)


def strike_compiled(x: Any, handle: Tensor, index: int, zero_faulty: bool) -> Tensor:
    """Call the operators for one activation, in code that is being compiled.

    Args:
        x: an `IntQuantTensor` of any shape.
        handle: the number of the sites' handle.
        index: the index of the site.
        zero_faulty: whether gradients end at hit elements.

    Returns:
        The values with faults, in a tensor that nothing else refers to.
    """
    parameters = [p.detach() for p in (x.scale, x.zero_point, x.bit_width, x.signed_t)]
    if torch.is_grad_enabled() and x.value.requires_grad:
        values, hits = torch.ops.fxfault.strike(x.value, *parameters, handle, index, zero_faulty)
        torch.ops.fxfault.keep_(handle, hits)
        return values  # type: ignore[no-any-return]
    # Inductor copies only if the clean values are needed later.
    values = x.value.clone()
    torch.ops.fxfault.strike_(values, *parameters, handle, index)
    return values  # type: ignore[no-any-return]


# -- what the operators do ----------------------------------------------------------------


def _begin_forward(handle: Tensor, inputs: list[Tensor]) -> None:
    begin(owner_of(handle), inputs)


def _strike_in_place(
    values: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bit_width: Tensor,
    signed: Tensor,
    handle: Tensor,
    index: int,
) -> None:
    x = IntQuantTensor(values, scale, zero_point, bit_width, signed, signed)
    overwrite(x, owner_of(handle)[index])


def _strike(
    values: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bit_width: Tensor,
    signed: Tensor,
    handle: Tensor,
    index: int,
    keep_hits: bool,
) -> tuple[Tensor, Tensor]:
    struck = values.detach().clone()
    hits = _no_hits(values, keep_hits)
    x = IntQuantTensor(struck, scale, zero_point, bit_width, signed, signed)
    overwrite(x, owner_of(handle)[index], hits if keep_hits else None)
    return struck, hits


def _no_hits(values: Tensor, keep_hits: bool) -> Tensor:
    shape = values.shape if keep_hits else (0,)
    return torch.zeros(shape, dtype=torch.bool, device=values.device)


def _fake_strike(values: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(values), _no_hits(values, arguments[-1])


def _do_nothing(*arguments: Any) -> None:
    """Implements `keep_`, and the fake kernel of each operator without a result."""


def _keep_hits(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.zero_faulty = inputs[-1]
    if ctx.zero_faulty:
        ctx.save_for_backward(output[1])


def _stop_at_hits(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    if ctx.zero_faulty:
        (hits,) = ctx.saved_tensors
        grad = grad.masked_fill(hits, 0.0)
    return grad, *[None] * 7


def _register() -> None:
    kernels = {
        "begin_forward_": _begin_forward,
        "strike_": _strike_in_place,
        "strike": _strike,
        "keep_": _do_nothing,
    }
    for name, kernel in kernels.items():
        _library.impl(name, kernel, "CompositeExplicitAutograd")
        fake = _fake_strike if name == "strike" else _do_nothing
        torch.library.register_fake(f"fxfault::{name}", fake, lib=_library)
    torch.library.register_autograd(
        "fxfault::strike", _stop_at_hits, setup_context=_keep_hits, lib=_library
    )


_register()
