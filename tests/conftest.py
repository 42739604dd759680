"""What several test files share: one thread, and models that are small enough to be quick."""

from __future__ import annotations

import gc
import itertools
import multiprocessing.util
import os
import signal
import sys
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from commands import Run
from torch import Tensor, nn

import fxfault
from fxfault.faults.torch_versions import why_not_compiled

# Tests of benchmarks import those from the checkout; `pytest` alone does not look there.
sys.path.append(str(Path(__file__).resolve().parent.parent))

# Two threads on a busy machine can be fifty times slower than one for models of this size.
torch.set_num_threads(1)

# A shell starts a job in the background with Ctrl-C ignored, and what we start inherits that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def why_mixed(files: Mapping[str, str]) -> str | None:
    """Say which packages come from another installation than fxfault itself; None: none does.

    Args:
        files: `__file__` of fxfault and of packages within it, by their names.
    """
    folder = Path(files["fxfault"]).parent
    for name, file in files.items():
        inner = name.removeprefix("fxfault").replace(".", "/").strip("/")
        beside, within = folder.parent / inner, folder / inner
        if inner and Path(file).parent not in (beside, within):
            return (
                f"fxfault comes from {folder.parent}, but {name} from {Path(file).parents[2]}: two "
                "installations are mixed; run `pip install -e .` in the checkout, and pytest with "
                "the Python of that environment"
            )
    return None


def pytest_configure() -> None:
    """Refuse to test one installation's commands on another one's package."""
    import fxfault.cli
    import fxfault.passes

    modules = (fxfault, fxfault.passes, fxfault.cli)
    mixed = why_mixed({module.__name__: str(module.__file__) for module in modules})
    if mixed is not None:
        raise pytest.UsageError(mixed)


# Files and tests in which torch compiles a model; an old torch cannot.
_COMPILING = (
    *("test_compile.py", "test_compiled_runner.py", "test_compiled_model_has_the_faults"),
    *("test_frozen_model_compiles_as_one_graph", "lists_have_the_same_faults[minifloat"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this torch is too old for, with what `fxfault.compile` says."""
    why_not = why_not_compiled()
    for item in items if why_not else ():
        if any(name in item.nodeid for name in _COMPILING):
            item.add_marker(pytest.mark.skip(reason=why_not))


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Give the models that a module makes the same weights in each run.

    torch draws another seed for each process, and a test that fails for some weights only should do
    so each time.
    """
    if isinstance(collector, pytest.Module):
        torch.manual_seed(zlib.crc32(collector.nodeid.encode()))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give a test its own seed, which is the same in each run and order."""
    torch.manual_seed(zlib.crc32(item.nodeid.encode()))


class _Imported:
    """How many modules there were when the collector was last told to leave them alone."""

    modules = 0


def pytest_collection_finish() -> None:
    """Take torch, its neighbours and the tests themselves out of what the collector looks through.

    They live until the end. Looking through them each time took half of what some files take.
    """
    gc.collect()
    gc.freeze()
    _Imported.modules = len(sys.modules)


def pytest_runtest_logfinish() -> None:
    """Do so again where a test has imported much: torch's compiler, Lightning, or Matplotlib.

    Each transform of a model looks through what is left, more than once.
    """
    if len(sys.modules) > _Imported.modules + 100:
        pytest_collection_finish()


def _calibrated(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """Run a model in training mode, so that its scales are there, and put it in eval mode."""
    model.train()
    with torch.no_grad():
        model(*inputs)
    return model.eval()


@pytest.fixture
def calibrated() -> Callable[..., nn.Module]:
    """Give a function that calibrates a model on some inputs and puts it in eval mode."""
    return _calibrated


@pytest.fixture
def faulty() -> Callable[..., Any]:
    """Give a function that transforms a model: all elements, both modes, seed 0, unless told."""

    def transform(model: nn.Module, **settings: Any) -> Any:
        defaults: dict[str, Any] = {"enabled": True, "apply_during": "both", "seed": 0}
        if not settings.keys() & {"num_faults", "faults"}:
            defaults["probability"] = 100.0
        return fxfault.transform(model, {**defaults, **settings})

    return transform


@pytest.fixture
def run_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Run]:
    """Give a function that runs the main function of a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(main: Callable[[Sequence[str]], int], *argv: str) -> Run:
        capsys.readouterr()
        try:
            status = main(argv)
        except SystemExit as end:  # argparse
            status = int(end.code or 0)
        return Run(status, *capsys.readouterr())

    return run


@pytest.fixture
def convnet() -> nn.Module:
    """A calibrated network for (N, 3, 6, 6) with three sites: signed 8, unsigned 4 and 3 bits."""
    torch.manual_seed(0)
    model = nn.Sequential(
        QuantIdentity(bit_width=8, return_quant_tensor=True),
        QuantConv2d(3, 4, 3, bias=False, weight_bit_width=4),
        nn.BatchNorm2d(4),
        QuantReLU(bit_width=4, return_quant_tensor=True),
        nn.Flatten(),
        QuantLinear(64, 8, bias=False, weight_bit_width=4),
        QuantReLU(bit_width=3, return_quant_tensor=True),
        QuantLinear(8, 5, bias=True, weight_bit_width=4),
    )
    return _calibrated(model, torch.randn(16, 3, 6, 6))


class _Branching(nn.Module):
    """A network that looks at its values, so that its own Python forward must be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.first = QuantIdentity(bit_width=8, return_quant_tensor=True)
        self.again = QuantReLU(bit_width=4, return_quant_tensor=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).value
        if float(x.detach().abs().max()) >= 0:
            x = self.again(x).value
        return self.again(x - 0.25).value


@pytest.fixture
def branching() -> nn.Module:
    """A calibrated network for (N, 12) with data-dependent control flow; `again` runs twice."""
    torch.manual_seed(0)
    return _calibrated(_Branching(), torch.randn(16, 12))


@pytest.fixture(params=["copied", "overwritten"])
def small_tensors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Under no_grad the op copies small activations and overwrites large ones that nobody sees.

    A test that asks for this runs twice, the second time with its small ones taken for large.
    """
    kind: str = request.param
    if kind == "overwritten":
        from fxfault.strike import strikes

        monkeypatch.setattr(strikes, "SMALL", 0)
    return kind


@pytest.fixture
def quick_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the fork servers of engines from this process, which has imported what they import.

    Only the seconds of these imports are left out; tests of those start a real server.
    """
    start = multiprocessing.util.spawnv_passfds  # type: ignore[attr-defined]

    def fork(path: str, argv: Sequence[str], files: Sequence[int]) -> int:
        if "forkserver" not in argv[-1]:
            return int(start(path, argv, files))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Since Python 3.12: this process has threads.
            pid = os.fork()
        if pid == 0:
            _become_server(argv[-1], files)
        return pid

    monkeypatch.setattr(multiprocessing.util, "spawnv_passfds", fork)


def _become_server(code: str, files: Sequence[int]) -> None:
    """Make this fork of pytest look as a new Python with a few open files, and run code in it."""
    try:
        edges = [2, *sorted(files), os.sysconf("SC_OPEN_MAX")]
        for low, high in itertools.pairwise(edges):
            os.closerange(low + 1, high)
        sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
        warnings.resetwarnings()  # pytest makes errors of them.
        exec(code, {})
    finally:
        os._exit(1)
