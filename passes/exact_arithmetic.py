"""Make compiled code round as torch does without a compiler.

Inductor splits a batch norm into operations that round more often than its kernel, adds the values
of mean pooling in another order, and runs convolutions on another memory layout, which also changes
the order of their sums. Each of these changes the last bit of many values. The next quantiser
nearly always rounds the change away, but now and then a value lies at the edge between two codes.
Here these functions stay kernels, as operators that no compiler looks into, and layouts stay as
they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

_library = torch.library.Library("fxfault", "FRAGMENT")
_library.define(
    "batch_norm(Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps) "
    "-> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
_library.define(
    "adaptive_avg_pool2d(Tensor x, int[] size) -> Tensor", tags=torch.Tag.pt2_compliant_tag
)


def exact_backend(name: str) -> Callable[[fx.GraphModule, list[Any]], Any]:
    """Make a backend of torch.compile, from a named one, that rounds as without a compiler."""

    def compile_graph(graph_module: fx.GraphModule, inputs: list[Any]) -> Any:
        keep_kernels(graph_module)
        if name == "inductor":
            options = {"layout_optimization": False}
            return torch._inductor.compile(graph_module, inputs, options=options)
        return torch._dynamo.lookup_backend(name)(graph_module, inputs)

    return compile_graph


def keep_kernels(graph_module: fx.GraphModule) -> int:
    """Replace functions that a compiler splits by operators of ours; returns their number.

    >>> graph_module = fx.symbolic_trace(lambda x: functional.adaptive_avg_pool2d(x, 1))
    >>> keep_kernels(graph_module)
    1
    >>> print(graph_module.code.strip().splitlines()[1].split(";")[0])
        adaptive_avg_pool2d = torch.ops.fxfault.adaptive_avg_pool2d.default(x, [1, 1])

    Args:
        graph_module: a graph of torch functions, as torch.compile passes it to a backend; it is
            changed.
    """
    found = 0
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and node.target in _KERNELS:
            operator, arguments_of = _KERNELS[node.target]
            bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
            bound.apply_defaults()
            arguments = arguments_of(bound.arguments)
            if arguments is not None:
                node.target, node.args, node.kwargs = operator, tuple(arguments), {}
                found += 1
    graph_module.recompile()
    return found


def _of_batch_norm(given: dict[str, Any]) -> list[Any] | None:
    """The operator's arguments; None if the batch norm uses the statistics of the batch."""
    if given["training"] is not False or given["running_mean"] is None:
        return None
    return [given[k] for k in ("input", "running_mean", "running_var", "weight", "bias", "eps")]


def _of_pooling(given: dict[str, Any]) -> list[Any] | None:
    """The operator's arguments; None if pooling keeps the size of a dimension."""
    size = given["output_size"]
    sides = [size, size] if isinstance(size, int) else list(size)
    return [given["input"], sides] if all(isinstance(side, int) for side in sides) else None


def _batch_norm(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    return functional.batch_norm(x, mean, var, weight, bias, eps=eps)


def _adaptive_avg_pool2d(x: Tensor, size: list[int]) -> Tensor:
    return functional.adaptive_avg_pool2d(x, (size[0], size[1]))


for _name, _run in (("batch_norm", _batch_norm), ("adaptive_avg_pool2d", _adaptive_avg_pool2d)):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    # torch's own functions also work on fake tensors, which have a shape and no values.
    torch.library.register_fake(f"fxfault::{_name}", _run, lib=_library)

_KERNELS: dict[Any, tuple[Any, Callable[[dict[str, Any]], list[Any] | None]]] = {
    functional.batch_norm: (torch.ops.fxfault.batch_norm.default, _of_batch_norm),
    functional.adaptive_avg_pool2d: (
        torch.ops.fxfault.adaptive_avg_pool2d.default,
        _of_pooling,
    ),
}
