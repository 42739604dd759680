"""Why a module, a name or a forward cannot be traced, in the words that users read."""

from __future__ import annotations

import keyword
import re
import unicodedata

import torch
from torch import nn
from torch.fx.proxy import TraceError

from fxfault.messages import quote_error
from fxfault.passes.tracing.traced_module import own_call

OF_A_LIBRARY = "it is a layer of a library"
_QUOTES = frozenset("\"'\\{}")
# What torch.fx and Python say if a forward asks a symbolic value for something that it lacks.
_REASONS = {
    "symbolically traced variables cannot be used": "its forward branches on a value",
    "Proxy object cannot be iterated": "its forward iterates over a value",
    "'len' is not supported in symbolic": "its forward asks for the length of a value",
    "'ValueProxy' object does not support item assign": "its forward assigns to items of a value",
    "ValueProxy.*(integer|number)|(integer|number).*ValueProxy": (
        "its forward needs a value as a number, as range() and int() do"
    ),
    "argument of type: <class": "its forward uses an object that a graph cannot hold",
    "_array_interface__": "its forward converts a value to an array or a tensor",
    "training mode is expected to be boolean": "its forward switches the mode of a layer",
}


def why_untraceable(error: Exception) -> str:
    """The reason for an exception of a traced forward, in a few words."""
    text = str(error).strip().partition("\n")[0]
    for pattern, reason in _REASONS.items():
        if re.search(pattern, text):
            return reason
    return text if isinstance(error, TraceError) and text else quote_error(error)


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a layer of torch or Brevitas."""
    return type(module).__module__.startswith(("torch.nn.", "torch.ao.nn.", "brevitas.nn."))


def why_kept(module: nn.Module, is_root: bool = False) -> str | None:
    """Why a container keeps its own forward without an attempt to trace it; None: trace it."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is TorchScript"
    if type(module).forward is nn.Module.forward:
        return "it has no forward"
    if is_layer(module) and not isinstance(module, nn.Sequential):
        return OF_A_LIBRARY
    if "forward" in vars(module):
        return "its forward is set on the instance"
    if any(_own_call(part) for part in (module, *module.children())):
        return "it or a layer of it has a __call__ of its own"
    if hasattr(type(module).forward, "__wrapped__"):
        return "its forward is decorated"
    if not is_root and (module._forward_hooks or module._forward_pre_hooks):
        return "it has forward hooks"
    if not is_root and (module._backward_hooks or module._backward_pre_hooks):
        return "it has backward hooks"
    return None


def _own_call(module: nn.Module) -> bool:
    if isinstance(module, (nn.ParameterList, nn.ParameterDict)):
        return False  # Their `__call__` only raises an error.
    return own_call(type(module)) is not None


def why_no_code(target: str) -> str | None:
    r"""Why a path of names cannot be written into code; None: it can.

    torch.fx does not escape names: a quote in one would end its text, and the rest would be run.

    >>> why_no_code("layer1.0.relu"), why_no_code("a b.c-d")
    (None, None)
    >>> why_no_code('"+exit()+"')
    'the name \'"+exit()+"\' in it cannot be written into generated code'
    """
    for name in target.split("."):
        written = name.isidentifier()
        # Python reads names in their normal form, and does not take a keyword for a name.
        lost = keyword.iskeyword(name) or unicodedata.normalize("NFKC", name) != name
        if (written and lost) or not (written or (name.isprintable() and not set(name) & _QUOTES)):
            return f"the name {name!r} in it cannot be written into generated code"
    return None
