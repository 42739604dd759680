"""The calls of a model's modules in one forward, in order, and the strikes between them.

While a forward is watched, the calls of chosen modules pass through a function of ours
(`intercepted`). It hangs where `nn.Module.compile` would put its code, so that modules, their
hooks and their own `__call__` stay as they are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_hooks

from fxfault.evaluation.full.model_state import modules_of
from fxfault.evaluation.incremental.call_values import Arguments, KeptValue, NotKept
from fxfault.evaluation.incremental.golden_cache import is_out_of_memory
from fxfault.faults.layouts import Layout
from fxfault.passes.layer_outputs import LayerOutput, installed
from fxfault.sites.edges import Sources, is_struck_before
from fxfault.sites.fault_sites import FaultSites
from fxfault.sites.measuring import armed_at_zero
from fxfault.sites.site import FaultSite

_HANDLE = "_compiled_call_impl"
OTHER_THREAD = "its forward calls modules from several threads"


@dataclass(frozen=True)
class Strike:
    """A call of a site: a place where it strikes, or would.

    Attributes:
        site: the site.
        call: number of its call in the forward, from 1.
        layout: how samples lie in what it strikes.
        time: the place in the order of all starts and ends of calls, and strikes.
    """

    site: FaultSite
    call: int
    layout: Layout
    time: int


@dataclass(eq=False)
class Call:
    """A call of a module.

    Attributes:
        path: path of the module in the model.
        module: the module.
        depth: number of watched calls around it.
        start: when it begins; see `Strike.time`.
        end: when it ends; None if it raised an exception.
        after: number of the first call that is not inside it.
        kept: its result; None if that cannot be kept, or is not.
        strikes: number of calls of each site up to the end, for the sites that it reaches.
        counts: calls of layers that strike their own outputs, as they count them at the end.
    """

    path: str
    module: nn.Module
    depth: int
    start: int
    end: int | None = None
    after: int = 0
    kept: KeptValue | None = None
    strikes: tuple[tuple[FaultSite, int], ...] = ()
    counts: tuple[tuple[LayerOutput, int | None, int], ...] = ()

    def pass_over(self) -> None:
        """Count what the call would have counted, as it is not made in the present forward."""
        for site, calls in self.strikes:
            site.pass_over(calls)
        for output, running, calls in self.counts:
            output.pass_over(running, calls)


@dataclass(eq=False)
class Log:
    """The calls and strikes of a forward, each in order.

    Attributes:
        calls: the calls of watched modules.
        strikes: the calls of sites.
        before: what the sites found, see `FaultSite.before`.
    """

    calls: list[Call] = field(default_factory=list)
    strikes: list[Strike] = field(default_factory=list)
    before: list[tuple[FaultSite, dict[int, Sources]]] = field(default_factory=list)

    def show_sources(self) -> None:
        """Let the sites know where their words come from in this forward."""
        for site, before in self.before:
            site.before = dict(before)

    def exposed(self, call: Call | None = None) -> Iterator[tuple[FaultSite, int]]:
        """The elements of each strike, as the sites are set now; see `HitsByBatch.pass_over`.

        The sites must know where their words come from (`show_sources`).

        Args:
            call: a call that ended: only strikes inside it count.
        """
        for strike in self.strikes:
            site, layout = strike.site, strike.layout
            inside = call is None or call.start < strike.time < (call.end or 0)
            if inside and site.armed and not is_struck_before(site, strike.call - 1):
                yield site, layout.samples * layout.elements

    @property
    def order(self) -> list[tuple[Any, ...]]:
        """What happens in the forward, without its values; equal for two alike forwards."""
        calls = [(call.path, call.start, call.end) for call in self.calls]
        return [*calls, *((strike.site.name, strike.time) for strike in self.strikes)]


def modules_to_watch(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model whose calls may be replaced by their results, by path.

    The parts of Brevitas's layers are left out, and layers that hand their words over to a graph,
    which needs more than their results.
    """
    found: dict[str, nn.Module] = {}

    def look(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            path = f"{prefix}{name}"
            output = installed(child)
            is_code = (
                isinstance(child, torch.jit.ScriptModule) or child._compiled_call_impl is not None
            )
            if not is_code and (output is None or not output.graphs):
                found.setdefault(path, child)
            if not (is_code or type(child).__module__.startswith("brevitas.")):
                look(child, f"{path}.")

    look(model, "")
    known: dict[int, str] = {}
    for path, module in found.items():
        known.setdefault(id(module), path)
    return {path: found[path] for path in known.values()}


def has_hooks(model: nn.Module) -> bool:
    """Whether there is a hook anywhere, which replaced calls would pass by."""
    hooks: list[Any] = [torch_hooks._global_forward_hooks, torch_hooks._global_forward_pre_hooks]
    for module in modules_of(model):
        hooks += [module._forward_hooks, module._forward_pre_hooks]
    return any(hooks)


@contextmanager
def intercepted(
    modules: Mapping[str, nn.Module], call: Callable[[str, nn.Module, Any, Any], Any]
) -> Iterator[None]:
    """Let a function make the calls of some modules within the block.

    Args:
        modules: modules by path.
        call: called with path, module, arguments and keyword arguments; `call_of` makes the call.
    """

    def handle(path: str, module: nn.Module) -> Callable[..., Any]:
        return lambda *args, **kwargs: call(path, module, args, kwargs)

    try:
        for path, module in modules.items():
            module.__dict__[_HANDLE] = handle(path, module)
        yield
    finally:
        for module in modules.values():
            module.__dict__[_HANDLE] = None


def call_of(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """Call a module that is intercepted, with its hooks."""
    return module._call_impl(*args, **kwargs)


class Recorder:
    """Records the log of each forward that runs while it watches.

    Attributes:
        log: the log of the present forward.
        why_not: why the log is of no use; None if it is.
        room: bytes that there is room for; None if results are only described, and not kept.
    """

    def __init__(
        self,
        sites: FaultSites,
        modules: Mapping[str, nn.Module],
        wants: Callable[[str, int], bool],
    ) -> None:
        """Prepare to record.

        Args:
            sites: the sites of the model.
            modules: the modules to watch, by path.
            wants: told the path of a module and the number of its call in the forward, from 1,
                says whether to keep the result.
        """
        self.sites, self.modules, self.wants = sites, modules, wants
        self.log = Log()
        self.why_not: str | None = None
        self.room: int | None = None
        model = sites.clock.model
        tensors = [*model.parameters(), *model.buffers()]
        self._fixed = frozenset(t.untyped_storage().data_ptr() for t in tensors if t.numel())
        self._time = self._depth = 0
        self._seen: dict[Any, int] = {}
        self._thread = threading.get_ident()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch forwards within the block; all sites are armed at 0 % and nothing strikes."""
        with armed_at_zero(self.sites), intercepted(self.modules, self._call):
            for site in self.sites:
                site.observer = self._observer(site)
            try:
                yield
            finally:
                for site in self.sites:
                    site.observer = None

    def begin(self) -> Log:
        """Start the log of a new forward."""
        self.log, self._seen = Log(), {}
        self._time = self._depth = 0
        return self.log

    def _tick(self) -> int:
        self._time += 1
        return self._time

    def _count(self, what: Any) -> int:
        self._seen[what] = self._seen.get(what, 0) + 1
        return self._seen[what]

    def _observer(self, site: FaultSite) -> Callable[[Any], Any]:
        def observe(x: Any) -> Any:
            value = getattr(x, "value", x)
            layout = site.layout_of(tuple(value.shape), self.sites.clock.batch or 1)
            self.log.strikes.append(Strike(site, self._count(site), layout, self._tick()))
            return value

        return observe

    def _call(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            self.why_not = OTHER_THREAD
            return call_of(module, args, kwargs)
        call = Call(path, module, self._depth, self._tick())
        self.log.calls.append(call)
        first, before = len(self.log.strikes), self._counts()
        arguments: Arguments | None = None
        if self.wants(path, self._count(path)):
            try:
                arguments = Arguments(args, kwargs)
            except NotKept:
                arguments = None
        modes = _modes()
        self._depth += 1
        try:
            result = call_of(module, args, kwargs)
        finally:
            self._depth -= 1
            call.after = len(self.log.calls)
        call.end = self._tick()
        reached = {strike.site for strike in self.log.strikes[first:]}
        call.strikes = tuple((site, self._seen[site]) for site in self.sites if site in reached)
        call.counts = tuple(count for count in self._counts() if count not in before)
        if arguments is not None and modes == _modes():
            call.kept = self._kept(result, arguments)
        return result

    def _kept(self, result: Any, arguments: Arguments) -> KeptValue | None:
        try:
            if arguments.changed:
                return None
            kept = KeptValue(result, arguments, self._fixed)
        except NotKept:
            return None
        if self.room is None:
            kept.forget()
            return kept
        size = kept.bytes
        if size > self.room or not _kept_copy(kept):
            return None
        self.room -= size
        return kept

    def _counts(self) -> set[tuple[LayerOutput, int | None, int]]:
        """The calls that layers have counted in the present forward."""
        found = set()
        for output in self.sites.outputs:
            if isinstance(output, LayerOutput):
                counted = output.counted
                if counted is not None:
                    found.add((output, *counted))
        return found


def _kept_copy(kept: KeptValue) -> bool:
    """Copy a result; returns whether there was memory for it."""
    try:
        kept.keep()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _modes() -> tuple[Any, ...]:
    return (
        *(torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        *(torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        torch.get_default_dtype(),
    )
