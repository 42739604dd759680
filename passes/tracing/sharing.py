"""Give a pass copies of modules that share what the modules hold.

A twin of a model has copies of the modules that a pass rewrites (the targets and the containers
that hold one) and the model's own objects for all others. A copy shares the dictionaries of
parameters and buffers, so that training, loading or moving one model shows in the other.
"""

from __future__ import annotations

import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable
from types import CellType, FunctionType, MethodType, SimpleNamespace
from typing import Any

import torch
from torch import nn

# A copy must not share these: hooks that are set on it must not reach the original.
_HOOK_TABLES = tuple(name for name in vars(nn.Module()) if "_hooks" in name)


def shell(module: nn.Module, kind: type | None = None) -> nn.Module:
    """Copy a module; the copy has the same attributes, parameters, buffers and children.

    Args:
        module: any module that is not TorchScript.
        kind: class of the copy; default: the module's.
    """
    new: Any = object.__new__(type(module) if kind is None else kind)
    new.__dict__.update(module.__dict__)
    for owner in type(module).__mro__:
        for slot in getattr(owner, "__slots__", ()):
            if hasattr(module, slot):
                object.__setattr__(new, slot, getattr(module, slot))
    # `nn.Module.compile` keeps compiled code of the original there.
    new.__dict__["_compiled_call_impl"] = None
    for table in _HOOK_TABLES:
        if table in module.__dict__:
            new.__dict__[table] = module.__dict__[table].copy()
    return new


def twin(
    model: nn.Module,
    is_target: Callable[[nn.Module], bool],
    new_object: Callable[[nn.Module], nn.Module] = shell,
) -> nn.Module:
    """Copy a model, its targets and the modules that hold one; share all other modules.

    Args:
        model: the model; it is not changed.
        is_target: tells which modules the pass is about.
        new_object: copies a module.
    """
    originals = _modules_to_replace(model, is_target)
    replaced: dict[int, nn.Module] = {id(model): new_object(model)}
    for module in originals:
        replaced.setdefault(id(module), new_object(module))
    for module in (model, *originals):
        # A target keeps its very children, its quantiser, unless some are targets, too.
        if not is_target(module) or holds(module, is_target):
            replace_modules(replaced[id(module)], replaced)
    return replaced[id(model)]


def replace_modules(module: nn.Module, replaced: dict[int, nn.Module]) -> None:
    """Replace modules in the attributes of another module.

    Args:
        module: the copy to change.
        replaced: the new modules by the ids of the old ones.
    """
    for name, value in list(module.__dict__.items()):
        if name in ("_parameters", "_buffers"):
            continue  # These must stay the very same objects.
        if name in _HOOK_TABLES:
            for key, hook in value.items():
                value[key] = with_replacements(hook, replaced)
        else:
            module.__dict__[name] = with_replacements(value, replaced)


def holds(module: nn.Module, is_target: Callable[[nn.Module], bool]) -> bool:
    """Whether a target lies strictly below a module."""
    return any(is_target(child) for child in module.modules() if child is not module)


def holders(model: nn.Module, is_target: Callable[[nn.Module], bool]) -> set[int]:
    """Find the modules for which `holds` is true; each module of the model is asked about once.

    Returns:
        Their ids.
    """
    modules = list(model.modules())
    parents: dict[int, list[nn.Module]] = {}
    for module in modules:
        for child in module.children():
            parents.setdefault(id(child), []).append(module)
    found: dict[int, nn.Module] = {}
    below = [module for module in modules if is_target(module)]
    while below:
        for parent in parents.get(id(below.pop()), []):
            if id(parent) not in found:
                found[id(parent)] = parent
                below.append(parent)
    # A target that holds itself may hold no other.
    return {key for key, m in found.items() if not is_target(m) or holds(m, is_target)}


def _modules_to_replace(
    model: nn.Module, is_target: Callable[[nn.Module], bool]
) -> list[nn.Module]:
    found: dict[int, bool] = {}

    def visit(module: nn.Module) -> bool:
        if id(module) not in found:
            found[id(module)] = False  # A module that holds itself ends the recursion here.
            children = [visit(child) for child in module._modules.values() if child is not None]
            scripted = isinstance(module, torch.jit.ScriptModule)
            found[id(module)] = (any(children) or is_target(module)) and not scripted
        return found[id(module)]

    visit(model)
    return [module for module in model.modules() if found[id(module)] and module is not model]


def with_replacements(value: Any, replaced: dict[int, nn.Module]) -> Any:
    """The value with modules replaced, in plain containers and functions too."""
    if isinstance(value, nn.Module):
        return replaced.get(id(value), value)
    again = functools.partial(with_replacements, replaced=replaced)
    if isinstance(value, MethodType) and id(value.__self__) in replaced:
        return MethodType(value.__func__, replaced[id(value.__self__)])
    if type(value) is weakref.ref and id(value()) in replaced:
        return weakref.ref(replaced[id(value())])
    if isinstance(value, functools.partial):
        keywords = {key: again(item) for key, item in value.keywords.items()}
        return functools.partial(again(value.func), *map(again, value.args), **keywords)
    if isinstance(value, FunctionType) and value.__closure__:
        return _with_closure(value, replaced)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(again, value))
    if type(value) in (list, tuple, set):
        return type(value)(map(again, value))
    if type(value) in (dict, OrderedDict):
        return type(value)((key, again(item)) for key, item in value.items())
    if type(value) is SimpleNamespace:
        return SimpleNamespace(**{key: again(item) for key, item in vars(value).items()})
    return value


def _with_closure(function: FunctionType, replaced: dict[int, nn.Module]) -> FunctionType:
    """The function, closing over the new modules in place of old ones."""
    cells = function.__closure__ or ()
    held = [cell.cell_contents for cell in cells if cell.cell_contents is not None]
    if not any(id(item) in replaced for item in held):
        return function
    closure = tuple(CellType(with_replacements(cell.cell_contents, replaced)) for cell in cells)
    new = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, closure
    )
    new.__kwdefaults__ = function.__kwdefaults__
    return new
