"""The root of a transformed model that keeps its own forward, as tracing could not read it."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fxfault.errors import TransformError
from fxfault.functional import begin_forward
from fxfault.passes.tracing.sharing import replace_modules, shell
from fxfault.quantisers.quant_tensors import OWN_FORWARD
from fxfault.sites.fault_sites import FaultSites, sites_or_none


class Transformed(nn.Module):
    """What classes that are made for transformed models have in common."""

    @property
    def _sites(self) -> FaultSites | None:
        """The fault sites of the model that the module is a part of; None: it has none."""
        return sites_or_none(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be pickled, as `torch.save` of a whole model does.

        Raises:
            TransformError: always.
        """
        raise TransformError(
            f"{type(self).__name__}: a transformed model cannot be pickled or saved whole, as the "
            "layers of Brevitas cannot: save model.state_dict(), whose keys are those of the model "
            "as given, and transform the network anew after loading them; copy it by copy.deepcopy"
        )

    def __prepare_scriptable__(self) -> Any:
        """Refuse to become TorchScript.

        Raises:
            TransformError: always.
        """
        raise TransformError(
            f"{type(self).__name__}: a transformed model cannot become TorchScript: use the model "
            "as given, as far as its layers can, or fxfault.compile for speed"
        )


class KeepsForward(Transformed):
    """A module of its source's class whose forward moves the clock first.

    The forward is the class's, not the object's: a copy runs on its own attributes.
    """

    def __copy__(self) -> Any:
        new = shell(self)
        replace_modules(new, {id(self): new})
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        new: Any = shell(self)
        memo[id(self)] = new
        for name, value in self.__dict__.items():
            new.__dict__[name] = copy.deepcopy(value, memo)
        return new


def keep_forward(module: nn.Module) -> None:
    """Turn a module, in place, into one whose forward moves the clock of its sites first.

    Args:
        module: an object of ours (see `fxfault.passes.tracing.sharing`).
    """
    source = type(module)
    if "forward" in module.__dict__:
        module.__dict__[OWN_FORWARD] = module.__dict__.pop("forward")
    own = module.__dict__.get(OWN_FORWARD)
    module.__class__ = class_from((KeepsForward, source), source, forward=_forward_of(source, own))


def give_forward_back(module: nn.Module) -> bool:
    """The inverse of `keep_forward`; returns whether there was anything to do."""
    if not isinstance(module, KeepsForward):
        return False
    module.__class__ = source_class(type(module))
    if OWN_FORWARD in module.__dict__:
        module.__dict__["forward"] = module.__dict__.pop(OWN_FORWARD)
    return True


def source_class(kind: type) -> Any:
    """The class that a module had before it was traced, or its forward kept."""
    return kind.__bases__[1]


def class_from(bases: tuple[type, ...], named_like: type, **members: Any) -> type:
    """A class of ours above the source's, which is the second of its bases."""
    names: dict[str, Any] = {"__module__": named_like.__module__, "__doc__": named_like.__doc__}
    names["_source_class"] = bases[1]
    new = type(named_like.__name__, bases, names | members)
    new.__qualname__ = named_like.__qualname__
    return new


def _forward_of(source: type[nn.Module], own_forward: Any) -> Callable[..., Any]:
    # Read here, because torch.compile of torch 2.9 cannot read a signature.
    signature = inspect.signature(own_forward or functools.partial(source.forward, None))

    @functools.wraps(source.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        own = self.__dict__.get(OWN_FORWARD) or functools.partial(source.forward, self)
        sites = self._sites
        if sites is None:  # An object that the forward itself made of its class.
            return own(*args, **kwargs)
        # In the order of the signature, so that keywords do not change the batch.
        bound = signature.bind(*args, **kwargs)
        if torch.compiler.is_dynamo_compiling():
            begin_forward(sites, *bound.arguments.values())
            return own(*args, **kwargs)
        with sites.running_graph(None):
            begin_forward(sites, *bound.arguments.values())
            return own(*args, **kwargs)

    return forward
