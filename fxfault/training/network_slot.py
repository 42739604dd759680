"""Find the network in a module that trains it, and let another one stand in its place."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fxfault.errors import ConfigError, SiteError
from fxfault.messages import did_you_mean
from fxfault.quantisers.quant_tensors import is_activation


@dataclass(frozen=True)
class NetworkSlot:
    """All places in a tree of modules where one network is registered.

    >>> task = nn.ModuleDict({"net": nn.ReLU(), "loss": nn.MSELoss()})
    >>> slot = NetworkSlot.of(task, task["net"])
    >>> slot.replace(nn.ReLU(), by=nn.Tanh())  # nobody has that ReLU here
    >>> slot.replace(task["net"], by=nn.Tanh())
    >>> task["net"]
    Tanh()

    Attributes:
        places: each module that has the network for a child, and the child's name.
    """

    places: tuple[tuple[nn.Module, str], ...]

    @classmethod
    def of(cls, owner: nn.Module, network: nn.Module) -> NetworkSlot:
        """Find the places below `owner`."""
        return cls(
            tuple(
                (parent, name)
                for parent in owner.modules()
                for name, child in parent._modules.items()
                if child is network
            )
        )

    def holds(self, network: nn.Module) -> bool:
        """Whether the network stands in every place."""
        return all(parent._modules.get(name) is network for parent, name in self.places)

    def replace(self, network: nn.Module, by: nn.Module) -> None:
        """Put a network into the places where another one still stands."""
        for parent, name in self.places:
            if parent._modules.get(name) is network:
                parent._modules[name] = by


def find_network(owner: nn.Module, path: str | None, targets: tuple[str, ...]) -> str:
    """The path of the network below a module.

    Args:
        owner: the module that has the network for a child, and calls it.
        path: where the user says that it is; None: the one child with targets.
        targets: class names of the layers that faults strike.

    Raises:
        ConfigError: there is nothing at `path`, or nothing that can be called; or there is
            no `path` and several children have targets.
        SiteError: there is no `path`, and no child has targets.
    """
    choices = _candidates(owner, targets)
    kind = type(owner).__name__
    if path is None:
        if not choices:
            raise SiteError(f"{kind}: no child has a layer of {', '.join(targets)}; {_have(owner)}")
        if len(choices) > 1:
            raise ConfigError(
                f"{kind}: several children have layers that faults can strike; name one as "
                f"`network`: {', '.join(choices)}"
            )
        return choices[0]
    network = dict(owner.named_modules(remove_duplicate=False)).get(path) if path else None
    if network is None:
        raise ConfigError(
            f"network: {kind} has no child {path!r}{did_you_mean([path], choices)}; "
            f"allowed: {', '.join(choices) or _have(owner)}"
        )
    if _is_list(network):
        raise ConfigError(
            f"network: {path!r} is a {type(network).__name__}, which has no forward; "
            f"allowed: {', '.join(choices) or _have(owner)}"
        )
    return path


def _candidates(owner: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """The children with targets, looked for in lists and dictionaries of children too."""
    found: list[str] = []
    for name, child in owner.named_children():
        if _is_list(child):
            found += [f"{name}.{below}" for below in _candidates(child, targets)]
        elif any(is_activation(module, targets) for module in child.modules()):
            found.append(name)
    return found


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, (nn.ModuleList, nn.ModuleDict))


def _have(owner: nn.Module) -> str:
    children = [f"{name} ({type(child).__name__})" for name, child in owner.named_children()]
    return f"its children are: {', '.join(children) or 'none'}"
