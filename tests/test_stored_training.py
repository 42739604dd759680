"""Faults in weights and biases: training, compiled code, copies and evaluations."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import brevitas.nn as qnn
import lightning_tasks as tasks
import pytest
import torch
from brevitas.inject.enum import BitWidthImplType, ScalingImplType
from brevitas.quant import Int16Bias
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from test_compile import needs_compiler
from test_stored_layers import ByHand, flipped, state_bytes
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import fxfault
from fxfault.data.batches import take_apart
from fxfault.errors import SiteError
from fxfault.evaluation import CompiledRunner, FullRunner, IncrementalRunner
from fxfault.evaluation.exposure import Exposure
from fxfault.passes import compilation
from fxfault.strike.draws import sources
from fxfault.training import FaultAwareTraining

STORED = ("weights", "biases")
BOTH = ["weights", "biases"]
ALL = [*BOTH, "activations"]
MODES = ("ste", "zero_faulty")
FAULTS = {"enabled": True, "seed": 3, "memory": BOTH, "injection_type": "msb_flip"}
FAULTS |= {"probability": 30.0, "apply_during": "both"}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        # Of torch, about itself; and of Brevitas, about zero points of accumulators.
        warnings.simplefilter("ignore")
        yield
    torch._dynamo.reset()


def transformed(net: nn.Module, **settings: Any) -> Any:
    made = {**FAULTS, **settings}
    if "num_faults" in settings or "faults" in settings:
        del made["probability"]
    if "faults" in settings:
        del made["memory"], made["injection_type"]
    return fxfault.transform(net, made)


class Gated(nn.Module):
    """A graph calls all layers but those of `inner`, which keeps its own forward."""

    def __init__(self, bias: Any = Int16Bias, **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        common: dict[str, Any] = {"bias": True, "bias_quant": bias, "weight_bit_width": 4}
        self.q = qnn.QuantIdentity(return_quant_tensor=True)
        self.first = qnn.QuantLinear(6, 8, **{**common, **settings})
        self.relu = qnn.QuantReLU(bit_width=6, return_quant_tensor=True)
        self.inner = Inner(common)
        self.last = qnn.QuantLinear(8, 5, **{**common, "weight_bit_width": 8})

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.first(self.q(x)))
        return self.last(self.relu(self.inner(y)))  # type: ignore[no-any-return]


class Inner(nn.Module):
    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.linear = qnn.QuantLinear(8, 8, **settings)

    def forward(self, x: Any) -> Any:
        return self.linear(x) if x.value.sum() < 1e9 else x


class Straight(nn.Module):
    """A network that is one graph."""

    def __init__(self, bias: Any = Int16Bias) -> None:
        super().__init__()
        torch.manual_seed(0)
        common: dict[str, Any] = {"bias": True, "bias_quant": bias, "weight_bit_width": 4}
        self.q = qnn.QuantIdentity(return_quant_tensor=True)
        self.first = qnn.QuantLinear(6, 8, **common)
        self.relu = qnn.QuantReLU(bit_width=6, return_quant_tensor=True)
        self.second = qnn.QuantLinear(8, 8, **common)
        self.again = qnn.QuantReLU(bit_width=6, return_quant_tensor=True)
        self.last = qnn.QuantLinear(8, 5, **common)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.first(self.q(x)))
        y = self.again(self.second(y))
        return self.last(self.again(self.second(y)))  # type: ignore[no-any-return]


def calibrated(net: nn.Module) -> nn.Module:
    """Activations settle their scales over 300 forwards."""
    net.train()
    for part in net.modules():
        if hasattr(part, "collect_stats_steps"):
            part.collect_stats_steps = 1
    with torch.no_grad():
        for seed in range(3):
            net(data(8, seed=seed))
    return net.eval()


def data(samples: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(samples, 6, generator=torch.Generator().manual_seed(seed))


def run(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(x)
    return found


# -- gradients, against a network whose words are replaced by hand ----------------------------


class Replaced(ByHand):
    """Replaces words that are hit, with the gradient of a mode written out."""

    mode = "ste"

    def __call__(self, *args: Any) -> Any:
        words = self.quantiser(*args)
        value = words.value
        faulty = flipped(words, self.hit, binary=False)
        kept = value * (~self.hit).to(value) if self.mode == "zero_faulty" else value
        return words._replace(value=faulty + (kept - kept.detach()))


def hits_now(site: Any) -> Tensor:
    """The words that the last forward has hit."""
    hit = torch.zeros(site.stored.shape, dtype=torch.bool)
    draw = site.clock.stored_draw
    for spread, key, numbers in sources(
        site, site.stream(), range(draw, draw + 1), site.stored.layout
    ):
        for hits in spread.hits(key, numbers, torch.device("cpu")):
            hit.view(-1)[hits.index] = True
    return hit


def by_hand(net: nn.Module, faulty: Any, mode: str = "ste") -> nn.Module:
    """A copy of the network with the words of the last forward."""
    new = copy.deepcopy(net)
    for site in faulty.faults:
        path, _, parameter = site.name.rpartition(".")
        layer, quantiser = new.get_submodule(path), f"{parameter}_quant"
        stand_in = Replaced(layer._modules[quantiser], hits_now(site), site)
        stand_in.mode = mode
        layer.__dict__[quantiser] = stand_in
    return new


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


LEARNED = {
    "weight_scaling_impl_type": ScalingImplType.PARAMETER_FROM_STATS,
    "weight_bit_width_impl_type": BitWidthImplType.PARAMETER,
}


@pytest.mark.parametrize("persist", ["step", "epoch", "run"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("settings", [{}, LEARNED], ids=["plain", "learned"])
def test_training_steps_against_words_replaced_by_hand(
    settings: dict[str, Any], mode: str, persist: str
) -> None:
    net = calibrated(Gated(**settings))
    faulty = transformed(net, gradient_mode=mode, persist=persist)
    hand = copy.deepcopy(net)
    faulty.train()
    hand.train()
    optimisers = [torch.optim.SGD(m.parameters(), lr=1e-3) for m in (faulty, hand)]
    seen, seen_gradients = [], []
    for epoch in range(2):
        faulty.faults.start_epoch(epoch)
        for step in range(3):
            for optimiser in optimisers:
                optimiser.zero_grad()
            found = faulty(data(seed=step))
            model = by_hand(hand, faulty, mode)
            expected = model(data(seed=step))
            assert torch.equal(found, expected)
            found.square().mean().backward()
            expected.square().mean().backward()
            struck = dict(model.named_parameters())
            for name, parameter in hand.named_parameters():
                parameter.grad = struck[name].grad
            assert same(gradients(faulty), gradients(hand))
            for optimiser in optimisers:
                optimiser.step()
            seen_gradients.append(gradients(faulty))
            seen.append(tuple(hits_now(faulty.faults[0]).flatten().tolist()))
    assert len(set(seen)) == {"step": 6, "epoch": 2, "run": 1}[persist]
    assert state_bytes(faulty) == state_bytes(hand)
    if settings:
        learned = [n for n, _ in net.named_parameters() if "weight_quant" in n]
        assert learned
        assert all(max(grads[name].abs().max() for grads in seen_gradients) > 0 for name in learned)


@pytest.mark.parametrize("num_faults", [None, 20])
@pytest.mark.parametrize("persist", ["step", "epoch", "run"])
def test_draws_last_as_long_as_they_should(persist: str, num_faults: int | None) -> None:
    settings = {} if num_faults is None else {"num_faults": num_faults}
    faulty = transformed(calibrated(Straight()), persist=persist, **settings).train()
    outputs = set()
    for epoch in range(2):
        faulty.faults.start_epoch(epoch)
        outputs |= {run(faulty, data()).numpy().tobytes() for _ in range(3)}
    assert len(outputs) == {"step": 6, "epoch": 2, "run": 1}[persist]


# -- what torch offers -------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.net, self.reentrant = calibrated(Straight()), reentrant

    def forward(self, x: Tensor) -> Any:
        if self.reentrant is None:
            return self.net(x)
        return checkpoint(self.net, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_repeats_the_faults(mode: str, reentrant: bool, outside: bool) -> None:
    found = []
    for kind in (None, reentrant):
        faulty = transformed(Checkpointed(None if outside else kind), gradient_mode=mode).train()
        losses = []
        for step in range(2):  # Two forwards, then one backward.
            x = data(seed=step).requires_grad_()
            if outside and kind is not None:
                losses.append(checkpoint(faulty, x, use_reentrant=kind).square().sum())
            else:
                losses.append(faulty(x).square().sum())
        sum(losses).backward()  # type: ignore[union-attr]
        found.append((losses, gradients(faulty), faulty.faults.clock.step))
    assert torch.equal(torch.stack(found[0][0]), torch.stack(found[1][0]))
    for name, grad in found[0][1].items():  # A sum of two in another order.
        torch.testing.assert_close(found[1][1][name], grad, rtol=1e-5, atol=1e-6)
    assert found[0][2] == found[1][2] == 2


def test_two_forwards_then_backward_have_faults_of_their_own() -> None:
    net = calibrated(Straight())
    faulty, grads, losses = transformed(net, gradient_mode="zero_faulty").train(), [], []
    for step in range(2):
        losses.append(faulty(data(seed=step)).square().sum())
        hand = by_hand(net.train(), faulty, "zero_faulty")
        hand(data(seed=step)).square().sum().backward()
        grads.append(gradients(hand))
    (losses[0] + losses[1]).backward()
    for name, grad in gradients(faulty).items():
        torch.testing.assert_close(grad, grads[0][name] + grads[1][name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    net = calibrated(Straight())
    faulty = transformed(net).train()
    with torch.autocast("cpu", dtype):
        found = faulty(data())
        expected = by_hand(net.train(), faulty)(data())
        clean = net(data())
    assert torch.equal(found, expected)
    assert not torch.equal(found, clean)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_of_another_dtype(dtype: torch.dtype, frozen: bool) -> None:
    net = calibrated(Straight(None if dtype is torch.bfloat16 else Int16Bias))
    faulty = transformed(net, memory="weights" if dtype is torch.bfloat16 else BOTH)
    faulty = fxfault.freeze(faulty) if frozen else faulty
    run(faulty, data())
    net.to(dtype)
    assert net.first.weight.dtype is dtype
    found = run(faulty, data().to(dtype))
    assert torch.equal(found, run(by_hand(net, faulty), data().to(dtype)))
    assert not torch.equal(found, run(net, data().to(dtype)))


def test_words_that_a_dtype_cannot_hold_are_refused() -> None:
    faulty = transformed(calibrated(Gated(None, weight_bit_width=16)), memory="weights")
    faulty.to(torch.bfloat16)
    with pytest.raises(SiteError, match=r"site first\.weight: 16-bit codes do not fit"):
        run(faulty, data().bfloat16())


@pytest.mark.parametrize("frozen", [False, True])
def test_inference_mode(frozen: bool) -> None:
    faulty = transformed(calibrated(Straight()))
    model = fxfault.freeze(faulty) if frozen else faulty
    for trial in (0, 1, 1):
        faulty.faults.reset(trial)
        expected = run(faulty, data())
        model.faults.reset(trial)
        with torch.inference_mode():
            found = model(data())
        assert torch.equal(found, expected)
        model.faults.reset(trial)
        assert torch.equal(run(model, data()), expected)


@pytest.mark.parametrize("frozen", [False, True])
def test_functional_call(frozen: bool) -> None:
    net = calibrated(Straight())
    faulty = transformed(net)
    model = fxfault.freeze(faulty) if frozen else faulty
    before = run(model, data())
    other = {name: p.detach() * -0.7 for name, p in net.named_parameters()}
    with torch.no_grad():
        found = functional_call(model, other, (data(),))
    changed = copy.deepcopy(net)
    changed.load_state_dict(other, strict=False)
    assert torch.equal(found, run(by_hand(changed, faulty), data()))
    assert torch.equal(run(model, data()), before)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_deep_copy_is_struck_by_its_own_sites(frozen: bool) -> None:
    net = calibrated(Gated())
    faulty = transformed(net)
    model = fxfault.freeze(faulty) if frozen else faulty
    before = run(model, data())
    twin = copy.deepcopy(model)
    assert torch.equal(run(twin, data()), before)
    twin.faults.reset(1)
    other = run(twin, data())
    assert not torch.equal(other, before)
    assert torch.equal(run(model, data()), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(-1)
    assert torch.equal(run(model, data()), before)
    assert not torch.equal(run(twin, data()), other)


# -- schedules ---------------------------------------------------------------------------------


@pytest.mark.parametrize("persist", ["step", "epoch", "run"])
def test_a_restored_clock_draws_the_same_faults(persist: str) -> None:
    net = calibrated(Straight())

    def trained(faulty: Any, steps: range) -> list[bytes]:
        return [run(faulty, data(seed=step)).numpy().tobytes() for step in steps]

    whole = transformed(net, persist=persist, step_interval=0.5, num_faults=9).train()
    whole.faults.start_epoch(1)
    first = trained(whole, range(4))
    state, rest = whole.faults.clock.state(), trained(whole, range(4, 9))
    assert len({*first, *rest}) == 9
    again = transformed(net, persist=persist, step_interval=0.5, num_faults=9).train()
    again.faults.clock.restore(state)
    assert trained(again, range(4, 9)) == rest


def test_intervals_decide_whole_forwards() -> None:
    net = calibrated(Straight())
    faulty = transformed(net, step_interval=0.5, epoch_interval=2).train()
    for epoch in range(4):
        faulty.faults.start_epoch(epoch)
        noisy = []
        for step in range(20):
            found = run(faulty, data(seed=step))
            quiet = faulty.faults.clock.why_quiet is not None
            assert torch.equal(found, run(net.train(), data(seed=step))) == quiet
            noisy.append(not quiet)
        # A fair coin falls on one side twenty times with a chance of 2e-6.
        assert any(noisy) == (epoch % 2 == 0)
        assert not all(noisy)


def test_processes_share_the_faults_of_a_weight() -> None:
    """Each process has the same network; `shard` only numbers the samples."""
    net, hits = calibrated(Straight()), []
    for rank in range(2):
        faulty = transformed(net).train()
        faulty.faults.shard(rank, 2)
        for step in range(3):
            run(faulty, data(seed=10 * step + rank))
        hits.append([hits_now(site) for site in faulty.faults])
    assert all(map(torch.equal, *hits))


# -- Lightning ---------------------------------------------------------------------------------

TRAINED = {**FAULTS, "memory": "weights", "apply_during": "train", "track_statistics": True}


class Notes(Callback):
    """Notes the words that each training step hits, and what a checkpoint would hold."""

    def __init__(self) -> None:
        self.hits: list[bytes] = []
        self.quiet: list[bool] = []

    def on_train_batch_end(self, trainer: Any, task: Any, *_: Any) -> None:
        (aware,) = (c for c in trainer.callbacks if isinstance(c, FaultAwareTraining))
        self.quiet.append(aware.faults.clock.why_quiet is not None)
        self.hits.append(b"".join(hits_now(site).numpy().tobytes() for site in aware.faults))


def fitted(
    folder: Path, task: Any, settings: dict[str, Any], start: Path | None = None, **options: Any
) -> Notes:
    notes = Notes()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[
            FaultAwareTraining(settings),
            notes,
            ModelCheckpoint(folder, save_top_k=-1, every_n_train_steps=1, filename="{step}"),
        ],
        **{"max_epochs": 2, **options},
    )
    trainer.fit(task, tasks.loader(), ckpt_path=start)
    return notes


@pytest.mark.parametrize("persist", ["step", "epoch", "run"])
def test_lightning_goes_on_from_a_checkpoint_with_the_same_faults(
    tmp_path: Path, persist: str
) -> None:
    settings = {**TRAINED, "persist": persist}
    task = tasks.Task()
    whole = fitted(tmp_path / "whole", task, settings)
    assert len(whole.hits) == 8
    assert len(set(whole.hits)) == {"step": 8, "epoch": 2, "run": 1}[persist]
    resumed = tasks.Task()
    start = tmp_path / "whole" / "step=4.ckpt"
    rest = fitted(tmp_path / "rest", resumed, settings, start)
    assert rest.hits == whole.hits[4:]
    assert state_bytes(resumed) == state_bytes(task)


def test_lightning_obeys_intervals_and_accumulates(tmp_path: Path) -> None:
    settings = {**TRAINED, "step_interval": 0.5, "epoch_interval": 2}
    notes = fitted(tmp_path, tasks.Task(), settings, max_epochs=4, accumulate_grad_batches=2)
    assert len(notes.quiet) == 16
    assert all(notes.quiet[4:8])
    assert all(notes.quiet[12:])
    assert 0 < sum(notes.quiet[:4] + notes.quiet[8:12]) < 8
    assert len(set(notes.hits)) == 16  # Each micro-batch has a draw of its own.


def test_a_curriculum_sets_the_rate_of_weights() -> None:
    points = [{"epoch": 0, "probability": 0.0}, {"epoch": 2, "probability": 100.0}]
    net = calibrated(Straight())
    settings = {key: value for key, value in FAULTS.items() if key != "probability"}
    config = {**settings, "apply_during": "train", "interpolate": "linear", "curriculum": points}
    faulty = fxfault.transform(net, config).train()
    shares = []
    for epoch in range(3):
        faulty.faults.start_epoch(epoch)
        assert torch.equal(run(faulty, data()), run(by_hand(net.train(), faulty), data()))
        shares.append(torch.cat([hits_now(s).flatten() for s in faulty.faults]).double().mean())
    assert shares[0] == 0
    assert 0.3 < shares[1] < 0.7
    assert shares[2] == 1


STEPS = """
import os, sys
import torch
from brevitas.nn import QuantLinear
import fxfault
torch.manual_seed(0)
net = torch.nn.Sequential(*(QuantLinear(6, 6, bias=False, weight_bit_width=4) for _ in range(2)))
torch.save(net.state_dict(), f"{{sys.argv[1]}}/first.pt")
faulty = fxfault.transform(net, {settings!r}).train()
optimiser = torch.optim.SGD(net.parameters(), lr=0.0)
step = 0
while True:
    faulty(torch.randn(4, 6)).square().sum().backward()
    optimiser.step()
    torch.save(net.state_dict(), f"{{sys.argv[1]}}/part")
    os.replace(f"{{sys.argv[1]}}/part", f"{{sys.argv[1]}}/{{step % 3}}.pt")
    step += 1
    if step == 5:
        print("saved", flush=True)
"""


def test_a_killed_training_leaves_no_fault_in_a_checkpoint(tmp_path: Path) -> None:
    """The learning rate is 0, so that every checkpoint must hold the very first weights."""
    settings = {**TRAINED, "probability": 100.0, "track_statistics": False}
    code = STEPS.format(settings=settings)
    here = {**os.environ, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=here) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "saved\n"
        process.send_signal(signal.SIGKILL)
    first, *saved = [torch.load(tmp_path / f"{name}.pt") for name in ("first", 0, 1, 2)]
    for state in saved:
        assert state.keys() == first.keys()
        assert all(torch.equal(state[name], value) for name, value in first.items())


# -- compiled code -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "memory"),
    [
        *(("aot_eager", memory) for memory in (*STORED, ALL)),
        pytest.param("inductor", ALL, marks=needs_compiler),
    ],
    ids=str,
)
def test_compiled_outputs_are_those_of_the_model(backend: str, memory: Any) -> None:
    faulty = transformed(calibrated(Straight()), memory=memory)
    made = compilation.compile(faulty, data(), backend=backend, exact=True)
    assert made.compiled, made.why_not
    seen = set()
    for trial in range(4):
        for model in (faulty, made.model):
            model.faults.reset(trial)
        found = run(made.model, data())
        assert torch.equal(found, run(faulty, data()))
        seen.add(found.numpy().tobytes())
    assert len(seen) == 4


def test_nothing_is_compiled_again() -> None:
    faulty = fxfault.freeze(transformed(calibrated(Straight())))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(faulty.forward, fullgraph=True, backend=counter, dynamic=False)
    with torch.no_grad():
        for trial in range(3):
            faulty.faults.reset(trial)
            found = compiled(data())
            faulty.faults.reset(trial)
            assert torch.equal(found, faulty(data()))
        faulty.faults.set_probability(80.0)
        assert torch.equal(compiled(data()), faulty(data()))
    assert counter.frame_count == 1


class Plain(nn.Module):
    """Brevitas's own code can be compiled in training only without QuantTensors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = qnn.QuantLinear(6, 8, bias=False, weight_bit_width=4)
        self.second = qnn.QuantLinear(8, 5, bias=False, weight_bit_width=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize("gradient_mode", MODES)
def test_compiled_training_has_the_gradients_of_the_model(gradient_mode: str) -> None:
    found = []
    for is_compiled in (False, True):
        faulty = transformed(Plain(), memory="weights", gradient_mode=gradient_mode).train()
        call = torch.compile(faulty, fullgraph=True, backend="aot_eager") if is_compiled else faulty
        for step in range(2):
            call(data(seed=step)).square().sum().backward()
        found.append(gradients(faulty))
    assert same(*found)


# -- evaluations -------------------------------------------------------------------------------

BATCHES = [(data(size, seed=size), torch.arange(size) % 5) for size in (8, 8, 5)]
SETTINGS: dict[str, dict[str, Any]] = {
    "weights": {"memory": "weights"},
    "biases": {"memory": "biases"},
    "both": {},
    "all memories": {"memory": ALL, "probability": 5.0},
    "one layer": {"memory": ALL, "layers": "second.*"},
    "few": {"probability": 0.5},
    "counted": {"num_faults": 5},
    "counted bits": {"num_faults": 9, "rate_unit": "bit", "injection_type": "bit_flip"},
    "rate of bits": {"probability": 3.0, "rate_unit": "bit", "injection_type": "bit_flip"},
    "broken units": {"hw_mask": True, "frequency_value": 3},
    "stuck": {"injection_type": "stuck_at_1", "bit": 2},
    "random": {"injection_type": "random"},
    "a fault each": {
        "faults": [
            {"injection_type": "msb_flip", "probability": 10.0, "memory": "weights"},
            {"injection_type": "lsb_flip", "num_faults": 3, "memory": "biases"},
            {"injection_type": "random", "probability": 1.0, "memory": "activations"},
        ]
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_runners_agree(name: str) -> None:
    faulty = transformed(calibrated(Straight()), apply_during="eval", **SETTINGS[name])
    frozen = fxfault.freeze(faulty)
    runners: dict[str, Any] = {
        "full": FullRunner(faulty, BATCHES),
        "frozen": FullRunner(frozen, BATCHES),
        "incremental": IncrementalRunner(frozen, BATCHES, verify=0.0),
    }
    if name in ("all memories", "counted", "random"):
        full = FullRunner(frozen, BATCHES)
        runners["compiled"] = CompiledRunner(full, 0.0, backend="aot_eager")
    golden = {key: runner.golden().top for key, runner in runners.items()}
    assert all(torch.equal(top, golden["full"]) for top in golden.values())
    assert "compiled" not in runners or runners["compiled"].why_not is None
    changed = 0
    for trial in range(6):
        found = {}
        for key, runner in runners.items():
            runner.model.faults.reset(trial)
            found[key] = runner.run()
        for key, predictions in found.items():
            assert torch.equal(predictions.top, found["full"].top), key
        changed += int((found["full"].top != golden["full"]).sum())
        _assert_hits(faulty, trial, runners["full"])
    assert changed > 0 or name in ("few", "biases")


def _assert_hits(faulty: Any, trial: int, runner: FullRunner) -> None:
    """Hits of weights and biases are those that statistics count in a real run."""
    sites = faulty.faults
    if any(site.stored is None and site.faults for site in sites):
        return
    sites.reset(trial)
    exposure = Exposure(sites, take_apart(BATCHES[0]), 21)
    sites.reset(trial)
    _, hits, exposed = exposure.measured(runner.run)
    counted = fxfault.FaultStatistics(len(sites), sites.names, cosine=False)
    for site in sites:
        site.statistics = counted
    sites.reset(trial)
    runner.run()
    for site in sites:
        site.statistics = None
    assert hits == counted.total_injections == sum(int(hits_now(site).sum()) for site in sites)
    assert exposed == counted.total_activations


class AsksFor(nn.Module):
    """Uses the words of a layer without a call of it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Straight()
        self.matrix = qnn.QuantLinear(6, 6, bias=False, weight_bit_width=4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.net.relu(self.net.first(self.net.q(x)))
        x = nn.functional.linear(x, self.matrix.quant_weight().value)
        return self.net(x + y.value[:, :6])  # type: ignore[no-any-return]


@pytest.mark.parametrize("build", [Gated, AsksFor])
def test_runners_agree_on_networks_that_are_not_one_graph(build: Any) -> None:
    faulty = transformed(calibrated(build()), memory=ALL, probability=5.0)
    frozen = fxfault.freeze(faulty)
    runners: list[Any] = [FullRunner(faulty, BATCHES), IncrementalRunner(frozen, BATCHES)]
    for index in (None, *range(len(faulty.faults))):
        for trial in range(2):
            found = []
            assert build is Gated or runners[1].why_full is None
            for runner in runners:
                for site in runner.model.faults:
                    site.selected = index in (None, site.index)
                runner.model.faults.reset(trial)
                found.append(runner.run().top)
            assert torch.equal(*found), (index, trial)


def test_runners_follow_the_selection_of_sites() -> None:
    """Frozen words are kept for a trial; the share of a site in `num_faults` may change in it."""
    faulty = transformed(calibrated(Straight()), num_faults=40)
    frozen = fxfault.freeze(faulty)
    tops = []
    for names in (None, ["first.weight", "last.weight"], ["first.weight"], None):
        for model in (faulty, frozen):
            for site in model.faults:
                site.selected = names is None or site.name in names
            model.faults.reset(0)
        outputs = [run(model, data()) for model in (faulty, frozen)]
        assert torch.equal(*outputs)
        tops.append(outputs[0])
    assert not torch.equal(tops[1], tops[2])
