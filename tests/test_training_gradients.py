"""Training with faults: gradients through whole networks, learned scales, what torch offers.

The reference is the same network run eagerly. Behind every activation stands a `Probe`: in
the transformed network it is looked at, in the eager one it puts the same faulty values in
the same places, with the gradient of the mode written out by hand.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from brevitas.inject.enum import BitWidthImplType, RestrictValueType, ScalingImplType
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import Int8Bias, ShiftedUint8ActPerTensorFloat
from brevitas.quant_tensor import IntQuantTensor
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import fxfault
from fxfault import functional
from fxfault.errors import SiteError
from fxfault.faults.sampling import random_hits
from fxfault.quantisers.quant_tensors import plain
from fxfault.strike import draws, plan
from fxfault.strike import moments as recomputation

# What torch says of a checkpoint within another, whose first run is without gradients.
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")

MODES = ("ste", "zero_faulty")


def data(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def transformed(model: nn.Module, **settings: Any) -> Any:
    """Every third element flipped in each training step, unless told otherwise."""
    defaults = {"enabled": True, "probability": 30.0, "injection_type": "full_flip", "seed": 5}
    return fxfault.transform(model, {**defaults, "step_interval": 1.0, **settings})


# -- networks ----------------------------------------------------------------------------


class Probe(nn.Identity):
    """Shows, or replaces, what leaves an activation."""


class Residual(nn.Module):
    """Convolutions, batch norm, an activation that is used twice, QuantTensors that are added.

    Where these are QuantTensors, the bias of the last layer is quantised with their scale.
    """

    def __init__(self, **scale: Any) -> None:
        super().__init__()
        signed = {"bit_width": 4, "return_quant_tensor": True, **scale}
        relu = {key: value for key, value in signed.items() if key not in ("act_quant", "min_val")}
        self.first = QuantIdentity(**signed)
        self.conv1 = QuantConv2d(4, 4, 3, padding=1, bias=False, weight_bit_width=4)
        self.norm1 = nn.BatchNorm2d(4)
        self.relu = QuantReLU(**relu)
        self.conv2 = QuantConv2d(4, 4, 3, padding=1, bias=False, weight_bit_width=4)
        self.norm2 = nn.BatchNorm2d(4)
        self.shared = QuantIdentity(**signed)
        self.last = QuantReLU(**relu)
        self.probes = nn.ModuleList(Probe() for _ in range(5))
        bias = Int8Bias if signed["return_quant_tensor"] else None
        self.out = QuantLinear(4 * 16, 5, bias=True, weight_bit_width=4, bias_quant=bias)

    def forward(self, x: Tensor) -> Any:
        x = self.probes[0](self.first(x))
        x = self.probes[1](self.shared(self.norm1(self.conv1(x))))
        y = self.probes[2](self.relu(x))
        y = self.probes[3](self.shared(self.norm2(self.conv2(y))))
        z = self.probes[4](self.last(x + y))
        return self.out(z.flatten(1))


class Plain(nn.Module):
    """Activations that return plain tensors, one of them with two users."""

    def __init__(self, **scale: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 12)
        self.act = QuantReLU(bit_width=4, **scale)
        self.inner = nn.Linear(12, 12)
        self.probes = nn.ModuleList(Probe() for _ in range(2))
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.probes[0](self.act(self.linear(x)))
        y = self.probes[1](self.act(self.inner(x) + x))
        return self.out(x * y)


class Kept(Plain):
    """One whose forward cannot be traced: its activation strikes by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.detach().sum() < 1e9 else x


# -- the reference -----------------------------------------------------------------------


@contextlib.contextmanager
def probed(model: nn.Module, react: Callable[[str, Any], Any]) -> Iterator[None]:
    """Have a function called with the name of each probe and what passes through it."""

    def hook(name: str) -> Any:
        return lambda module, inputs, output: react(name, output)

    probes = [(n, m) for n, m in model.named_modules() if isinstance(m, Probe)]
    handles = [module.register_forward_hook(hook(name)) for name, module in probes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Reference:
    """Runs a transformed network, then its eager twin with the same faulty values."""

    def __init__(self, model: nn.Module, mode: str, **settings: Any) -> None:
        self.eager = copy.deepcopy(model)
        self.faulty = transformed(model, gradient_mode=mode, **settings)
        self.mode = mode
        self.struck: dict[str, Tensor] = {}
        self.hits: dict[str, Tensor] = {}

    def run(self, x: Tensor) -> tuple[Any, Any]:
        """The outputs of the transformed and of the eager network."""
        with probed(self.faulty, self._keep):
            struck = self.faulty(x)
        with probed(self.eager, self._replace):
            return struck, self.eager(x)

    def _keep(self, name: str, output: Any) -> None:
        self.struck[name] = plain(output).detach().clone()

    def _replace(self, name: str, output: Any) -> Any:
        clean, faulty = plain(output), self.struck[name]
        hit = self.hits[name] = faulty != clean.detach()
        if self.mode == "zero_faulty":
            value = torch.where(hit, faulty, clean)
        else:
            value = torch.where(hit, faulty, clean.detach()) + (clean - clean.detach())
        return output._replace(value=value) if plain(output) is not output else value


def named_gradients(model: nn.Module, x: Tensor, loss: Tensor, **options: Any) -> dict[str, Any]:
    parameters = {"input": x, **dict(model.named_parameters())}
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, **options)
    return dict(zip(parameters, grads, strict=True))


def weighted(output: Any) -> Tensor:
    """A loss that has another gradient at every output."""
    value = plain(output)
    return (value * data(*value.shape, seed=9)).sum() + value.square().mean()


def assert_alike(have: dict[str, Any], want: dict[str, Any]) -> None:
    """Bit for bit."""
    assert have.keys() == want.keys()
    for name, value in want.items():
        assert (have[name] is None) == (value is None), name
        assert value is None or torch.equal(have[name], value), name


NETS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (6, 4, 4, 4)),
    "plain": (Plain, (6, 12)),
    "kept": (Kept, (6, 12)),
}
STATS = {"scaling_impl_type": ScalingImplType.PARAMETER_FROM_STATS, "collect_stats_steps": 4}
SCALES: dict[str, dict[str, Any]] = {
    "statistics": STATS,
    "parameter": {"scaling_impl_type": ScalingImplType.PARAMETER, "min_val": -2, "max_val": 2.0},
    "log": {**STATS, "restrict_scaling_type": RestrictValueType.LOG_FP},
    "power of two": {**STATS, "restrict_scaling_type": RestrictValueType.POWER_OF_TWO},
    "bit width": {**STATS, "bit_width_impl_type": BitWidthImplType.PARAMETER},
}
ONLY_RESIDUAL: dict[str, dict[str, Any]] = {
    "channels": {
        **STATS,
        "scaling_per_output_channel": True,
        "per_channel_broadcastable_shape": (1, 4, 1, 1),
        "scaling_stats_permute_dims": (1, 0, 2, 3),
        "return_quant_tensor": False,
    },
    "zero point": {
        **STATS,
        "act_quant": ShiftedUint8ActPerTensorFloat,
        "return_quant_tensor": False,
    },
}


def build(net: str, scale: str, steps: int) -> tuple[nn.Module, Tensor]:
    """A network in training mode after some clean steps, and an input for it."""
    torch.manual_seed(0)
    kind, shape = NETS[net]
    settings = {**SCALES, **ONLY_RESIDUAL}[scale]
    if net != "residual":
        settings = {key: value for key, value in settings.items() if key != "min_val"}
    model = kind(**settings)
    with torch.no_grad():
        for step in range(steps):
            model(data(*shape, seed=step))
    return model, data(*shape, seed=20)


CASES = [("residual", scale) for scale in (*SCALES, *ONLY_RESIDUAL)]
CASES += [(net, scale) for net in ("plain", "kept") for scale in ("statistics", "bit width")]


@pytest.mark.usefixtures("small_tensors")
@pytest.mark.parametrize("steps", [1, 8], ids=["collecting", "learned"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("net", "scale"), CASES)
def test_whole_network_has_the_gradients_written_by_hand(
    net: str, scale: str, mode: str, steps: int
) -> None:
    model, x = build(net, scale, steps)
    reference = Reference(model, mode)
    x.requires_grad_()
    struck, eager = reference.run(x)
    assert torch.equal(plain(struck), plain(eager))
    for name, hit in reference.hits.items():
        assert 0.1 < hit.float().mean() < 0.5, name  # So few only if the rest is bit-identical.
    assert len(reference.hits) == len(reference.faulty.faults) or net == "kept"
    have = named_gradients(reference.faulty, x, weighted(struck))
    assert_alike(have, named_gradients(reference.eager, x, weighted(eager)))
    assert_alike(dict(reference.faulty.named_buffers()), dict(reference.eager.named_buffers()))
    if steps > STATS["collect_stats_steps"]:
        learned = {n: g for n, g in have.items() if "scaling_impl.value" in n or "bit_width" in n}
        assert len(learned) >= sum(isinstance(m, QuantReLU) for m in model.modules())
        for name, gradient in learned.items():
            assert gradient is not None, name
            assert bool(gradient.isfinite().all()), name
            assert bool(gradient.any()), name


@pytest.mark.parametrize("settings", [{"hw_mask": True, "frequency_value": 16}, {}], ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("net", NETS)
def test_gradients_can_be_derived_again(net: str, mode: str, settings: dict[str, Any]) -> None:
    """A penalty on the gradient of the input, as for Lipschitz networks."""
    model, x = build(net, "statistics", 8)
    reference = Reference(model, mode, **settings)
    x.requires_grad_()
    found = []
    outputs = reference.run(x)
    for twin, output in zip((reference.faulty, reference.eager), outputs, strict=True):
        (slope,) = torch.autograd.grad(weighted(output), x, create_graph=True)
        found.append(named_gradients(twin, x, slope.square().sum()))
    assert_alike(*found)
    assert any(gradient is not None and bool(gradient.any()) for gradient in found[0].values())


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("contiguous", [False, True])
def test_no_gradient_is_so_large_that_it_comes_through_a_hit(
    monkeypatch: pytest.MonkeyPatch, contiguous: bool, fixed: bool
) -> None:
    """Infinity times 0 is no 0: an overflow of mixed precision stays where it happened."""
    draw = functools.partial(random_hits, fixed_size=fixed)
    monkeypatch.setattr(draws, "random_hits", draw)
    if fixed:
        monkeypatch.setattr(plan, "order_for_loops", lambda *given: None)
    net = transformed(nn.Sequential(QuantIdentity(bit_width=4)), gradient_mode="zero_faulty")
    clean = torch.arange(-8.0, 8.0).reshape(4, 4).requires_grad_()
    numbers = [torch.tensor(number) for number in (1.0, 0.0, 4.0)]
    quantised = IntQuantTensor(clean, *numbers, signed=True, training=True)
    struck = functional.fault_inject(quantised, net.faults[0]).value
    hit = (struck != clean).detach()
    assert 0 < int(hit.sum()) < hit.numel()
    upstream = torch.full((4, 4), torch.inf)
    struck.backward(upstream if contiguous else upstream.t())
    assert torch.equal(clean.grad, torch.where(hit, 0.0, torch.inf))


# -- training steps ----------------------------------------------------------------------


def gradients(model: nn.Module) -> dict[str, Any]:
    return {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("net", NETS)
def test_accumulated_gradients_are_the_sum_of_the_parts(net: str, mode: str) -> None:
    model, x = build(net, "statistics", 8)
    twin = transformed(copy.deepcopy(model), gradient_mode=mode)
    faulty = transformed(model, gradient_mode=mode)
    parts = []
    for part in x.split(3):
        weighted(faulty(part)).backward()
        twin.zero_grad()
        weighted(twin(part)).backward()
        parts.append(gradients(twin))
    for name, gradient in gradients(faulty).items():
        both = [part[name] for part in parts if part[name] is not None]
        assert (gradient is None) == (not both), name
        assert gradient is None or torch.equal(gradient, sum(both)), name


@pytest.mark.parametrize("mode", MODES)
def test_accumulation_over_parts_is_one_pass_over_the_joined_batch(mode: str) -> None:
    """A sample meets the same faults in either, and no layer here mixes samples."""
    found = []
    for parts in (1, 3):
        model, x = build("plain", "statistics", 8)
        faulty = transformed(model.double(), gradient_mode=mode)
        for part in x.double().chunk(parts):
            faulty(part).square().sum().backward()
        found.append(gradients(faulty))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_clipping_sees_the_gradients_of_the_mode(mode: str) -> None:
    model, x = build("residual", "statistics", 8)
    reference = Reference(model, mode)
    norms = []
    for twin, output in zip((reference.faulty, reference.eager), reference.run(x), strict=True):
        weighted(output).backward()
        norms.append(nn.utils.clip_grad_norm_(twin.parameters(), 0.5))
    assert norms[0] == norms[1] > 0.5
    assert_alike(gradients(reference.faulty), gradients(reference.eager))
    left = [
        gradient.norm() for gradient in gradients(reference.faulty).values() if gradient is not None
    ]
    assert torch.stack(left).norm() == pytest.approx(0.5, rel=1e-4)


def labelled(net: str) -> tuple[Tensor, Tensor]:
    """Samples of three classes that a network can tell apart."""
    shape = (48, *NETS[net][1][1:])
    labels = torch.arange(48) % 3
    centres = data(3, *shape[1:], seed=30)
    return centres[labels] + 0.3 * data(*shape, seed=31), labels


def losses_of(
    faulty: Any, net: str, steps: int, autocast: bool = False, clip: float | None = None
) -> list[float]:
    """Train with AdamW; the loss of each step."""
    samples, labels = labelled(net)
    optimiser = torch.optim.AdamW(faulty.parameters(), lr=1e-2)
    losses = []
    for step in range(steps):
        part = slice(16 * (step % 3), 16 * (step % 3) + 16)
        optimiser.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output = plain(faulty(samples[part])).float()
        loss = nn.functional.cross_entropy(output, labels[part])
        loss.backward()
        for name, parameter in faulty.named_parameters():
            assert parameter.grad is None or bool(parameter.grad.isfinite().all()), name
        if clip is not None:
            nn.utils.clip_grad_norm_(faulty.parameters(), clip)
        optimiser.step()
        losses.append(loss.item())
    return losses


LOSS_CASES = [("residual", scale) for scale in ("statistics", "log", "bit width")]
LOSS_CASES += [("plain", "power of two"), ("kept", "parameter")]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("net", "scale"), LOSS_CASES)
def test_training_decreases_the_loss(net: str, scale: str, mode: str) -> None:
    model, _ = build(net, scale, 0)
    faulty = transformed(model, gradient_mode=mode, probability=10.0, injection_type="random")
    losses = losses_of(faulty, net, steps=24, clip=5.0)
    assert sum(losses[-6:]) < 0.7 * sum(losses[:6])
    for name, tensor in faulty.state_dict().items():
        assert bool(tensor.isfinite().all()), name


# -- gradient checkpointing --------------------------------------------------------------


class Repeating(nn.Module):
    """A forward of its own (it looks at its values) that runs its blocks by `call`.

    The first block is called twice, so that its sites have a first and a second call.
    """

    def __init__(self, how: str | None, reentrant: bool, norm: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(12, 12),
                nn.BatchNorm1d(12) if norm else nn.LayerNorm(12),
                QuantReLU(bit_width=4, collect_stats_steps=1, return_quant_tensor=True),
                QuantLinear(12, 12, bias=True, weight_bit_width=4),
                QuantIdentity(bit_width=4, collect_stats_steps=1),
            )
            for _ in range(2)
        )
        self.out = nn.Linear(12, 3)
        self.how, self.reentrant = how, reentrant

    def call(self, block: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return checkpoint(block, x, use_reentrant=self.reentrant)  # type: ignore[no-any-return]

    def all_blocks(self, x: Tensor) -> Tensor:
        each = self.how in ("each", "nested")
        for block in (self.blocks[0], self.blocks[1], self.blocks[0]):
            x = x + (self.call(block, x) if each else block(x))
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.detach().sum() > 1e9:
            return x
        x = self.call(self.all_blocks, x) if self.how in ("all", "nested") else self.all_blocks(x)
        return self.out(x)


HOW = ("each", "all", "nested", "whole")


def repeating(how: str | None, reentrant: bool, norm: bool = False, **settings: Any) -> Any:
    """One of them, transformed, its scales collected, in double precision."""
    torch.manual_seed(0)
    model = Repeating(None, reentrant, norm)
    with torch.no_grad():
        for seed in range(3):
            model(data(6, 12, seed=seed))
    model.how = how
    return transformed(model.double(), gradient_mode="zero_faulty", step_interval=0.5, **settings)


def run(faulty: Any, x: Tensor) -> Tensor:
    if faulty.how == "whole":
        return checkpoint(faulty, x, use_reentrant=faulty.reentrant)  # type: ignore[no-any-return]
    return faulty(x)  # type: ignore[no-any-return]


def samples(count: int) -> list[Tensor]:
    return [data(6, 12, seed=40 + i).double().requires_grad_() for i in range(count)]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("how", HOW)
def test_training_steps_are_the_same_with_checkpointing(
    how: str, reentrant: bool, norm: bool
) -> None:
    """Batch norm updates its statistics in the repetition too; the batch's own do not change."""
    weights, statistics, noisy = trained(how, reentrant, norm)
    expected, expected_statistics, expected_noisy = trained(None, False, norm)
    assert noisy == expected_noisy
    assert set(noisy) == {False, True}
    assert_alike(weights, expected)
    assert statistics == expected_statistics


@functools.cache
def trained(how: str | None, reentrant: bool, norm: bool) -> tuple[dict[str, Tensor], Any, Any]:
    """Weights, statistics, and which steps were noisy, after four steps of training."""
    faulty, noisy = repeating(how, reentrant, norm), []
    statistics = faulty.faults.new_statistics()
    optimiser = torch.optim.AdamW(faulty.parameters(), lr=1e-2)
    for x in samples(4):
        optimiser.zero_grad()
        run(faulty, x).square().sum().backward()
        optimiser.step()
        noisy.append(faulty.faults.clock.why_quiet is None)
    weights = {n: p.detach().clone() for n, p in faulty.named_parameters()}
    return weights, statistics.to_dict(), noisy


def test_checkpointed_batch_norm_keeps_its_statistics_with_an_adapted_momentum() -> None:
    """Two updates with 1 - sqrt(1 - m) are one with m."""
    found = []
    for how in (None, "all"):
        faulty = repeating(how, False, norm=True)
        for norm in (m for m in faulty.modules() if isinstance(m, nn.BatchNorm1d)):
            norm.momentum = 0.1 if how is None else 1 - 0.9**0.5
        for x in samples(3):
            run(faulty, x).square().sum().backward()
        buffers = dict(faulty.named_buffers())
        found.append([b for n, b in buffers.items() if n.startswith("blocks.1") and "running" in n])
    assert len(found[0]) == 2
    for with_checkpoints, without in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(with_checkpoints, without, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("how", HOW)
def test_several_forwards_before_one_backward_repeat_their_own_faults(
    how: str, reentrant: bool, small_tensors: str
) -> None:
    """Some of them noisy, and an evaluation with other batches last: each moves the clock."""
    found = after_five_forwards(how, reentrant, small_tensors)
    expected = after_five_forwards(None, False, small_tensors)
    # Not bit for bit: the parts of a sum come in another order.
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@functools.cache
def after_five_forwards(how: str | None, reentrant: bool, small_tensors: str) -> Any:
    """The gradients of five losses, of which some were struck."""
    faulty = repeating(how, reentrant, apply_during="both")
    noisy, losses = [], []
    for x in samples(5):
        losses.append(run(faulty, x).square().sum())
        noisy.append(faulty.faults.clock.why_quiet is None)
    faulty.eval()
    run(faulty, data(9, 12).double().requires_grad_())
    faulty.train()
    torch.stack(losses).sum().backward()
    assert set(noisy) == {False, True}
    assert faulty.faults.clock.step == 5
    return gradients(faulty)


@pytest.mark.parametrize("how", HOW)
def test_a_second_backward_repeats_the_same_faults_once_more(how: str) -> None:
    faulty = repeating(how, False)
    loss = sum(run(faulty, x).square().sum() for x in samples(2))
    loss.backward(retain_graph=True)
    once = gradients(faulty)
    faulty.zero_grad()
    loss.backward()
    assert_alike(gradients(faulty), once)


class HandMade(torch.autograd.Function):
    """Checkpointing as a library may write it by itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.block = block
        with torch.no_grad():
            return block(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            ctx.block(x).backward(gradient)
        return x.grad, None


def test_checkpointing_of_other_libraries_repeats_the_faults_of_the_last_forward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for how in (None, "all"):
        faulty = repeating(how, False)
        monkeypatch.setattr(Repeating, "call", lambda self, block, x: HandMade.apply(x, block))
        for x in samples(3):
            run(faulty, x).square().sum().backward()
        found.append(gradients(faulty))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


# -- mixed precision ---------------------------------------------------------------------

bfloat16 = functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("net", "scale"), [c for c in CASES if c[0] == "residual"] + [("plain", "log"), ("kept", "log")]
)
def test_gradients_under_autocast_are_those_written_by_hand(
    net: str, scale: str, mode: str
) -> None:
    model, x = build(net, scale, 8)
    reference = Reference(model, mode)
    x.requires_grad_()
    with bfloat16():
        struck, eager = reference.run(x)
    # A float32 scale for each channel makes a float32 activation of a bfloat16 one.
    expected = torch.float32 if scale == "channels" else torch.bfloat16
    assert expected in {value.dtype for value in reference.struck.values()}
    assert torch.equal(plain(struck), plain(eager))
    have = named_gradients(reference.faulty, x, weighted(struck))
    assert_alike(have, named_gradients(reference.eager, x, weighted(eager)))
    for name, gradient in have.items():
        assert gradient is None or bool(gradient.isfinite().all()), name


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("injection_type", ["full_flip", "msb_flip", "lsb_flip"])
def test_faults_under_autocast_are_exact(injection_type: str, bits: int) -> None:
    torch.manual_seed(0)
    act = QuantReLU(bit_width=bits, collect_stats_steps=1, return_quant_tensor=True)
    model = nn.Sequential(nn.Linear(12, 40), act, Probe())
    for seed in range(3):
        model(data(16, 12, seed=seed))
    seen: list[Any] = []
    with bfloat16(), probed(model, lambda name, output: seen.append(output)):
        model(data(16, 12))
        transformed(model, injection_type=injection_type)(data(16, 12))
    clean, faulty = seen
    assert faulty.value.dtype == torch.bfloat16
    codes = (clean.value.double() / clean.scale.double()).round().long()
    top = 2**bits - 1
    pattern = {"full_flip": top, "msb_flip": 2 ** (bits - 1), "lsb_flip": 1}[injection_type]
    hit = clean.value != faulty.value
    assert 0.2 < hit.float().mean() < 0.4
    # What Brevitas makes of these codes, in this dtype.
    flipped = (codes ^ pattern).to(torch.bfloat16) * faulty.scale
    assert torch.equal(faulty.value, torch.where(hit, flipped, clean.value))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("net", "scale"), [("residual", "statistics"), ("plain", "log")])
def test_training_under_autocast_decreases_the_loss(net: str, scale: str, mode: str) -> None:
    model, _ = build(net, scale, 0)
    faulty = transformed(model, gradient_mode=mode, probability=10.0, injection_type="random")
    losses = losses_of(faulty, net, steps=24, autocast=True)
    assert sum(losses[-6:]) < 0.7 * sum(losses[:6])


def test_autocast_refuses_only_widths_that_really_are_in_bfloat16() -> None:
    """The first activation is of the float32 input; the second of a layer's bfloat16 output."""
    torch.manual_seed(0)
    first = QuantIdentity(bit_width=12, collect_stats_steps=1)
    second = QuantReLU(bit_width=12, collect_stats_steps=1)
    faulty = transformed(nn.Sequential(first, nn.Linear(12, 12), second))
    x = data(6, 12)
    assert bool(faulty(x).isfinite().all())
    with bfloat16():
        with pytest.raises(SiteError, match=r"site 2: 12-bit codes do not fit torch\.bfloat16"):
            faulty(x)
        faulty.faults.select(["0"])
        assert faulty(x).dtype == torch.bfloat16


# -- statistics, other parameters, memory ------------------------------------------------


@pytest.mark.parametrize("how", [None, "nested"])
def test_statistics_while_training_count_noisy_forwards_once(how: str | None) -> None:
    faulty = repeating(how, True, probability=7.0)
    statistics = faulty.faults.new_statistics()
    noisy = 0
    for x in samples(30):
        run(faulty, x).square().sum().backward()
        noisy += faulty.faults.clock.why_quiet is None
    assert 5 < noisy < 25
    for site in faulty.faults:
        layer = statistics.layer_stats[site.index]
        calls = 2 if site.name.startswith("blocks.0") else 1
        assert layer.sample_count == noisy * calls
        assert layer.total_activations == noisy * calls * 6 * 12
    total = statistics.total_activations
    deviation = 100 * (0.07 * 0.93 / total) ** 0.5
    assert statistics.overall_injection_rate == pytest.approx(7.0, abs=4 * deviation)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("net", NETS)
def test_functional_call_with_other_parameters(net: str, mode: str) -> None:
    model, x = build(net, "statistics", 8)
    other = {n: (p.detach() * 0.9).requires_grad_() for n, p in model.named_parameters()}
    kept = {n: p.detach().clone() for n, p in model.named_parameters()}
    twin = copy.deepcopy(model)
    twin.load_state_dict({**twin.state_dict(), **other})
    twin, faulty = transformed(twin, gradient_mode=mode), transformed(model, gradient_mode=mode)
    called, loaded = functional_call(faulty, other, (x,)), twin(x)
    assert torch.equal(plain(called), plain(loaded))
    have = torch.autograd.grad(weighted(called), list(other.values()), allow_unused=True)
    want = torch.autograd.grad(weighted(loaded), list(twin.parameters()), allow_unused=True)
    names = list(other)
    assert_alike(dict(zip(names, have, strict=True)), dict(zip(names, want, strict=True)))
    assert_alike({n: p.detach() for n, p in model.named_parameters()}, kept)


@pytest.mark.parametrize(("how", "reentrant"), [(None, False), ("nested", True)])
def test_training_leaves_no_tensor_behind(how: str | None, reentrant: bool) -> None:
    faulty = repeating(how, reentrant)
    faulty.faults.new_statistics()
    optimiser = torch.optim.AdamW(faulty.parameters())
    alive = []
    for step in range(50):
        optimiser.zero_grad()
        run(faulty, data(6, 12, seed=step).double().requires_grad_()).square().sum().backward()
        optimiser.step()
        if step in (9, 49):
            gc.collect()
            alive.append(sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()))
    assert alive[1] <= alive[0]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_that_no_backward_reaches_is_freed_at_once(how: str, reentrant: bool) -> None:
    """What is kept with a checkpoint goes with it; nobody has to look for cycles."""
    faulty = repeating(how, reentrant)
    faulty.faults.clock.step_interval = 1.0

    def kept() -> int:
        return sum(type(thing) is recomputation._Strikes for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        y = run(faulty, *samples(1))
        assert kept() > 0
        del y
        assert kept() == 0
    finally:
        gc.enable()
