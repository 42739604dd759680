"""Operations that move the words of an activation without changing them."""

from __future__ import annotations

from torch import nn
from torch.fx import Node

_NAMES = frozenset(
    (
        *("cat", "chunk", "contiguous", "detach", "expand", "flatten", "getitem", "permute"),
        *("reshape", "split", "squeeze", "t", "transpose", "unflatten", "unsqueeze", "view"),
        *("max_pool1d", "max_pool2d", "max_pool3d", "dropout"),
    )
)
_MODULES = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Flatten, nn.Identity, nn.Unflatten),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
)


def moves_words(node: Node, called: nn.Module | None) -> bool:
    """Whether the result of a node may hold words of its inputs as they are.

    Args:
        node: a node of a graph.
        called: the module that it calls; None if it calls none.
    """
    if called is not None:
        return isinstance(called, _MODULES)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in ("call_function", "call_method") and name in _NAMES
