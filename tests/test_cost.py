"""What faults cost, counted: operator calls, copies, elements touched, waits, nodes.

Times depend on the machine and its mood, counts do not: where one of these grows, the code has
become slower, and whoever made it so should know why. A bound may always be lowered.
"""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from brevitas.nn import QuantIdentity
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import fxfault
from fxfault.faults import kernels
from fxfault.functional import begin_forward, fault_inject
from fxfault.passes import trace
from fxfault.strike import strikes

Faulty = Callable[..., Any]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take activations for large ones, which are overwritten where nobody sees them."""
    monkeypatch.setattr(strikes, "SMALL", 0)


MODELS = ("random", "lsb_flip", "msb_flip", "full_flip")

# Of one armed site on the CPU: scale, zero point and signedness are read as numbers
# (Brevitas keeps it in a tensor), and the values are handed to NumPy (a view, detached).
CALLS_IN_PLACE = 5
CALLS_COPYING = CALLS_IN_PLACE + 1

# Python functions that run for a site that is not armed: `fault_inject`, whether torch compiles,
# `take`, `moment_of`, `armed`; and `why_quiet`, unless the site is not selected.
PYTHON_CALLS_UNARMED = 6

# Python functions that run for one strike of an evaluation on the CPU, the compiled loop counted.
PYTHON_CALLS_STRIKE = 20

# Of one armed site on an accelerator, each a kernel to launch, and the numbers that they make for
# each gap that is drawn: random bits by three rounds of a hash, the gap, the position, the code.
CALLS_ON_DEVICE = 101
NUMBERS_FOR_A_DRAW = 36

# Operators that make the host wait for a device, or need a size that only the device knows.
WAITING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique")


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a torch operator.

    Attributes:
        name: without its namespace and overload.
        given: the tensors among its arguments.
        made: the tensors that it returns.
    """

    name: str
    given: tuple[Tensor, ...]
    made: tuple[Tensor, ...]

    @property
    def fresh(self) -> int:
        """Elements of new memory that it filled; a view has none."""
        known = {memory(tensor) for tensor in self.given}
        return sum(tensor.numel() for tensor in self.made if memory(tensor) not in known)


class Calls(TorchDispatchMode):
    """Writes down every operator call within it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given, made = tensors((args, kwargs)), tensors(result)
        self.calls.append(Call(func.overloadpacket.__name__, given, made))
        return result

    @property
    def names(self) -> list[str]:
        return [call.name for call in self.calls]

    def copies(self, elements: int) -> list[str]:
        """Operators that made a tensor at least as large as the activation."""
        return [call.name for call in self.calls if call.fresh >= elements]


def tensors(tree: Any) -> tuple[Tensor, ...]:
    return tuple(leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor))


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def calls_of(run: Callable[[], object]) -> Calls:
    """Every operator call of a run, after another that fills the caches."""
    run()
    with Calls() as calls:
        run()
    return calls


def quantiser(**settings: Any) -> nn.Sequential:
    """A network of one signed 4-bit site, of fixed scale."""
    defaults = {"bit_width": 4, "scaling_impl_type": "const", "scaling_init": 2.0}
    options = {**defaults, "return_quant_tensor": True, **settings}
    return nn.Sequential(QuantIdentity(**options)).eval()


def activation(*shape: int) -> Any:
    """What `quantiser` gives for random numbers."""
    with torch.no_grad():
        return quantiser()(torch.randn(shape))


def disable(net: Any) -> None:
    net.faults.enabled = False


def other_mode(net: Any) -> None:
    net.faults.clock.apply_during = "train"


def deselect(net: Any) -> None:
    net.faults.select([])


# -- unarmed -----------------------------------------------------------------------------


@pytest.mark.parametrize("disarm", [disable, other_mode, deselect])
@pytest.mark.parametrize("grad", [False, True])
def test_unarmed_network_calls_what_the_clean_one_calls(
    convnet: nn.Module, faulty: Faulty, disarm: Callable[[Any], None], grad: bool
) -> None:
    x, net = torch.randn(4, 3, 6, 6), faulty(convnet)
    disarm(net)
    with torch.set_grad_enabled(grad):
        assert calls_of(lambda: net(x)).names == calls_of(lambda: convnet(x)).names


@pytest.mark.parametrize("disarm", [disable, other_mode, deselect])
def test_unarmed_site_runs_few_python_functions_and_no_operator(
    faulty: Faulty, disarm: Callable[[Any], None]
) -> None:
    net, x = faulty(quantiser()), activation(4, 5)
    disarm(net)
    site = net.faults[0]
    assert calls_of(lambda: fault_inject(x, site)).names == []
    _, *entered = python_calls(lambda: fault_inject(x, site))  # Without the lambda.
    assert 0 < len(entered) <= PYTHON_CALLS_UNARMED, entered


@torch.no_grad()
@pytest.mark.parametrize("shape", [(4, 50), (64, 3000)])
@pytest.mark.parametrize("private", [True, False])
def test_a_strike_runs_few_python_functions(
    faulty: Faulty, shape: tuple[int, int], private: bool
) -> None:
    net, x = faulty(quantiser(), probability=1.0), activation(*shape)
    site = net.faults[0]
    site.layer = site.layer if private else None
    large = private and x.value.numel() >= strikes.SMALL
    net.faults.clock.begin(shape[0])
    fault_inject(x, site)  # What is worked out once is worked out here.
    _, *entered = python_calls(lambda: fault_inject(x, site))
    assert "strike" in entered or "any_hit" in entered
    assert ("makes_private_tensor" in entered) == large
    assert len(entered) <= PYTHON_CALLS_STRIKE, entered


def python_calls(run: Callable[[], object]) -> list[str]:
    """The Python functions that a run enters, properties among them."""
    entered: list[str] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            entered.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return entered


def test_clock_moves_without_an_operator(faulty: Faulty) -> None:
    net, x = faulty(quantiser()), torch.randn(4, 5)
    assert calls_of(lambda: begin_forward(net.faults, x)).names == []


# -- copies ------------------------------------------------------------------------------


@pytest.mark.usefixtures("large")
@torch.no_grad()
@pytest.mark.parametrize("percent", [0.1, 50.0])
@pytest.mark.parametrize("statistics", [False, True])
def test_private_activation_is_not_copied(faulty: Faulty, percent: float, statistics: bool) -> None:
    x = torch.randn(40, 250)
    clean, net = quantiser(), faulty(quantiser(), probability=percent, track_statistics=statistics)
    ours, theirs = (calls_of(lambda net=n: net(x)).copies(x.numel()) for n in (net, clean))
    assert ours == theirs


class Twice(nn.Module):
    """An activation with two users."""

    def __init__(self) -> None:
        super().__init__()
        self.act = quantiser()[0]

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        y = self.act(x)
        return y.value.sum(), y


def with_hook(net: nn.Module) -> None:
    net.get_submodule("0").register_forward_hook(lambda module, args, output: None)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("case", ["gradient", "two users", "hook"])
@pytest.mark.parametrize("statistics", [False, True])
def test_seen_activation_is_copied_once(faulty: Faulty, case: str, statistics: bool) -> None:
    x = torch.randn(40, 250, requires_grad=case == "gradient")
    clean = Twice().eval() if case == "two users" else quantiser()
    net = faulty(clean, probability=1.0, track_statistics=statistics)
    if case == "hook":
        with_hook(net)
    with torch.set_grad_enabled(case == "gradient"):
        ours = calls_of(lambda: net(x)).copies(x.numel())
        theirs = calls_of(lambda: clean(x)).copies(x.numel())
    assert sorted(ours) == sorted([*theirs, "clone"])


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("grad", [False, True])
def test_nothing_is_copied_where_nothing_is_hit(faulty: Faulty, grad: bool) -> None:
    x = torch.randn(40, 250, requires_grad=grad)
    clean, net = quantiser(), faulty(quantiser(), probability=1e-9)
    with_hook(net)
    with torch.set_grad_enabled(grad):
        ours, theirs = (calls_of(lambda net=n: net(x)).copies(x.numel()) for n in (net, clean))
    assert ours == theirs


# -- elements that are touched -----------------------------------------------------------


class Watched:
    """Stands in for an array and notes which elements are read and written."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array
        self.dtype, self.size, self.shape = array.dtype, array.size, array.shape
        self.read: list[int] = []
        self.written: list[int] = []

    def __getitem__(self, place: int) -> Any:
        self.read.append(int(place))
        return self.array[int(place)]

    def __setitem__(self, place: int, value: Any) -> None:
        self.written.append(int(place))
        self.array[int(place)] = value


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """The activations that the loop strikes, which Python runs here in the place of Numba."""
    seen: list[Watched] = []

    def values_at(address: int, like: np.ndarray[Any, Any], count: int) -> Watched:
        memory = (ctypes.c_float * count).from_address(address)
        seen.append(Watched(np.ctypeslib.as_array(memory)))
        return seen[-1]

    for name in ("strike", "_strike_one"):
        monkeypatch.setattr(kernels, name, getattr(kernels, name).py_func)
    monkeypatch.setattr(kernels, "_values_at", values_at)
    return seen


@torch.no_grad()
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("percent", [0.1, 5.0, 100.0])
def test_loop_reads_and_writes_each_hit_once_and_nothing_else(
    faulty: Faulty, watched: list[Watched], model: str, percent: float
) -> None:
    net = faulty(quantiser(), probability=percent, injection_type=model)
    statistics, x = net.faults.new_statistics(), torch.randn(40, 50)
    net(x)
    (values,) = watched
    assert 0 < len(values.read) == statistics.to_dict()["total_injections"]
    assert values.read == values.written == sorted(set(values.read))
    assert percent < 100 or values.read == list(range(x.numel()))


@pytest.mark.usefixtures("large")
@torch.no_grad()
def test_torch_reads_and_writes_each_hit_once_and_nothing_else(faulty: Faulty) -> None:
    layer = QuantIdentity(  # The loop does not take a scale for each channel.
        bit_width=4,
        scaling_per_output_channel=True,
        per_channel_broadcastable_shape=(1, 5, 1),
        scaling_stats_permute_dims=(1, 0, 2),
        return_quant_tensor=True,
    )
    layer(torch.randn(40, 5, 30))
    net = faulty(nn.Sequential(layer).eval(), probability=2.0)
    x, statistics = layer(torch.randn(40, 5, 30)), net.faults.new_statistics()
    fault_inject(x, net.faults[0])
    net.faults.set_statistics(None)
    calls = calls_of(lambda: fault_inject(x, net.faults[0])).calls
    read = [call.fresh for call in calls if memory(x.value) in map(memory, call.given)]
    written = [
        call.given[1].numel()
        for call in calls
        if call.name.endswith("_") and memory(x.value) == memory(call.given[0])
    ]
    assert sum(read) == sum(written) == statistics.to_dict()["total_injections"] > 0


@pytest.mark.usefixtures("large")
@torch.no_grad()
def test_statistics_read_the_activation_once(faulty: Faulty) -> None:
    x, net = activation(40, 250), faulty(quantiser(), probability=1.0)
    net.faults.new_statistics()
    calls = calls_of(lambda: fault_inject(x, net.faults[0])).calls
    whole = [
        call.name
        for call in calls
        if any(memory(x.value) == memory(tensor) for tensor in call.given)
        and not any(memory(x.value) == memory(tensor) for tensor in call.made)
    ]
    assert whole == ["linalg_vector_norm"]


# -- operator calls ----------------------------------------------------------------------


@pytest.mark.usefixtures("large")
@torch.no_grad()
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("percent", [1e-6, 1.0, 60.0])
@pytest.mark.parametrize("shape", [(4, 5), (64, 3000)])
def test_armed_site_calls_as_much_whatever_its_size_and_rate(
    faulty: Faulty, model: str, percent: float, shape: tuple[int, int]
) -> None:
    net, x = faulty(quantiser(), probability=percent, injection_type=model), activation(*shape)
    net.faults.clock.begin(shape[0])
    calls = calls_of(lambda: fault_inject(x, net.faults[0]))
    assert len(calls.names) <= CALLS_IN_PLACE, calls.names
    shared = copy.copy(net.faults[0])
    shared.layer = None  # As where the graph has two users of the activation.
    calls = calls_of(lambda: fault_inject(x, shared))
    assert len(calls.names) <= CALLS_COPYING, calls.names


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("sites", [1, 3, 20])
def test_operator_calls_are_linear_in_sites(faulty: Faulty, sites: int) -> None:
    x, clean = torch.randn(8, 30), nn.Sequential(*(quantiser() for _ in range(sites)))
    net = faulty(clean, probability=1.0)
    with torch.no_grad():
        added = len(calls_of(lambda: net(x)).names) - len(calls_of(lambda: clean(x)).names)
    assert 0 < added <= CALLS_IN_PLACE * sites


@pytest.mark.parametrize("gradient_mode", ["ste", "zero_faulty"])
def test_operator_calls_of_a_training_step(faulty: Faulty, gradient_mode: str) -> None:
    def step(net: nn.Module) -> None:
        y: Any = net(torch.ones(8, 30, requires_grad=True))
        y.value.sum().backward()

    clean, net = quantiser(), faulty(quantiser(), probability=5.0, gradient_mode=gradient_mode)
    added = len(calls_of(lambda: step(net)).names) - len(calls_of(lambda: step(clean)).names)
    # One site that copies a detached tensor. `zero_faulty` also keeps the hits (3 to unpack and
    # join their positions, the factor, a detached input) and blanks them in a copy of the
    # gradient (3).
    assert 0 < added <= CALLS_COPYING + {"ste": 1, "zero_faulty": 9}[gradient_mode]


# -- frozen ------------------------------------------------------------------------------


@pytest.mark.usefixtures("large")
@torch.no_grad()
def test_operator_calls_of_a_frozen_forward(convnet: nn.Module, faulty: Faulty) -> None:
    x = torch.randn(4, 3, 6, 6)
    net = faulty(convnet, probability=1.0)
    unfrozen, frozen, struck = (
        calls_of(lambda model=m: model(x)).names
        for m in (convnet, fxfault.freeze(convnet), fxfault.freeze(net))
    )
    # Three activations of 5; a convolution; normalisation; reshaping; two linear layers of 2
    # (their weight is transposed by a view).
    assert len(frozen) <= 23
    assert len(frozen) < len(struck) <= 23 + 3 * CALLS_IN_PLACE
    assert len(unfrozen) > 10 * len(frozen)


# -- waits for a device ------------------------------------------------------------------


class NoWaits(Calls):
    """Refuses what would make the host wait; reading a number that is on the host is free."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        call = self.calls[-1]
        on_device = any(tensor.is_meta for tensor in call.given)
        assert not (on_device and call.name in WAITING), call.name
        assert not (on_device and any(tensor.is_cpu for tensor in call.made)), call.name
        return result


# A device without memory: it goes the way of an accelerator, and torch raises there too where a
# value is asked for. `tests/test_gpu.py` asks a real one.
META = torch.device("meta")


@torch.no_grad()
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("statistics", [False, True])
def test_forward_on_a_device_never_waits(faulty: Faulty, model: str, statistics: bool) -> None:
    plain = {"return_quant_tensor": False}  # Brevitas's own layers wait where they get the other.
    chain = nn.Sequential(quantiser()[0], quantiser(**plain)[0], nn.Linear(60, 9), quantiser()[0])
    settings = {"injection_type": model, "track_statistics": statistics}
    net = faulty(chain, probability=3.0, **settings).to(META)
    with NoWaits() as calls:
        net(torch.empty(4, 60, device=META))
        net(torch.empty(4, 60, device=META))
    assert calls.names.count("index_select") == 2 * 3  # Each of three sites was struck.


@pytest.mark.parametrize("gradient_mode", ["ste", "zero_faulty"])
def test_backward_on_a_device_never_waits(faulty: Faulty, gradient_mode: str) -> None:
    net = faulty(quantiser(), probability=3.0, gradient_mode=gradient_mode).to(META)
    with NoWaits() as calls:
        y = net(torch.empty(4, 60, device=META, requires_grad=True))
        y.value.sum().backward()
    assert "index_select" in calls.names


@torch.no_grad()
@pytest.mark.parametrize("model", MODELS)
def test_work_on_a_device_follows_hits_not_elements(faulty: Faulty, model: str) -> None:
    work = []
    for elements, hits in ((10**6, 100), (10**8, 100), (10**8, 10_000)):
        percent = 100 * hits / elements
        net = faulty(quantiser(), probability=percent, injection_type=model).to(META)
        x = net[0](torch.empty(4, elements, device=META))
        net.faults.clock.begin(4)
        site = net.faults[0]
        calls = calls_of(lambda x=x, site=site: fault_inject(x, site)).calls
        assert len(calls) <= CALLS_ON_DEVICE
        work.append(sum(call.fresh for call in calls))
        # Of each of 4 samples: so many that they surely span it.
        draws = math.ceil(hits + 9 * math.sqrt(hits)) + 60
        assert work[-1] <= NUMBERS_FOR_A_DRAW * 4 * draws
    assert work[0] == work[1] < work[2]


# -- graph -------------------------------------------------------------------------------


@pytest.mark.parametrize("sites", [1, 4, 9])
def test_graph_grows_by_two_nodes_for_a_site_and_two_for_the_clock(
    faulty: Faulty, sites: int
) -> None:
    clean = nn.Sequential(*(layer for _ in range(sites) for layer in (nn.ReLU(), quantiser()[0])))
    traced: Any = trace(clean, fxfault.FaultInjectionConfig(targets=("QuantIdentity",)))
    before, after = traced.graph.nodes, faulty(clean).graph.nodes
    # The site and its call; the sites and the one call that moves the clock.
    assert len(after) - len(before) == 2 * sites + 2
    targets = [node.target for node in after]
    assert targets.count(fault_inject) == sites
    assert targets.count(begin_forward) == 1
