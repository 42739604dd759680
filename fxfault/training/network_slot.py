"""Find the network in the module that trains it, and replace it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fxfault.errors import ConfigError, SiteError
from fxfault.messages import did_you_mean
from fxfault.passes.tracing.targets import target_rule


@dataclass(frozen=True)
class NetworkSlot:
    """All places in a tree of modules at which one network is registered.

    >>> task = nn.ModuleDict({"net": nn.ReLU(), "loss": nn.MSELoss()})
    >>> slot = NetworkSlot.of(task, task["net"])
    >>> slot.replace(nn.ReLU(), by=nn.Tanh())  # changes nothing: this ReLU is not in the tree
    >>> slot.replace(task["net"], by=nn.Tanh())
    >>> task["net"]
    Tanh()

    Attributes:
        places: each parent of the network, with the child's name.
    """

    places: tuple[tuple[nn.Module, str], ...]

    @classmethod
    def of(cls, owner: nn.Module, network: nn.Module) -> NetworkSlot:
        """Find all places of a network below `owner`."""
        return cls(
            tuple(
                (parent, name)
                for parent in owner.modules()
                for name, child in parent._modules.items()
                if child is network
            )
        )

    def holds(self, network: nn.Module) -> bool:
        """Whether the network is in every place."""
        return all(parent._modules.get(name) is network for parent, name in self.places)

    def replace(self, network: nn.Module, by: nn.Module) -> None:
        """Replace a network in the places that still hold it."""
        for parent, name in self.places:
            if parent._modules.get(name) is network:
                parent._modules[name] = by


def find_network(owner: nn.Module, path: str | None, targets: tuple[str, ...]) -> str:
    """Find the path of the network below a module.

    Args:
        owner: the module that calls the network.
        path: path from the user; None selects the only child with targets.
        targets: class names of the layers that faults strike.

    Raises:
        ConfigError: there is no module at `path`, or it cannot be called; or `path` is None and
            several children have targets.
        SiteError: `path` is None and no child has targets.
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
    if network is not None and not _is_list(network):
        return path
    problem = f"{kind} has no child {path!r}{did_you_mean([path], choices)}"
    if network is not None:
        problem = f"{path!r} is a {type(network).__name__}, which has no forward"
    raise ConfigError(f"network: {problem}; allowed: {', '.join(choices) or _have(owner)}")


def _candidates(owner: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Paths of the children with targets, including those in lists and dictionaries."""
    found: list[str] = []
    is_target = target_rule(targets, ("activations",))
    for name, child in owner.named_children():
        if _is_list(child):
            found += [f"{name}.{below}" for below in _candidates(child, targets)]
        elif any(map(is_target, child.modules())):
            found.append(name)
    return found


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, (nn.ModuleList, nn.ModuleDict))


def _have(owner: nn.Module) -> str:
    children = [f"{name} ({type(child).__name__})" for name, child in owner.named_children()]
    return f"its children are: {', '.join(children) or 'none'}"
